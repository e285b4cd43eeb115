// One set of proofs for every layer. A test describes its layer once, as a LayerCase on a stream, and gets:
//   expect_gradients   finite differences in double on the oracle, for the input and for every parameter
//   expect_contracts   input gradients overwrite, weight gradients overwrite or add
//   expect_backends    cpu against ref in f32 and bf16; fake (queued) has cpu's bits
//   expect_fp8         the fp8 recipe: the same contracts and bits, and results that differ from bf16's by
//   its errors
#pragma once

#include <functional>

#include "backend/testing.h"
#include "nn/recipe.h"

namespace cachalot::testing {

struct LayerCase {
  Tensor x, y, dy, dx;
  struct Parameter {
    Tensor w, dw, w_transposed;  // fp8: codes
  };
  std::vector<Parameter> parameters;
  std::function<void()> forward;
  std::function<void(Accumulate)> backward;  // dx, and dw of every parameter
};

struct LayerContext {
  Stream& s;
  Arena& arena;
  TestTensors& t;
  Recipe recipe;

  Tensor act(int64_t rows, int64_t cols) { return t.normal(recipe.act, rows, cols); }
  Tensor act_garbage(int64_t rows, int64_t cols) { return t.garbage(recipe.act, rows, cols); }
  // Of a linear layer: `experts` matrices, cut into parts of `part_rows` rows (0: an expert is one).
  LayerCase::Parameter weight(int64_t rows, int64_t cols, int64_t experts = 1, int64_t part_rows = 0) {
    const Tensor numbers = t.normal(recipe.weight, rows, cols, 1 / std::sqrt(double(cols)));
    LayerCase::Parameter p{numbers, t.garbage(recipe.stat, rows, cols), {}};
    if (!recipe.fp8) return p;
    p.w = t.garbage_e4m3(rows, cols, part_rows ? part_rows : rows / experts);
    p.w_transposed = t.garbage_e4m3(experts * cols, rows / experts, cols);
    on(s).quantize_weight({.x = numbers, .y = p.w, .transposed = p.w_transposed, .experts = experts});
    return p;
  }
  LayerCase::Parameter gain(int64_t n) {
    return {t.uniform(recipe.stat, 1, n, 0.5, 1.5), t.garbage(recipe.stat, 1, n), {}};
  }
};
using MakeLayer = std::function<LayerCase(LayerContext&)>;

// A device, a stream, an arena and seeded tensors that live together.
class LayerRun {
 public:
  LayerRun(const std::string& device, Precision precision, const MakeLayer& make)
      : device_(open_device(device, {.threads = 2})),
        s(*device_),
        arena(*device_, 16 << 20, "test"),
        t(*device_, s, 11),
        context_{s, arena, t, Recipe::of(precision)},
        layer(make(context_)) {}

 private:
  std::unique_ptr<Device> device_;

 public:
  Stream s;
  Arena arena;
  TestTensors t;

 private:
  LayerContext context_;

 public:
  LayerCase layer;
};

inline void expect_gradients(const MakeLayer& make) {
  LayerRun run("ref", Precision::f64, make);
  const LayerCase& c = run.layer;
  const auto loss = [&] {
    run.arena.clear();
    c.forward();
    const auto y = read(run.s, c.y), dy = read(run.s, c.dy);
    double sum = 0;
    for (size_t i = 0; i < y.size(); ++i) sum += y[i] * dy[i];
    return sum;
  };
  loss();
  c.backward(Accumulate::overwrite);
  // Along a random direction u: (L(v + hu) - L(v - hu)) / 2h = <gradient, u> + O(h^2).
  const auto check = [&](const Tensor& v, const Tensor& gradient, const std::string& name) {
    if (v.size() == 0) return;
    const std::vector<double> value = read(run.s, v), g = read(run.s, gradient);
    std::vector<double> u(value.size()), moved(value.size());
    double expected = 0, size = 0;
    for (size_t i = 0; i < u.size(); ++i) {
      u[i] = random_normal(5, v.size(), i);
      expected += g[i] * u[i];
      size += g[i] * g[i];
    }
    const double h = 1e-5;
    double l[2];
    for (int side : {0, 1}) {
      for (size_t i = 0; i < u.size(); ++i) moved[i] = value[i] + (side ? h : -h) * u[i];
      on(run.s).upload(moved.data(), v);
      l[side] = loss();
    }
    on(run.s).upload(value.data(), v);
    EXPECT_GT(size, 0) << name << ": the gradient is zero, nothing is tested";
    EXPECT_NEAR((l[1] - l[0]) / (2 * h), expected, 1e-6 * (std::abs(expected) + std::sqrt(size))) << name;
  };
  check(c.x, c.dx, "x");
  for (size_t p = 0; p < c.parameters.size(); ++p)
    check(c.parameters[p].w, c.parameters[p].dw, "parameter " + std::to_string(p));
}

inline void expect_contracts(const MakeLayer& make, Precision precision = Precision::f32) {
  LayerRun run("cpu", precision, make);
  const LayerCase& c = run.layer;
  c.forward();
  c.backward(Accumulate::overwrite);  // over garbage
  const std::string dx = read_bits(run.s, c.dx);
  std::vector<std::vector<double>> once;
  for (const auto& p : c.parameters) once.push_back(read(run.s, p.dw));
  c.backward(Accumulate::add);
  EXPECT_EQ(read_bits(run.s, c.dx), dx) << "dx must not depend on what was there";
  for (size_t p = 0; p < once.size(); ++p) {
    std::vector<double> twice = once[p];
    for (double& v : twice) v *= 2;
    EXPECT_METRIC(read(run.s, c.parameters[p].dw), twice, 1e-12);
  }
}

inline void expect_backends(const MakeLayer& make) {
  for (const auto& [precision, bound] : {std::pair{Precision::f32, 1e-11}, {Precision::bf16, 5e-5}}) {
    LayerRun oracle("ref", precision, make), cpu("cpu", precision, make), fake("fake", precision, make);
    for (LayerRun* run : {&oracle, &cpu, &fake}) {
      run->layer.forward();
      run->layer.backward(Accumulate::overwrite);
    }
    const auto compare = [&](auto member, const std::string& name) {
      SCOPED_TRACE(name + " in " + name_of(precision));
      EXPECT_METRIC(read(cpu.s, member(cpu)), read(oracle.s, member(oracle)), bound);
      EXPECT_EQ(read_bits(fake.s, member(fake)), read_bits(cpu.s, member(cpu)));
    };
    compare([](LayerRun& r) { return r.layer.y; }, "y");
    compare([](LayerRun& r) { return r.layer.dx; }, "dx");
    for (size_t p = 0; p < oracle.layer.parameters.size(); ++p)
      compare([p](LayerRun& r) { return r.layer.parameters[p].dw; }, "parameter " + std::to_string(p));
  }
}

// A number that is rounded another way on the way to a quantiser may get the code beside: cpu and ref are
// close by the standards of FP8, not of bf16.
inline void expect_fp8(const MakeLayer& make) {
  expect_contracts(make, Precision::fp8);
  LayerRun oracle("ref", Precision::fp8, make), cpu("cpu", Precision::fp8, make),
      fake("fake", Precision::fp8, make), bf16("cpu", Precision::bf16, make);
  for (LayerRun* run : {&oracle, &cpu, &fake, &bf16}) {
    run->layer.forward();
    run->layer.backward(Accumulate::overwrite);
  }
  const auto compare = [&](auto member, const std::string& name, bool quantised) {
    SCOPED_TRACE(name);
    const auto got = read(cpu.s, member(cpu));
    EXPECT_METRIC(got, read(oracle.s, member(oracle)), 1e-3);
    EXPECT_EQ(read_bits(fake.s, member(fake)), read_bits(cpu.s, member(cpu)));
    EXPECT_METRIC(got, read(bf16.s, member(bf16)), 2e-2);
    if (quantised) {
      EXPECT_GT(metric(got, read(bf16.s, member(bf16))), 1e-5) << "as precise as bf16: not computed in FP8";
    }
  };
  compare([](LayerRun& r) { return r.layer.y; }, "y", true);
  compare([](LayerRun& r) { return r.layer.dx; }, "dx", true);
  for (size_t p = 0; p < oracle.layer.parameters.size(); ++p)
    compare([p](LayerRun& r) { return r.layer.parameters[p].dw; }, "parameter " + std::to_string(p),
            bool(cpu.layer.parameters[p].w_transposed));
}

inline void expect_layer(const MakeLayer& make) {
  {
    SCOPED_TRACE("gradients");
    expect_gradients(make);
  }
  {
    SCOPED_TRACE("contracts");
    expect_contracts(make);
  }
  {
    SCOPED_TRACE("backends");
    expect_backends(make);
  }
}

}  // namespace cachalot::testing
