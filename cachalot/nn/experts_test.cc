#include "nn/experts.h"

#include "nn/layer_testing.h"

namespace cachalot::testing {
namespace {

MakeLayer experts_case(const std::vector<int32_t>& offset_values, int64_t d, int64_t width) {
  return [=](LayerContext& c) {
    const int64_t e = int64_t(offset_values.size()) - 1, rows = offset_values.back();
    const auto gate_up = c.weight(e * 2 * width, d, e, width), down = c.weight(e * d, width, e);
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
                          .gate_up_transposed = gate_up.w_transposed,
                          .down_transposed = down.w_transposed,
                          .recipe = c.recipe};
    Tensor offsets = c.t.indices(offset_values);
    // The combination with rows in their order: y = weights times the experts' rows. Weights count as a parameter.
    const LayerCase::Parameter weights{
        c.t.normal(c.recipe.stat, rows, 1), c.t.garbage(c.recipe.stat, rows, 1), {}};
    l.parameters.push_back(weights);
    std::vector<int32_t> order;
    for (int64_t r = 0; r < rows; ++r) order.push_back(int32_t(r));
    const Tensor row_of = c.t.indices(rows, 1, order), out = c.act_garbage(rows, d),
                 dweights = c.t.garbage(c.recipe.stat, rows, 1);
    const auto as_row = [](Tensor t) { return make_tensor(t.data, t.dtype, 1, t.size()); };
    const Recipe recipe = c.recipe;
    auto saved = std::make_shared<Experts::Saved>();
    l.forward = [=, &s = c.s, &arena = c.arena] {
      *saved = experts.forward(s, arena, l.x, offsets, out);
      on(s).unpermute(
          {.x = out, .row_of = row_of, .weights = weights.w, .residual = {}, .shared = {}, .y = l.y});
    };
    l.backward = [=, &s = c.s, &arena = c.arena](Accumulate mode) {
      experts.backward_input(s, arena, *saved, operand(s, arena, l.dy, recipe), as_row(weights.w), l.dx,
                             as_row(dweights));
      if (mode == Accumulate::add) on(s).add({.a = weights.dw, .b = dweights, .y = weights.dw});
      else on(s).cast({.x = dweights, .y = weights.dw});
      experts.backward_weight(s, arena, *saved, mode);
    };
    return l;
  };
}

// Four experts with 3, 0, 5 and 1 rows: one is empty, and its gradient must be zero when overwriting.
TEST(Experts, GradientsContractsBackends) { expect_layer(experts_case({0, 3, 3, 8, 9}, 6, 5)); }
TEST(Experts, InFp8) { expect_fp8(experts_case({0, 30, 30, 159, 160}, 40, 70)); }

}  // namespace
}  // namespace cachalot::testing
