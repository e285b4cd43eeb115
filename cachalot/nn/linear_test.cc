#include "nn/linear.h"

#include "nn/layer_testing.h"
#include "nn/operand.h"

namespace cachalot::testing {
namespace {

// Operands as a layer makes them: nn/operand.h.
TEST(Linear, InFp8) {
  expect_fp8([](LayerContext& c) {
    const auto w = c.weight(70, 150);
    LayerCase l{.x = c.act(130, 150),
                .y = c.act_garbage(130, 70),
                .dy = c.act(130, 70),
                .dx = c.act_garbage(130, 150),
                .parameters = {w},
                .forward = {},
                .backward = {}};
    const Linear linear{w.w, w.dw, w.w_transposed};
    const Recipe recipe = c.recipe;
    const auto x = std::make_shared<Tensor>();
    l.forward = [=, &s = c.s, &arena = c.arena] {
      *x = operand(s, arena, l.x, recipe);
      linear.forward(s, *x, l.y);
    };
    l.backward = [=, &s = c.s, &arena = c.arena](Accumulate mode) {
      linear.backward_input(s, operand(s, arena, l.dy, recipe), l.dx);
      if (recipe.fp8)
        linear.backward_weight(s, columns(s, arena, l.dy, false), columns(s, arena, *x, false), mode);
      else linear.backward_weight(s, l.dy, l.x, mode);
    };
    return l;
  });
}

TEST(Linear, GradientsContractsBackends) {
  expect_layer([](LayerContext& c) {
    const auto w = c.weight(7, 5);
    LayerCase l{.x = c.act(3, 5),
                .y = c.act_garbage(3, 7),
                .dy = c.act(3, 7),
                .dx = c.act_garbage(3, 5),
                .parameters = {w},
                .forward = {},
                .backward = {}};
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
