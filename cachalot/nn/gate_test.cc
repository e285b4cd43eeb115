#include "nn/gate.h"

#include "nn/layer_testing.h"

namespace cachalot::testing {
namespace {

// The routing weights as a layer's output. Random scores are far enough apart that a step of 1e-5 flips no
// choice.
MakeLayer gate_case(bool normalise, double balance_factor) {
  return [=](LayerContext& c) {
    const int64_t tokens = 7, d = 6, experts = 8, k = 3;
    LayerCase::Parameter w{c.t.normal(c.recipe.stat, experts, d), c.t.garbage(c.recipe.stat, experts, d)};
    LayerCase l{.x = c.act(tokens, d),
                .y = c.t.garbage(c.recipe.stat, tokens, k),
                .dy = c.t.normal(c.recipe.stat, tokens, k),
                .dx = c.act_garbage(tokens, d),
                .parameters = {w},
                .forward = {},
                .backward = {}};
    TokenBatch batch;
    batch.rows = tokens;
    batch.sequences = 2;
    batch.starts = c.t.indices({0, 3, tokens});
    const Gate gate{.w = w.w,
                    .dw = w.dw,
                    .bias = c.t.normal(DType::f32, 1, experts, 0.1),
                    .groups = 4,
                    .topk_groups = 2,
                    .top_k = k,
                    .normalise = normalise,
                    .scale = 2.5,
                    .recipe = c.recipe};
    auto routing = std::make_shared<Gate::Routing>();
    l.forward = [=, &s = c.s, &arena = c.arena] {
      *routing = gate.forward(s, arena, batch, l.x, {}, balance_factor != 0);
      on(s).cast({.x = routing->weights, .y = l.y});
    };
    l.backward = [=, &s = c.s, &arena = c.arena](Accumulate mode) {
      on(s).fill({.y = l.dx, .value = 0});  // the gate adds to a gradient that is there
      gate.backward(s, arena, batch, *routing, l.dy, balance_factor, l.dx, mode);
    };
    return l;
  };
}

TEST(Gate, GradientsContractsBackends) { expect_layer(gate_case(true, 0)); }
TEST(Gate, WithoutNormalisation) { expect_layer(gate_case(false, 0)); }
TEST(Gate, BackendsAgreeWithTheBalanceLoss) { expect_backends(gate_case(true, 0.7)); }

TEST(Gate, ReplayFollowsTheGivenChoices) {
  auto device = open_device("cpu");
  Stream s(*device);
  Arena arena(*device, 1 << 16, "test");
  TestTensors t(*device, s);
  const Gate gate{.w = t.normal(DType::f32, 6, 4),
                  .dw = {},
                  .bias = t.zeros(DType::f32, 1, 6),
                  .top_k = 2,
                  .normalise = true,
                  .scale = 1,
                  .recipe = Recipe::of(Precision::f32)};
  TokenBatch batch;
  batch.rows = 2, batch.sequences = 1, batch.starts = t.indices({0, 2});
  Tensor replay = t.indices(2, 2, {0, 5, 2, 3});
  const auto routing = gate.forward(s, arena, batch, t.normal(DType::f32, 2, 4), replay, false);
  EXPECT_EQ(read_indices(s, routing.indices), (std::vector<int32_t>{0, 5, 2, 3}));
  EXPECT_EQ(read_indices(s, routing.counts), (std::vector<int32_t>{1, 0, 1, 1, 0, 1}));
  const auto weights = read(s, routing.weights);
  EXPECT_NEAR(weights[0] + weights[1], 1, 1e-6);
  EXPECT_NEAR(weights[2] + weights[3], 1, 1e-6);
}

}  // namespace
}  // namespace cachalot::testing
