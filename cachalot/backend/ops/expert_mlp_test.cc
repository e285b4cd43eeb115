#include "backend/ops/expert_mlp.h"

#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

struct Case {
  int64_t tokens = 1, width = 64, hidden = 24, shared = 24, experts = 8, chosen = 3;
  DType act = DType::bf16;
  bool in_place = false;
};

Outputs run(Bench& b, const Case& c) {
  const int64_t rows = c.tokens * c.chosen;
  std::vector<int32_t> indices;
  for (int64_t t = 0; t < c.tokens; ++t)
    for (int64_t j = 0; j < c.chosen; ++j)  // ascending, some experts shared by tokens, some without any
      indices.push_back(int32_t(t % 3 + j * std::max<int64_t>(c.experts / c.chosen, 1)));
  ExpertMlp e{.x = b.t.normal(c.act, c.tokens, c.width),
              .residual = b.t.normal(c.act, c.tokens, c.width),
              .indices = b.t.indices(c.tokens, c.chosen, indices),
              .weights = b.t.uniform(DType::f32, c.tokens, c.chosen, 0.1, 1),
              .gate_up = b.t.normal(c.act, c.experts * 2 * c.hidden, c.width, 0.2),
              .down = b.t.normal(c.act, c.experts * c.width, c.hidden, 0.2),
              .y = b.t.garbage(c.act, c.tokens, c.width),
              .experts = c.experts,
              .row_of = b.t.garbage(DType::i32, c.tokens, c.chosen),
              .offsets = b.t.garbage(DType::i32, 1, c.experts + 1),
              .rows = b.t.garbage(c.act, rows, c.width),
              .hidden = b.t.garbage(c.act, rows, 2 * c.hidden),
              .activated = b.t.garbage(c.act, rows, c.hidden),
              .outputs = b.t.garbage(c.act, rows, c.width)};
  if (c.shared > 0) {
    e.shared_gate_up = b.t.normal(c.act, 2 * c.shared, c.width, 0.2);
    e.shared_down = b.t.normal(c.act, c.width, c.shared, 0.2);
    e.shared_hidden = b.t.garbage(c.act, c.tokens, 2 * c.shared);
    e.shared_activated = b.t.garbage(c.act, c.tokens, c.shared);
    e.shared_output = b.t.garbage(c.act, c.tokens, c.width);
  }
  if (c.in_place) e.y = e.residual;
  on(b.s).expert_mlp(e);
  return {e.y};
}

TEST(ExpertMlp, MeetsTheMetric) {
  const std::vector<Case> shapes = {
      {},
      {.shared = 0},
      {.tokens = 2, .hidden = 8, .shared = 40, .in_place = true},
      {.tokens = 8, .width = 1024, .hidden = 384, .shared = 384, .experts = 16, .chosen = 6},
      {.tokens = 9, .width = 72, .hidden = 16, .shared = 16, .in_place = true},
      {.tokens = 70, .width = 128, .hidden = 96, .shared = 96, .experts = 16, .chosen = 4},
      {.tokens = 3, .width = 9, .hidden = 5, .shared = 3},
      {.tokens = 128, .width = 256, .hidden = 384, .shared = 384, .chosen = 6},
      {.tokens = 200, .width = 64, .hidden = 64, .shared = 64},  // 133 of one expert
      {.tokens = 0}};
  for (Case c : shapes)
    for (const DType act : {DType::bf16, DType::f32}) {
      c.act = act;
      expect_like_ref(
          [&](Bench& b) { return run(b, c); },
          fmt::format("{} tokens, {} wide, {} hidden, {}", c.tokens, c.width, c.hidden, name_of(act)));
    }
}

TEST(ExpertMlp, ChoicesOutOfRangeAreRefused) {
  for (const Case& c :
       {Case{.experts = 2, .chosen = 3, .act = DType::f32}, Case{.experts = 2, .chosen = 3},
        Case{.tokens = 8, .hidden = 64, .shared = 64, .experts = 2, .chosen = 3}})  // one, few and more rows
    expect_refused([&](Bench& b) { run(b, c); }, "permute_plan");
}

}  // namespace
}  // namespace cachalot
