#include "nn/swiglu.h"

#include "nn/layer_testing.h"

namespace cachalot::testing {
namespace {

TEST(SwigluMlp, GradientsContractsBackends) {
  expect_layer([](LayerContext& c) {
    const auto gate_up = c.weight(2 * 11, 6), down = c.weight(6, 11);
    LayerCase l{.x = c.act(5, 6), .y = c.act_garbage(5, 6), .dy = c.act(5, 6), .dx = c.act_garbage(5, 6),
                .parameters = {gate_up, down}, .forward = {}, .backward = {}};
    const SwigluMlp mlp{{gate_up.w, gate_up.dw}, {down.w, down.dw}, c.recipe};
    auto saved = std::make_shared<SwigluMlp::Saved>();
    l.forward = [=, &s = c.s, &arena = c.arena] { *saved = mlp.forward(s, arena, l.x, l.y); };
    l.backward = [=, &s = c.s, &arena = c.arena](Accumulate mode) {
      mlp.backward_input(s, arena, *saved, l.dy, l.dx, Accumulate::overwrite);
      mlp.backward_weight(s, *saved, mode);
    };
    return l;
  });
}

}  // namespace
}  // namespace cachalot::testing
