#include "train/bias_balance.h"

#include <gtest/gtest.h>

#include "train/testing.h"

namespace cachalot {
namespace {

using namespace ::cachalot::testing;  // NOLINT

TEST(BiasBalance, MovesEveryBiasAgainstTheLoadOfTheWholeStep) {
  const auto device = open_device("cpu");
  Stream s(*device);
  const ParamSet params(*device, tiny_model(), Recipe::of(Precision::f32), {});
  initialize(s, params, tiny_model(), 1);
  BiasBalance balance(*device, tiny_model(), params);
  TestTensors t(*device, s);
  // Layers 1 and 2 and the MTP layer have 6 experts each; counts of two micro-batches.
  const auto pass = [&](const std::vector<std::vector<int32_t>>& counts) {
    TrainingPass p;
    p.trunk.blocks.resize(3);
    p.trunk.blocks[1].routing.counts = t.indices(counts[0]);
    p.trunk.blocks[2].routing.counts = t.indices(counts[1]);
    p.mtp.resize(1);
    p.mtp[0].block.routing.counts = t.indices(counts[2]);
    return p;
  };
  balance.collect(s, pass({{9, 9, 9, 9, 9, 9}, {9, 9, 9, 9, 9, 9}, {9, 9, 9, 9, 9, 9}}),
                  Accumulate::overwrite);
  balance.collect(s, pass({{5, 0, 0, 1, 0, 0}, {1, 1, 1, 1, 1, 1}, {0, 0, 0, 0, 0, 6}}),
                  Accumulate::overwrite);
  balance.collect(s, pass({{0, 1, 2, 0, 2, 1}, {0, 2, 1, 1, 2, 0}, {2, 2, 0, 2, 0, 0}}), Accumulate::add);
  balance.download(s);
  balance.update(s, 0.25);
  balance.update(s, 0);  // gamma 0: nothing
  on(s).synchronize();

  // Sums {5,1,2,1,2,1}, {1,3,2,2,3,1}, {2,2,0,2,0,6}; mean 2 in each: too many -> down, too few -> up, just
  // right -> stay.
  EXPECT_EQ(balance.counts()[0], (std::vector<int32_t>{5, 1, 2, 1, 2, 1}));
  EXPECT_EQ(balance.counts()[2], (std::vector<int32_t>{2, 2, 0, 2, 0, 6}));
  const auto bias = [&](int layer) {
    return read(s, params.weight("layers." + std::to_string(layer) + ".mlp.gate_bias"));
  };
  EXPECT_EQ(bias(1), (std::vector<double>{-0.25, 0.25, 0, 0.25, 0, 0.25}));
  EXPECT_EQ(bias(2), (std::vector<double>{0.25, -0.25, 0, 0, -0.25, 0.25}));
  EXPECT_EQ(bias(3), (std::vector<double>{0, 0, 0.25, 0, 0.25, -0.25}));
  EXPECT_EQ(balance.max_violation(), (std::vector<double>{1.5, 0.5, 2.0}));
}

// Experts {0,1}, {2,3}, {4,5} are a group each; what each layer's tokens reach, over two micro-batches.
TEST(BiasBalance, CountsTheGroupsThatTheTokensOfAStepReach) {
  const auto device = open_device("cpu");
  Stream s(*device);
  ModelConfig model = tiny_model();
  model.n_group = model.topk_group = 3;
  const ParamSet params(*device, model, Recipe::of(Precision::f32), {});
  BiasBalance balance(*device, model, params);
  TestTensors t(*device, s);
  const auto pass = [&](const std::vector<std::vector<int32_t>>& choices) {
    TrainingPass p;
    p.trunk.blocks.resize(3);
    p.mtp.resize(1);
    Gate::Routing* const routings[] = {&p.trunk.blocks[1].routing, &p.trunk.blocks[2].routing,
                                       &p.mtp[0].block.routing};
    for (size_t l = 0; l < 3; ++l) {
      std::vector<int32_t> counts(6, 0);
      for (const int32_t e : choices[l]) ++counts[size_t(e)];
      routings[l]->indices = t.indices(int64_t(choices[l].size()) / 2, 2, choices[l]);
      routings[l]->counts = t.indices(counts);
    }
    return p;
  };
  balance.collect(s, pass({{0, 5}, {0, 5}, {0, 5}}), Accumulate::overwrite);
  balance.collect(s, pass({{0, 1, 2, 3}, {0, 2, 1, 4}, {4, 5}}), Accumulate::overwrite);
  balance.collect(s, pass({{4, 5, 0, 1}, {2, 3, 2, 4}, {1, 2}}), Accumulate::add);
  balance.download(s);
  on(s).synchronize();
  EXPECT_EQ(balance.groups_per_token(),
            (std::vector<double>{1, 1.75, 1.5}));  // 4 of 4, 7 of 4, 3 of 2 tokens
  EXPECT_DOUBLE_EQ(balance.experts_per_group(), 20.0 / 14);
}

TEST(BiasBalance, ExpertsOfOneGroupHaveNoGroupsToCount) {
  const auto device = open_device("cpu");
  const ParamSet params(*device, tiny_model(), Recipe::of(Precision::f32), {});
  const BiasBalance balance(*device, tiny_model(), params);
  EXPECT_TRUE(balance.groups_per_token().empty());
  EXPECT_EQ(balance.experts_per_group(), 0);
}

TEST(BiasBalance, MaxViolationIsTheBusiestExpertsSurplus) {
  EXPECT_EQ(max_violation({3, 3, 3}), 0);
  EXPECT_EQ(max_violation({0, 0, 12, 0}), 3);
  EXPECT_EQ(max_violation({0, 0}), 0);
}

TEST(BiasBalance, AModelWithoutExpertsHasNothingToBalance) {
  ModelConfig dense = tiny_model();
  dense.first_k_dense_replace = 3;
  dense.num_nextn_predict_layers = 0;
  const auto device = open_device("cpu");
  Stream s(*device);
  const ParamSet params(*device, dense, Recipe::of(Precision::f32), {});
  BiasBalance balance(*device, dense, params);
  balance.update(s, 1);
  EXPECT_TRUE(balance.max_violation().empty());
}

}  // namespace
}  // namespace cachalot
