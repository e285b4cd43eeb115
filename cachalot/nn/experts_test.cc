#include "nn/experts.h"

#include "nn/layer_testing.h"

namespace cachalot::testing {
namespace {

// Four experts with 3, 0, 5 and 1 rows: one is empty, and its gradient must be zero when overwriting.
TEST(Experts, GradientsContractsBackends) {
  expect_layer([](LayerContext& c) {
    const int64_t e = 4, d = 6, width = 5, rows = 9;
    const auto gate_up = c.weight(e * 2 * width, d), down = c.weight(e * d, width);
    LayerCase l{.x = c.act(rows, d),
                .y = c.act_garbage(rows, d),
                .dy = c.act(rows, d),
                .dx = c.act_garbage(rows, d),
                .parameters = {gate_up, down},
                .forward = {},
                .backward = {}};
    const Experts experts{.experts = e,
                          .gate_up = gate_up.w,
                          .d_gate_up = gate_up.dw,
                          .down = down.w,
                          .d_down = down.dw,
                          .recipe = c.recipe};
    Tensor offsets = c.t.indices({0, 3, 3, 8, 9});
    auto saved = std::make_shared<Experts::Saved>();
    l.forward = [=, &s = c.s, &arena = c.arena] { *saved = experts.forward(s, arena, l.x, offsets, l.y); };
    l.backward = [=, &s = c.s, &arena = c.arena](Accumulate mode) {
      experts.backward_input(s, arena, *saved, l.dy, l.dx);
      experts.backward_weight(s, *saved, mode);
    };
    return l;
  });
}

}  // namespace
}  // namespace cachalot::testing
