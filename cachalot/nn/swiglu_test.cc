#include "nn/swiglu.h"

#include "nn/layer_testing.h"

namespace cachalot::testing {
namespace {

MakeLayer mlp_case(int64_t rows, int64_t d, int64_t width) {
  return [=](LayerContext& c) {
    const auto gate_up = c.weight(2 * width, d, 1, width), down = c.weight(d, width);
    LayerCase l{.x = c.act(rows, d),
                .y = c.act_garbage(rows, d),
                .dy = c.act(rows, d),
                .dx = c.act_garbage(rows, d),
                .parameters = {gate_up, down},
                .forward = {},
                .backward = {}};
    const SwigluMlp mlp{
        {gate_up.w, gate_up.dw, gate_up.w_transposed}, {down.w, down.dw, down.w_transposed}, c.recipe};
    auto saved = std::make_shared<SwigluMlp::Saved>();
    l.forward = [=, &s = c.s, &arena = c.arena] { *saved = mlp.forward(s, arena, l.x, l.y); };
    l.backward = [=, &s = c.s, &arena = c.arena](Accumulate mode) {
      mlp.backward_input(s, arena, *saved, l.dy, l.dx, Accumulate::overwrite);
      mlp.backward_weight(s, arena, *saved, mode);
    };
    return l;
  };
}

TEST(SwigluMlp, GradientsContractsBackends) { expect_layer(mlp_case(5, 6, 11)); }
TEST(SwigluMlp, InFp8) { expect_fp8(mlp_case(140, 72, 150)); }

}  // namespace
}  // namespace cachalot::testing
