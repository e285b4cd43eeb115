#include "nn/linear.h"

#include "nn/layer_testing.h"

namespace cachalot::testing {
namespace {

TEST(Linear, GradientsContractsBackends) {
  expect_layer([](LayerContext& c) {
    const auto w = c.weight(7, 5);
    LayerCase l{.x = c.act(3, 5), .y = c.act_garbage(3, 7), .dy = c.act(3, 7), .dx = c.act_garbage(3, 5),
                .parameters = {w}, .forward = {}, .backward = {}};
    const Linear linear{w.w, w.dw};
    l.forward = [=, &s = c.s] { linear.forward(s, l.x, l.y); };
    l.backward = [=, &s = c.s](Accumulate mode) {
      linear.backward_input(s, l.dy, l.dx);
      linear.backward_weight(s, l.dy, l.x, mode);
    };
    return l;
  });
}

}  // namespace
}  // namespace cachalot::testing
