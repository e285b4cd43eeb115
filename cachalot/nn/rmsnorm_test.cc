#include "nn/rmsnorm.h"

#include "nn/layer_testing.h"

namespace cachalot::testing {
namespace {

TEST(RmsNorm, GradientsContractsBackends) {
  expect_layer([](LayerContext& c) {
    const auto g = c.gain(13);
    LayerCase l{.x = c.act(5, 13), .y = c.act_garbage(5, 13), .dy = c.act(5, 13), .dx = c.act_garbage(5, 13),
                .parameters = {g}, .forward = {}, .backward = {}};
    const RmsNorm norm{g.w, g.dw, 1e-3};
    auto saved = std::make_shared<RmsNorm::Saved>();
    l.forward = [=, &s = c.s, &arena = c.arena] { *saved = norm.forward(s, arena, l.x, l.y); };
    l.backward = [=, &s = c.s](Accumulate mode) { norm.backward(s, *saved, l.dy, {}, l.dx, mode); };
    return l;
  });
}

TEST(RmsNorm, ResidualIsAddedToTheInputGradient) {
  auto device = open_device("ref");
  Stream s(*device);
  Arena arena(*device, 1 << 16, "test");
  TestTensors t(*device, s);
  const RmsNorm norm{t.uniform(DType::f64, 1, 9, 0.5, 1.5), t.garbage(DType::f64, 1, 9), 1e-6};
  Tensor x = t.normal(DType::f64, 4, 9), y = t.garbage(DType::f64, 4, 9), dy = t.normal(DType::f64, 4, 9);
  Tensor plain = t.garbage(DType::f64, 4, 9), residual = t.normal(DType::f64, 4, 9);
  const auto saved = norm.forward(s, arena, x, y);
  norm.backward(s, saved, dy, {}, plain, Accumulate::overwrite);
  std::vector<double> expected = read(s, plain), r = read(s, residual);
  for (size_t i = 0; i < r.size(); ++i) expected[i] += r[i];
  norm.backward(s, saved, dy, residual, residual, Accumulate::overwrite);  // in place
  EXPECT_METRIC(read(s, residual), expected, 1e-28);
}

}  // namespace
}  // namespace cachalot::testing
