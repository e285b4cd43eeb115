#include "backend/ops/head_gemm.h"

#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

// kv_b of absorbed MLA: head h has `nope` rows of key, then `value` rows of value, all of width `latent`.
struct Heads {
  int64_t nope = 0, value = 0, latent = 0, rope = 0, heads = 0, tokens = 0;
  int64_t rows() const { return heads * (nope + value); }
};

// Queries [tokens, heads (nope + rope)] into the latent, and values out of o_latent [tokens, heads latent].
// `padding` is behind the rows of the results.
Outputs absorb(Bench& b, const Heads& h, const Tensor& w, const Tensor& q, const Tensor& o_latent,
               int64_t padding = 0) {
  const Tensor q_latent = b.t.garbage(q.dtype, h.tokens, h.heads * h.latent, padding),
               o = b.t.garbage(q.dtype, h.tokens, h.heads * h.value);
  on(b.s).head_gemm({.x = q,
                     .w = w,
                     .y = q_latent,
                     .heads = h.heads,
                     .x_stride = h.nope + h.rope,
                     .y_stride = h.latent,
                     .w_first = 0,
                     .w_stride = h.nope + h.value,
                     .w_rows = h.nope});
  on(b.s).head_gemm({.x = o_latent,
                     .w = w,
                     .y = o,
                     .heads = h.heads,
                     .x_stride = h.latent,
                     .y_stride = h.value,
                     .w_first = h.nope,
                     .w_stride = h.nope + h.value,
                     .w_rows = h.value,
                     .trans_w = true});
  return {q_latent, o};
}

TEST(HeadGemm, QueriesIntoTheLatentAndValuesOutOfIt) {
  for (const int64_t heads : {1, 3})
    for (const int64_t tokens : {0, 1, 7, 50})
      for (const DType act : {DType::f32, DType::bf16})
        for (const DType weight : {DType::f32, DType::bf16, DType::e4m3})
          expect_like_ref(
              [&](Bench& b) {
                const Heads h{
                    .nope = 17, .value = 9, .latent = 33, .rope = 6, .heads = heads, .tokens = tokens};
                const Tensor w = weight == DType::e4m3 ? b.t.normal_e4m3(h.rows(), h.latent)
                                                       : b.t.normal(weight, h.rows(), h.latent, 1, 2);
                return absorb(b, h, w, b.t.normal(act, tokens, heads * (h.nope + h.rope), 1, 1),
                              b.t.normal(act, tokens, heads * h.latent, 1, 5), 3);
              },
              fmt::format("{} heads, {} tokens, {} {}", heads, tokens, name_of(act), name_of(weight)));
}

TEST(HeadGemm, AlignedHeadsInBf16) {
  for (const int64_t latent : {64, 256})
    for (const int64_t tokens : {1, 5, 8, 20, 70})
      for (const int64_t nope : {32, 64})
        expect_like_ref(
            [&](Bench& b) {
              const Heads h{
                  .nope = nope, .value = 16, .latent = latent, .rope = 8, .heads = 3, .tokens = tokens};
              return absorb(b, h, b.t.normal(DType::bf16, h.rows(), latent),
                            b.t.normal(DType::bf16, tokens, h.heads * (h.nope + h.rope)),
                            b.t.normal(DType::bf16, tokens, h.heads * latent));
            },
            fmt::format("{} tokens, {} to a latent of {}", tokens, nope, latent));
}

TEST(HeadGemm, ColumnsBetweenTheHeadsKeepTheirValues) {
  for (const TestedDevice& tested : tested_devices()) {
    Bench b(*tested.device);
    const Tensor x = b.t.normal(DType::f32, 4, 2 * 3), w = b.t.normal(DType::f32, 2 * 3, 5);
    const Tensor y = b.t.values(DType::f32, 4, 2 * 8, std::vector<double>(64, 42));
    on(b.s).head_gemm(
        {.x = x, .w = w, .y = y, .heads = 2, .x_stride = 3, .y_stride = 8, .w_stride = 3, .w_rows = 3});
    const std::vector<double> values = read(b.s, y);
    for (size_t i = 0; i < values.size(); ++i)
      EXPECT_EQ(values[i] == 42, i % 8 >= 5) << tested.name << " " << i;
  }
}

}  // namespace
}  // namespace cachalot
