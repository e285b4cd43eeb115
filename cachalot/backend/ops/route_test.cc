#include "backend/ops/route.h"

#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

struct Case {
  int64_t tokens, width, experts, groups, topk_groups, chosen;
  DType act = DType::bf16;
  std::string text() const {
    return fmt::format("{} tokens of {} {}, {} of {} experts in {} of {} groups", tokens, width, name_of(act),
                       chosen, experts, topk_groups, groups);
  }
};

// Few and many tokens; experts that fill a cluster of blocks, that do not, and more than it takes.
std::vector<Case> cases() {
  std::vector<Case> list;
  for (const int64_t tokens : {0, 1, 3, 4, 5, 70, 300})
    for (const auto& [width, experts, groups, topk_groups, chosen] :
         {std::tuple(1024, 64, 8, 4, 6), std::tuple(264, 20, 5, 2, 3), std::tuple(512, 7, 1, 1, 7),
          std::tuple(1500, 64, 1, 1, 6), std::tuple(96, 256, 8, 4, 8), std::tuple(64, 12, 4, 2, 2)})
      list.push_back({tokens, width, experts, groups, topk_groups, chosen});
  list.push_back({.tokens = 3,
                  .width = 40,
                  .experts = 8,
                  .groups = 2,
                  .topk_groups = 1,
                  .chosen = 2,
                  .act = DType::f32});
  return list;
}

Route make(Bench& b, const Case& c) {
  const Tensor logits = b.t.garbage(DType::f32, c.tokens, c.experts);
  return {.project = {.x = b.t.normal(c.act, c.tokens, c.width, 3, 8),
                      .gain = b.t.normal(DType::f32, 1, c.width),
                      .y = b.t.garbage(c.act, c.tokens, c.width),
                      .r = b.t.garbage(DType::f32, 1, c.tokens),
                      .eps = 1e-3,
                      .w = b.t.normal(DType::f32, c.experts, c.width, 0.1),
                      .c = logits},
          .choose = {.logits = logits,
                     .bias = b.t.normal(DType::f32, 1, c.experts, 0.3),
                     .scores = b.t.garbage(DType::f32, c.tokens, c.experts),
                     .indices = b.t.garbage(DType::i32, c.tokens, c.chosen),
                     .weights = b.t.garbage(DType::f32, c.tokens, c.chosen),
                     .groups = c.groups,
                     .topk_groups = c.topk_groups,
                     .scale = 2.5}};
}

// The same bits: near a tie another order of sums would choose another expert, and then all is different.
TEST(Route, GivesWhatItsPartsGive) {
  for (const TestedDevice& tested : tested_devices())
    for (const Case& c : cases()) {
      const ::testing::ScopedTrace trace(__FILE__, __LINE__, tested.name + ", " + c.text());
      Bench b(*tested.device);
      const Route whole = make(b, c);
      Route parts = whole;
      parts.project.y = b.t.garbage(c.act, c.tokens, c.width);
      parts.choose.indices = b.t.garbage(DType::i32, c.tokens, c.chosen);
      parts.choose.weights = b.t.garbage(DType::f32, c.tokens, c.chosen);
      on(b.s).route(whole);
      on(b.s).norm_gemm(parts.project);
      on(b.s).gate_forward(parts.choose);
      EXPECT_EQ(read_indices(b.s, whole.choose.indices), read_indices(b.s, parts.choose.indices));
      EXPECT_TRUE(read_bits(b.s, whole.choose.weights) == read_bits(b.s, parts.choose.weights));
      EXPECT_TRUE(read_bits(b.s, whole.project.y) == read_bits(b.s, parts.project.y));
    }
}

TEST(Route, CountsAndReplayAreRefused) {
  const Case c{.tokens = 2, .width = 64, .experts = 8, .groups = 2, .topk_groups = 1, .chosen = 2};
  expect_refused(
      [&](Bench& b) {
        Route r = make(b, c);
        r.choose.counts = b.t.garbage(DType::i32, 1, c.experts);
        on(b.s).route(r);
      },
      "no replay, no counts");
  expect_refused(
      [&](Bench& b) {
        Route r = make(b, c);
        r.choose.replay = true;
        on(b.s).route(r);
      },
      "no replay, no counts");
}

}  // namespace
}  // namespace cachalot
