#include "model/transformer.h"

#include "backend/fake/fake_device.h"
#include "model/model_testing.h"

namespace cachalot::testing {
namespace {

double objective(ModelRun& run) {
  run.arena.clear();
  const TrainingBatch batch = run.batch();
  const TrainingPass pass = forward_losses(run.s, run.arena, run.model, batch, {.with_balance = true});
  const LossScales scales = ModelRun::scales();
  const auto total = [&](const Tensor& t) {
    double sum = 0;
    for (double v : read(run.s, t)) sum += v;
    return sum;
  };
  double loss = scales.main * total(pass.losses);
  for (size_t k = 0; k < pass.mtp_losses.size(); ++k) loss += scales.mtp[k] * total(pass.mtp_losses[k]);
  for (const Tensor& b : pass.balance()) loss += scales.balance * total(b);
  return loss;
}

// Every parameter of the whole objective (main, two MTP depths, balance) by finite differences in double.
TEST(Transformer, GradientsOfEveryParameterMatchFiniteDifferences) {
  auto device = open_device("ref");
  ModelRun run(*device, tiny_config(), Precision::f64);
  const TrainingBatch batch = run.batch();
  forward_backward(run.s, run.arena, run.model, batch, ModelRun::scales(), {.with_balance = true},
                   Accumulate::overwrite);
  int tested = 0;
  for (size_t p = 0; p < run.params.table().size(); ++p) {
    if (!run.params.table()[p].trained()) continue;
    const Tensor w = run.params.weight(p);
    const std::vector<double> value = read(run.s, w), g = read(run.s, run.params.gradient(p));
    std::vector<double> moved(value.size());
    double expected = 0, size = 0;
    for (size_t i = 0; i < g.size(); ++i) expected += g[i] * random_normal(4, p, i), size += g[i] * g[i];
    const double h = 1e-5;
    double l[2];
    for (int side : {0, 1}) {
      for (size_t i = 0; i < g.size(); ++i) moved[i] = value[i] + (side ? h : -h) * random_normal(4, p, i);
      on(run.s).upload(moved.data(), w);
      l[side] = objective(run);
    }
    on(run.s).upload(value.data(), w);
    EXPECT_GT(size, 0) << run.params.table()[p].name;
    EXPECT_NEAR((l[1] - l[0]) / (2 * h), expected, 1e-6 * (std::abs(expected) + std::sqrt(size)))
        << run.params.table()[p].name;
    ++tested;
  }
  EXPECT_GT(tested, 40);
}

// Two micro-batches added = the sum of each alone; for every parameter.
TEST(Transformer, MicroBatchesAccumulate) {
  auto device = open_device("cpu");
  ModelRun run(*device, tiny_config(), Precision::f32);
  const auto gradients = [&](std::vector<int> seeds) {
    Accumulate mode = Accumulate::overwrite;
    for (const int seed : seeds) {
      run.arena.clear();
      const TrainingBatch batch = run.batch(seed);
      forward_backward(run.s, run.arena, run.model, batch, ModelRun::scales(), {.with_balance = true}, mode);
      mode = Accumulate::add;
    }
    std::vector<std::vector<double>> g;
    for (size_t p = 0; p < run.params.table().size(); ++p)
      if (run.params.table()[p].trained()) g.push_back(read(run.s, run.params.gradient(p)));
    return g;
  };
  const auto both = gradients({1, 2}), first = gradients({1}), second = gradients({2});
  for (size_t p = 0; p < both.size(); ++p) {
    std::vector<double> sum = first[p];
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += second[p][i];
    EXPECT_METRIC(both[p], sum, 1e-11);
  }
}

TEST(Transformer, ATrainingStepOnFakeNeverSynchronisesInside) {
  for (const Precision precision : {Precision::f32, Precision::bf16, Precision::fp8}) {
    auto device = open_device("fake"), plain = open_device("cpu");
    ModelRun run(*device, tiny_config(), precision), expected(*plain, tiny_config(), precision);
    on(run.s).synchronize();
    auto& fake = dynamic_cast<FakeDevice&>(*device);
    const int64_t before = fake.counters().synchronizes;
    for (ModelRun* r : {&run, &expected}) {
      const TrainingBatch batch = r->batch();
      forward_backward(r->s, r->arena, r->model, batch, ModelRun::scales(), {.with_balance = true},
                       Accumulate::overwrite);
    }
    EXPECT_EQ(fake.counters().synchronizes, before);
    for (size_t p = 0; p < run.params.table().size(); ++p)
      if (run.params.table()[p].trained()) {
        const std::string bits = read_bits(expected.s, expected.params.gradient(p));
        EXPECT_EQ(read_bits(run.s, run.params.gradient(p)), bits) << run.params.table()[p].name;
      }
  }
}

// Checkpoints with "scale_fmt": "ue8m0": the scales of weights, activations and kept codes are powers of two.
TEST(Transformer, PowersOfTwoAsScalesAreTheCheckpointsChoice) {
  for (const bool power_of_two : {false, true}) {
    auto device = open_device("cpu");
    ModelConfig config = tiny_config();
    config.fp8_power_of_two_scales = power_of_two;
    ModelRun run(*device, config, Precision::fp8);
    EXPECT_EQ(run.model.recipe().power_of_two, power_of_two);
    const TrainingBatch batch = run.batch();
    TrainingPass pass = forward_backward(run.s, run.arena, run.model, batch, ModelRun::scales(),
                                         {.with_balance = true}, Accumulate::overwrite);
    const Block::State& block = pass.trunk.blocks[1];
    int64_t others = 0;
    const auto count = [&](const Tensor& t) {
      int64_t n = 0;
      for (const double scale : read(run.s, scales_of(t)))
        n += std::exp2(std::round(std::log2(scale))) != scale;
      others += n;
      return n;
    };
    for (const Tensor& t :
         {run.params.weight("layers.1.attn.o"), run.params.transposed("layers.1.attn.o"), block.attention.x,
          block.attention.cq, block.experts.hidden, pass.trunk.blocks[0].mlp.dhidden})
      count(t);
    EXPECT_EQ(others == 0, power_of_two) << others;
    EXPECT_EQ(count(block.normed.mlp_in), 0) << "what the dispatch moves has them in any case";
    EXPECT_EQ(count(block.rows), 0);
  }
}

// One product makes the input gradient of attn.q_a and attn.kv_a: their transposes lie side by side, unless that
// would cut a block of scales.
TEST(Transformer, TransposesOfBothDownProjectionsStandSideBySideInFp8) {
  auto device = open_device("cpu");
  for (const int64_t q : {9, 128}) {
    ModelConfig config = tiny_config();
    config.q_lora_rank = q;
    ModelRun run(*device, config, Precision::fp8);
    for (const std::string layer : {"layers.0.", "layers.2.", "layers.4."}) {
      const std::string left = layer + "attn.q_a", right = layer + "attn.kv_a";
      const Tensor both = run.params.transposed_both(left, right);
      ASSERT_EQ(bool(both), q == 128);
      if (!both) continue;
      std::vector<double> expected;
      const std::vector<double> a = read(run.s, run.params.weight(left)),
                                b = read(run.s, run.params.weight(right));
      const size_t inputs = size_t(config.hidden_size);
      for (size_t i = 0; i < inputs; ++i)
        for (const std::vector<double>* w : {&a, &b})
          for (size_t o = 0; o < w->size() / inputs; ++o) expected.push_back((*w)[o * inputs + i]);
      EXPECT_EQ(read(run.s, both), expected) << layer;
    }
    const TrainingBatch batch = run.batch();
    forward_backward(run.s, run.arena, run.model, batch, ModelRun::scales(), {.with_balance = true},
                     Accumulate::overwrite);
    for (const char* name : {"layers.1.attn.q_a", "layers.1.attn.kv_a", "embed"})  // embed: behind all dx
      for (const double g : read(run.s, run.params.gradient(name))) ASSERT_TRUE(std::isfinite(g)) << name;
  }
}

}  // namespace
}  // namespace cachalot::testing
