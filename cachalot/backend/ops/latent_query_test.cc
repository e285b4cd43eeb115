#include "backend/ops/latent_query.h"

#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

struct Case {
  int64_t tokens, width, heads, plain, rope, latent;
  DType act = DType::bf16, cache = DType::bf16;
  std::string text() const {
    return fmt::format("{} tokens of {} {}, {} heads of {} + {}, latents of {} in {}", tokens, width,
                       name_of(act), heads, plain, rope, latent, name_of(cache));
  }
};

constexpr int64_t kSlots = 64;  // no two of up to 64 tokens have the same

// V3's heads, with few tokens and with more, and others.
std::vector<Case> cases() {
  std::vector<Case> list;
  for (const int64_t tokens : {0, 1, 4, 5}) {
    list.push_back({tokens, 512, 2, 128, 64, 512});
    list.push_back({tokens, 64, 2, 16, 8, 32});
  }
  list.push_back({1, 264, 8, 128, 64, 512});
  list.push_back({2, 1536, 1, 128, 64, 512});
  list.push_back({9, 64, 1, 128, 64, 512});
  list.push_back({45, 512, 2, 128, 64, 512});
  list.push_back({2, 512, 3, 128, 64, 512, DType::bf16, DType::e4m3});
  list.push_back({2, 40, 2, 16, 8, 32, DType::f32, DType::f32});
  return list;
}

LatentQuery make(Bench& b, const Case& c) {
  const int64_t head = c.plain + c.rope, table = 9, value = 24;
  std::vector<int32_t> positions, slots;
  for (int64_t t = 0; t < c.tokens; ++t) {
    positions.push_back(int32_t(t * 4 % table));
    slots.push_back(t % 4 == 2 ? -1 : int32_t((t * 7 + 3) % kSlots));
  }
  const Tensor q = b.t.garbage(c.act, c.tokens, c.heads * head, 8);
  return {.project = {.x = b.t.normal(c.act, c.tokens, c.width, 3, 8),
                      .gain = b.t.normal(DType::f32, 1, c.width),
                      .y = b.t.garbage(c.act, c.tokens, c.width),
                      .r = b.t.garbage(DType::f32, 1, c.tokens),
                      .eps = 1e-3,
                      .w = b.t.normal(c.act, c.heads * head, c.width, 0.1, 8),
                      .c = q},
          .append = {.x = b.t.normal(c.act, c.tokens, c.latent + c.rope),
                     .gain = b.t.normal(DType::f32, 1, c.latent),
                     .positions = b.t.indices(positions),
                     .cos = b.t.normal(DType::f32, table, c.rope / 2),
                     .sin = b.t.normal(DType::f32, table, c.rope / 2),
                     .slots = b.t.indices(slots),
                     .cache = c.cache == DType::e4m3
                                  ? b.t.zeros(DType::e4m3, kSlots, latent_bytes(c.latent, c.rope))
                                  : b.t.zeros(c.act, kSlots, c.latent + c.rope),
                     .latent = c.latent,
                     .rope = c.rope,
                     .eps = 1e-3,
                     .q = q,
                     .heads = c.heads,
                     .q_stride = head,
                     .q_offset = c.plain},
          .absorb = {.x = q,
                     .w = b.t.normal(c.act, c.heads * (c.plain + value), c.latent, 0.1, 8),
                     .y = b.t.garbage(c.act, c.tokens, c.heads * c.latent, 8),
                     .heads = c.heads,
                     .x_stride = head,
                     .y_stride = c.latent,
                     .w_first = 0,
                     .w_stride = c.plain + value,
                     .w_rows = c.plain}};
}

Tensor cache_as_numbers(Bench& b, const Case& c, const Tensor& cache) {
  if (c.cache != DType::e4m3) return cache;
  std::vector<int32_t> rows;
  for (int32_t i = 0; i < kSlots; ++i) rows.push_back(i);
  const Tensor y = b.t.garbage(c.act, kSlots, c.latent + c.rope);
  on(b.s).latent_gather(
      {.cache = cache, .rows = b.t.indices(rows), .y = y, .latent = c.latent, .rope = c.rope});
  return y;
}

Outputs results(Bench& b, const Case& c, const LatentQuery& q) {
  Outputs all{cache_as_numbers(b, c, q.append.cache), q.absorb.y};
  for (int64_t h = 0; h < c.heads; ++h) {  // the rotary slices of q
    all.push_back(b.t.garbage(c.act, c.tokens, c.rope));
    on(b.s).cast({.x = q.append.q.slice_cols(h * (c.plain + c.rope) + c.plain, c.rope), .y = all.back()});
  }
  return all;
}

TEST(LatentQuery, MeetsTheMetric) {
  for (const Case& c : cases())
    expect_like_ref(
        [&](Bench& b) -> Outputs {
          const LatentQuery q = make(b, c);
          on(b.s).latent_query(q);
          EXPECT_TRUE(b.t.padding_intact(q.absorb.y));
          return results(b, c, q);
        },
        c.text());
}

// One after the other on the same device: the same bits.
TEST(LatentQuery, GivesWhatItsPartsGive) {
  for (const TestedDevice& tested : tested_devices())
    for (const Case& c : cases()) {
      const ::testing::ScopedTrace trace(__FILE__, __LINE__, tested.name + ", " + c.text());
      Bench b(*tested.device);
      const LatentQuery whole = make(b, c);
      LatentQuery parts = whole;
      const Tensor& cache = whole.append.cache;
      parts.append.cache = c.cache == DType::e4m3 ? b.t.zeros(DType::e4m3, cache.rows, cache.cols)
                                                  : b.t.zeros(c.act, cache.rows, cache.cols);
      parts.project.c = parts.append.q = parts.absorb.x =
          b.t.garbage(c.act, c.tokens, whole.append.q.cols, 8);
      parts.absorb.y = b.t.garbage(c.act, c.tokens, whole.absorb.y.cols, 8);
      on(b.s).latent_query(whole);
      on(b.s).norm_gemm(parts.project);
      on(b.s).latent_append(parts.append);
      on(b.s).head_gemm(parts.absorb);
      const Outputs a = results(b, c, whole), apart = results(b, c, parts);
      for (size_t i = 0; i < a.size(); ++i)
        EXPECT_TRUE(read_bits(b.s, a[i]) == read_bits(b.s, apart[i])) << "result " << i;
    }
}

TEST(LatentQuery, APositionBehindTheTableIsRefused) {
  for (const Case& c : {Case{2, 512, 2, 128, 64, 512}, Case{2, 64, 2, 16, 8, 32}})
    expect_refused(
        [&](Bench& b) {
          LatentQuery q = make(b, c);
          q.append.positions = b.t.indices({0, 9});
          on(b.s).latent_query(q);
        },
        "position");
}

}  // namespace
}  // namespace cachalot
