#include "train/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>

#include "train/testing.h"

namespace cachalot {
namespace {

using namespace ::cachalot::testing;  // NOLINT

// A model's parameters with seeded weights and gradients, and the same in double on the host.
struct Fixture {
  Fixture(const std::string& device_name, Precision precision)
      : device(open_device(device_name)),
        s(*device),
        params(*device, tiny_model(), Recipe::of(precision), {.gradients = true}) {
    initialize(s, params, tiny_model(), 3);
  }
  // Gradients of step `step`, also returned in double.
  std::vector<std::vector<double>> set_gradients(uint64_t step, double scale) {
    std::vector<std::vector<double>> all;
    for (size_t i = 0; i < params.table().size(); ++i) {
      const Tensor g = params.gradient(i);
      std::vector<double> values;
      std::vector<float> host;
      for (int64_t k = 0; g && k < g.size(); ++k) {
        host.push_back(float(scale * random_normal(11 + step, i, uint64_t(k))));
        values.push_back(double(host.back()));
      }
      if (g) on(s).upload(host.data(), g);
      all.push_back(values);
    }
    return all;
  }
  void init(Optimizer& optimizer) {
    initialize(s, params, tiny_model(), 3, [&](size_t i) { return optimizer.master(i); });
    optimizer.init(s);
  }
  std::unique_ptr<Device> device;
  Stream s;
  ParamSet params;
};

double to_bf16(double x) { return double(float(bf16(float(x)))); }

class OptimizerTest : public ::testing::TestWithParam<const char*> {};

// Two updates worked out in double from the formula of Loshchilov & Hutter; moments rounded to BF16 between
// them.
TEST_P(OptimizerTest, TwoUpdatesAreAdamWWithDecayOnMatricesOnlyAndOneGlobalNorm) {
  const AdamWOptions o{.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-6, .weight_decay = 0.3, .max_norm = 2.0};
  const double lr = 0.05;
  for (const Precision precision : {Precision::f32, Precision::bf16}) {
    Fixture f(GetParam(), precision);
    Optimizer optimizer(*f.device, f.params, o);
    f.init(optimizer);
    const size_t n = f.params.table().size();
    std::vector<std::vector<double>> w(n), m(n), v(n);
    for (size_t i = 0; i < n; ++i) {
      w[i] = read(f.s, f.params.weight(i).dtype == DType::bf16 ? optimizer.master(i) : f.params.weight(i));
      m[i].resize(w[i].size());
      v[i].resize(w[i].size());
    }
    for (int64_t update = 1; update <= 2; ++update) {
      const auto g = f.set_gradients(uint64_t(update), 0.1);
      optimizer.step(f.s, lr, update);
      double norm_squared = 0;
      for (const auto& values : g)
        for (const double x : values) norm_squared += x * x;
      ASSERT_GT(std::sqrt(norm_squared), o.max_norm) << "clipping must be at work";
      EXPECT_NEAR(read_number(f.s, optimizer.grad_norm_squared()), norm_squared, 1e-9 * norm_squared);
      const double clip = o.max_norm / std::sqrt(norm_squared);
      for (size_t i = 0; i < n; ++i) {
        const Param& p = f.params.table()[i];
        const bool matrix = p.kind != ParamKind::norm;
        for (size_t k = 0; k < g[i].size(); ++k) {
          const double gk = g[i][k] * clip;
          const double mk = o.beta1 * m[i][k] + (1 - o.beta1) * gk,
                       vk = o.beta2 * v[i][k] + (1 - o.beta2) * gk * gk;
          const double m_hat = mk / (1 - std::pow(o.beta1, double(update)));
          const double v_hat = vk / (1 - std::pow(o.beta2, double(update)));
          w[i][k] -= lr * (m_hat / (std::sqrt(v_hat) + o.eps) + (matrix ? o.weight_decay * w[i][k] : 0));
          m[i][k] = to_bf16(mk);
          v[i][k] = to_bf16(vk);
        }
        // f32 moments that round to the other neighbour in BF16 move single elements by 2^-9 of a step.
        EXPECT_METRIC(read(f.s, optimizer.master(i)), w[i], update == 1 ? 1e-12 : 1e-8) << p.name;
        if (f.params.weight(i).dtype != DType::bf16) continue;
        const std::vector<double> master = read(f.s, optimizer.master(i)),
                                  weight = read(f.s, f.params.weight(i));
        for (size_t k = 0; k < master.size(); ++k) ASSERT_EQ(weight[k], to_bf16(master[k])) << p.name;
      }
    }
  }
}

// One draw for every precision: bf16 weights are rounded from masters that are finer than bf16, so that the first
// small steps move some of them.
TEST_P(OptimizerTest, MastersBeginAsDrawnWhateverThePrecision) {
  Fixture exact(GetParam(), Precision::f32), half(GetParam(), Precision::bf16), codes(GetParam(), Precision::fp8);
  Optimizer of_exact(*exact.device, exact.params, {}), of_half(*half.device, half.params, {}),
      of_codes(*codes.device, codes.params, {});
  exact.init(of_exact);
  half.init(of_half);
  codes.init(of_codes);
  int between = 0;  // numbers that bf16 does not have
  for (size_t i = 0; i < exact.params.table().size(); ++i) {
    const std::vector<double> drawn = read(exact.s, of_exact.master(i));
    EXPECT_EQ(read(half.s, of_half.master(i)), drawn) << exact.params.table()[i].name;
    EXPECT_EQ(read(codes.s, of_codes.master(i)), drawn) << exact.params.table()[i].name;
    if (half.params.weight(i).dtype != DType::bf16) continue;
    const std::vector<double> weight = read(half.s, half.params.weight(i));
    for (size_t k = 0; k < drawn.size(); ++k) {
      ASSERT_EQ(weight[k], to_bf16(drawn[k]));
      between += weight[k] != drawn[k];
    }
  }
  EXPECT_GT(between, 1000);
}

// The fp8 recipe: the masters know more than the codes, which are made from them after every update.
TEST_P(OptimizerTest, QuantisesEveryLinearWeightAndItsTransposeFromTheMaster) {
  Fixture f(GetParam(), Precision::fp8), apart(GetParam(), Precision::fp8);
  Optimizer optimizer(*f.device, f.params, {});
  f.init(optimizer);
  int linears = 0;
  for (int64_t update = 0; update <= 2; ++update) {
    if (update > 0) {
      f.set_gradients(uint64_t(update), 0.1);
      optimizer.step(f.s, 0.01, update);
    }
    for (size_t i = 0; i < f.params.table().size(); ++i) {
      const Param& p = f.params.table()[i];
      const Tensor w = f.params.weight(i);
      ASSERT_EQ(w.dtype == DType::e4m3, p.can_be_fp8()) << p.name;
      if (!p.can_be_fp8()) continue;
      ++linears;
      const std::vector<double> master = read(f.s, optimizer.master(i));
      EXPECT_METRIC(read(f.s, w), master, 2e-3) << p.name;
      upload_quantised(apart.s, apart.params, i, {master.begin(), master.end()});
      EXPECT_EQ(read_bits(f.s, w), read_bits(apart.s, apart.params.weight(i))) << p.name;
      EXPECT_EQ(read(f.s, f.params.scales(i)), read(apart.s, apart.params.scales(i))) << p.name;
      const Tensor turned = f.params.transposed(i);
      const std::vector<double> columns = read(f.s, turned);
      std::vector<double> upright(columns.size());
      const int64_t outputs = p.rows / p.experts;
      for (int64_t r = 0; r < p.rows; ++r)
        for (int64_t c = 0; c < p.cols; ++c)
          upright[size_t(r * p.cols + c)] =
              columns[size_t((r / outputs * p.cols + c) * outputs + r % outputs)];
      EXPECT_METRIC(upright, master, 2e-3) << p.name;
    }
  }
  EXPECT_GE(linears, 3 * 20);
}

TEST_P(OptimizerTest, TheRouterBiasIsNotItsBusiness) {
  Fixture f(GetParam(), Precision::f32);
  Optimizer optimizer(*f.device, f.params, {});
  f.init(optimizer);
  const size_t bias = f.params.index("layers.1.mlp.gate_bias");
  on(f.s).fill({.y = f.params.weight(bias), .value = 0.25});
  f.set_gradients(1, 1.0);
  optimizer.step(f.s, 0.1, 1);
  for (const double x : read(f.s, f.params.weight(bias))) EXPECT_EQ(x, 0.25);
}

TEST_P(OptimizerTest, ANormThatIsNotFiniteChangesNothing) {
  for (const Precision precision : {Precision::f32, Precision::bf16}) {
    Fixture f(GetParam(), precision);
    Optimizer optimizer(*f.device, f.params, {});
    f.init(optimizer);
    f.set_gradients(1, 1.0);
    optimizer.step(f.s, 0.1, 1);
    const auto state = [&] {
      std::string bits;
      for (size_t i = 0; i < f.params.table().size(); ++i)
        bits += read_bits(f.s, f.params.weight(i)) + read_bits(f.s, optimizer.master(i));
      return bits;
    };
    const std::string before = state();
    f.set_gradients(2, 1.0);
    const float bad[] = {NAN};
    on(f.s).upload(bad, make_tensor(f.params.gradient("norm").data, DType::f32, 1, 1));
    optimizer.step(f.s, 0.1, 2);
    EXPECT_FALSE(std::isfinite(read_number(f.s, optimizer.grad_norm_squared())));
    EXPECT_TRUE(state() == before);
    f.set_gradients(2, 1.0);
    optimizer.step(f.s, 0.1, 2);
    EXPECT_TRUE(
        std::isfinite(read_number(f.s, optimizer.grad_norm_squared())));  // starts from zero each time
    EXPECT_FALSE(state() == before);
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, OptimizerTest, ::testing::Values("cpu", "ref"));

TEST(OptimizerMemory, TheF32RecipeKeepsNoSecondCopyOfTheWeights) {
  Fixture f32("cpu", Precision::f32), mixed("cpu", Precision::bf16);
  const Optimizer a(*f32.device, f32.params, {}), b(*mixed.device, mixed.params, {});
  for (size_t i = 0; i < f32.params.table().size(); ++i)
    EXPECT_EQ(a.master(i).data, f32.params.weight(i).data);
  const size_t matrix = mixed.params.index("embed"), norm = mixed.params.index("norm");
  EXPECT_NE(b.master(matrix).data, mixed.params.weight(matrix).data);
  EXPECT_EQ(b.master(matrix).dtype, DType::f32);
  EXPECT_EQ(b.master(norm).data, mixed.params.weight(norm).data);
  EXPECT_LT(a.bytes(), b.bytes());
}

}  // namespace
}  // namespace cachalot
