#include "backend/ops/head_gemm.h"

#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

// kv_b of absorbed MLA: head h has N rows of key, then U rows of value, all of width C.
TEST(HeadGemm, QueriesIntoTheLatentAndValuesOutOfIt) {
  const int64_t nope = 17, value = 9, latent = 33, rope = 6;
  for (const int64_t heads : {1, 3})
    for (const int64_t tokens : {0, 1, 7, 50})
      for (const DType act : {DType::f32, DType::bf16})
        for (const DType weight : {DType::f32, DType::bf16, DType::e4m3})
          expect_like_ref(
              [&](Bench& b) -> Outputs {
                const Tensor w = weight == DType::e4m3
                                     ? b.t.normal_e4m3(heads * (nope + value), latent)
                                     : b.t.normal(weight, heads * (nope + value), latent, 1, 2);
                const Tensor q = b.t.normal(act, tokens, heads * (nope + rope), 1, 1);
                const Tensor q_latent = b.t.garbage(act, tokens, heads * latent, 3);
                on(b.s).head_gemm({.x = q,
                                   .w = w,
                                   .y = q_latent,
                                   .heads = heads,
                                   .x_stride = nope + rope,
                                   .y_stride = latent,
                                   .w_first = 0,
                                   .w_stride = nope + value,
                                   .w_rows = nope});
                const Tensor o_latent = b.t.normal(act, tokens, heads * latent, 1, 5);
                const Tensor o = b.t.garbage(act, tokens, heads * value);
                on(b.s).head_gemm({.x = o_latent,
                                   .w = w,
                                   .y = o,
                                   .heads = heads,
                                   .x_stride = latent,
                                   .y_stride = value,
                                   .w_first = nope,
                                   .w_stride = nope + value,
                                   .w_rows = value,
                                   .trans_w = true});
                return {q_latent, o};
              },
              fmt::format("{} heads, {} tokens, {} {}", heads, tokens, name_of(act), name_of(weight)));
}

TEST(HeadGemm, AlignedHeadsInBf16) {
  const int64_t nope = 32, value = 16, latent = 64, rope = 8, heads = 3;
  for (const int64_t tokens : {1, 20})
    expect_like_ref([&](Bench& b) -> Outputs {
      const Tensor w = b.t.normal(DType::bf16, heads * (nope + value), latent);
      const Tensor q = b.t.normal(DType::bf16, tokens, heads * (nope + rope));
      const Tensor q_latent = b.t.garbage(DType::bf16, tokens, heads * latent);
      on(b.s).head_gemm({.x = q,
                         .w = w,
                         .y = q_latent,
                         .heads = heads,
                         .x_stride = nope + rope,
                         .y_stride = latent,
                         .w_first = 0,
                         .w_stride = nope + value,
                         .w_rows = nope});
      const Tensor o_latent = b.t.normal(DType::bf16, tokens, heads * latent);
      const Tensor o = b.t.garbage(DType::bf16, tokens, heads * value);
      on(b.s).head_gemm({.x = o_latent,
                         .w = w,
                         .y = o,
                         .heads = heads,
                         .x_stride = latent,
                         .y_stride = value,
                         .w_first = nope,
                         .w_stride = nope + value,
                         .w_rows = value,
                         .trans_w = true});
      return {q_latent, o};
    });
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
