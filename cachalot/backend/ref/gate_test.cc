// The router's oracle, on cases small enough to check by eye, and its gradients by finite differences.
#include "backend/ref/ref_backend.h"
#include "backend/testing.h"

namespace cachalot {
namespace {

using namespace testing;

double logit(double p) { return std::log(p / (1 - p)); }

class RefGateTest : public Test {
 protected:
  std::unique_ptr<Device> device = open_ref_device();
  Stream s{*device};
  TestTensors t{*device, s, 5};

  // One token of sigmoid scores `p` through the gate.
  struct Result {
    std::vector<int32_t> indices, counts;
    std::vector<double> weights;
  };
  Result route(const std::vector<double>& p, std::vector<double> bias, int64_t top_k, GateForward g = {}) {
    std::vector<double> logits;
    for (const double x : p) logits.push_back(std::isnan(x) ? x : logit(x));
    const int64_t E = int64_t(p.size());
    bias.resize(p.size(), 0.0);
    g.logits = t.values(DType::f64, 1, E, logits);
    g.bias = t.values(DType::f32, 1, E, bias);
    g.scores = t.garbage(DType::f64, 1, E);
    g.indices = t.garbage(DType::i32, 1, top_k);
    g.weights = t.garbage(DType::f64, 1, top_k);
    g.counts = t.garbage(DType::i32, 1, E);
    on(s).gate_forward(g);
    return {read_indices(s, g.indices), read_indices(s, g.counts), read(s, g.weights)};
  }
};

TEST_F(RefGateTest, ChoosesTheBestAscendingAndNormalises) {
  const Result r = route({0.2, 0.6, 0.1, 0.3}, {}, 2, {.scale = 2.5});
  EXPECT_EQ(r.indices, (std::vector<int32_t>{1, 3}));
  EXPECT_NEAR(r.weights[0], 2.5 * 0.6 / 0.9, 1e-12);
  EXPECT_NEAR(r.weights[1], 2.5 * 0.3 / 0.9, 1e-12);
  EXPECT_EQ(r.counts, (std::vector<int32_t>{0, 1, 0, 1}));
  EXPECT_NEAR(route({0.2, 0.6, 0.1, 0.3}, {}, 2, {.normalise = false}).weights[1], 0.3, 1e-12);
}

TEST_F(RefGateTest, BiasSelectsButDoesNotWeigh) {
  const Result r = route({0.2, 0.6, 0.1, 0.3}, {0, 0, 1, 0}, 2);
  EXPECT_EQ(r.indices, (std::vector<int32_t>{1, 2}));
  EXPECT_NEAR(r.weights[1], 0.1 / 0.7, 1e-12);
}

TEST_F(RefGateTest, AGroupCountsByItsTwoBestAndOthersAreOut) {
  // Groups {0,1,2} and {3,4,5}: the second wins with 0.5 + 0.4 over 0.8 + 0.05, although 0.8 is best.
  const Result r = route({0.05, 0.8, 0.04, 0.5, 0.4, 0.01}, {}, 3, {.groups = 2, .topk_groups = 1});
  EXPECT_EQ(r.indices, (std::vector<int32_t>{3, 4, 5}));
  // Negative biased scores inside the chosen group still come before better ones outside.
  EXPECT_EQ(route({0.05, 0.8, 0.04, 0.5, 0.4, 0.01}, {0, 0, 0, 0, 0, -9}, 3, {.groups = 2, .topk_groups = 1})
                .indices,
            (std::vector<int32_t>{3, 4, 5}));
  // One expert a group: its only score.
  EXPECT_EQ(route({0.1, 0.3, 0.2}, {}, 2, {.groups = 3, .topk_groups = 2}).indices,
            (std::vector<int32_t>{1, 2}));
}

TEST_F(RefGateTest, TiesGoToTheLowerIndex) {
  EXPECT_EQ(route({0.3, 0.3, 0.3, 0.3}, {}, 2).indices, (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(route({0.1, 0.3, 0.3, 0.1}, {}, 2, {.groups = 2, .topk_groups = 1}).indices,
            (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(route({0.1, 0.4, 0.3, 0.3}, {}, 3).indices, (std::vector<int32_t>{1, 2, 3}));
}

TEST_F(RefGateTest, SaturatedScoresTieAsStored) {
  GateForward g{.logits = t.values(DType::f32, 1, 3, {30, 40, 50}),
                .bias = t.zeros(DType::f32, 1, 3),
                .scores = t.garbage(DType::f32, 1, 3),
                .indices = t.garbage(DType::i32, 1, 1),
                .weights = t.garbage(DType::f32, 1, 1),
                .counts = t.garbage(DType::i32, 1, 3)};
  on(s).gate_forward(g);  // all three are 1 in f32
  EXPECT_EQ(read_indices(s, g.indices), (std::vector<int32_t>{0}));
}

TEST_F(RefGateTest, NaNComparesBelowEveryNumberAndIndicesStayInRange) {
  const double nan = std::nan("");
  EXPECT_EQ(route({nan, 0.1, nan, 0.2}, {}, 2).indices, (std::vector<int32_t>{1, 3}));
  EXPECT_EQ(route({nan, 0.1, nan, 0.2}, {}, 3).indices, (std::vector<int32_t>{0, 1, 3}));
  EXPECT_EQ(route({nan, nan, nan, nan}, {}, 2, {.groups = 2, .topk_groups = 1}).indices,
            (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(route({nan, nan, 0.1, 0.1}, {}, 2, {.groups = 2, .topk_groups = 1}).indices,
            (std::vector<int32_t>{2, 3}));
}

TEST_F(RefGateTest, ReplayKeepsTheIndicesAndFollowsWithWeightsAndCounts) {
  GateForward g{.logits = t.normal(DType::f64, 2, 4),
                .bias = t.zeros(DType::f32, 1, 4),
                .scores = t.garbage(DType::f64, 2, 4),
                .indices = t.indices(2, 2, {0, 1, 1, 3}),
                .weights = t.garbage(DType::f64, 2, 2),
                .counts = t.garbage(DType::i32, 1, 4)};
  g.replay = true;
  on(s).gate_forward(g);
  EXPECT_EQ(read_indices(s, g.indices), (std::vector<int32_t>{0, 1, 1, 3}));
  EXPECT_EQ(read_indices(s, g.counts), (std::vector<int32_t>{1, 2, 0, 1}));
  const std::vector<double> p = read(s, g.scores), w = read(s, g.weights);
  EXPECT_NEAR(w[3], p[7] / (p[5] + p[7]), 1e-14);
}

// Weights and balance loss together, sequences of 3, 0 and 4 tokens, with and without normalising.
TEST_F(RefGateTest, Backward) {
  for (const bool normalise : {true, false}) {
    const int64_t T = 7, E = 6, K = 2;
    GateForward g{.logits = t.normal(DType::f64, T, E),
                  .bias = t.normal(DType::f32, 1, E, 0.1),
                  .scores = t.garbage(DType::f64, T, E),
                  .indices = t.garbage(DType::i32, T, K),
                  .weights = t.garbage(DType::f64, T, K),
                  .counts = t.garbage(DType::i32, 1, E),
                  .groups = 3,
                  .topk_groups = 2,
                  .normalise = normalise,
                  .scale = 1.7};
    const BalanceLoss b{.scores = g.scores,
                        .starts = t.indices({0, 3, 3, 7}),
                        .fractions = t.garbage(DType::f64, 3, E),
                        .loss = t.garbage(DType::f64, 1, 3),
                        .sequences = 3,
                        .top_k = K};
    const Tensor dweights = t.normal(DType::f64, T, K), dlogits = t.garbage(DType::f64, T, E);
    const auto loss = [&] {
      on(s).gate_forward(g);
      on(s).balance_loss(b);
      const std::vector<double> l = read(s, b.loss);
      return dot(s, dweights, g.weights) + 0.9 * (l[0] + l[1] + l[2]);
    };
    loss();
    on(s).gate_backward({.dweights = dweights,
                         .scores = g.scores,
                         .indices = g.indices,
                         .dlogits = dlogits,
                         .normalise = normalise,
                         .scale = 1.7,
                         .balance_factor = 0.9,
                         .starts = b.starts,
                         .fractions = b.fractions,
                         .sequences = 3});
    EXPECT_METRIC(read(s, dlogits), numeric_gradient(s, g.logits, loss), kFiniteDifferences);

    // Without the balance term: that of the weights alone.
    const auto weights_only = [&] {
      on(s).gate_forward(g);
      return dot(s, dweights, g.weights);
    };
    weights_only();
    on(s).gate_backward({.dweights = dweights,
                         .scores = g.scores,
                         .indices = g.indices,
                         .dlogits = dlogits,
                         .normalise = normalise,
                         .scale = 1.7});
    EXPECT_METRIC(read(s, dlogits), numeric_gradient(s, g.logits, weights_only), kFiniteDifferences);
  }
}

TEST_F(RefGateTest, BalanceLossOfEqualLoadIsOneAndOfOneExpertIsTheirNumber) {
  // f_i = 1 everywhere, P_i = 1/E: sum f P = 1. All on one expert (K = 1): f = E there, P near 1.
  const Tensor even = t.values(DType::f64, 2, 4, {0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9});
  const Tensor one = t.values(DType::f64, 2, 4, {1, 1e-9, 0, 0, 1, 1e-9, 0, 0});
  const Tensor starts = t.indices({0, 2}), fractions = t.garbage(DType::f64, 1, 4),
               loss = t.garbage(DType::f64, 1, 1);
  on(s).balance_loss(
      {.scores = even, .starts = starts, .fractions = fractions, .loss = loss, .sequences = 1, .top_k = 2});
  EXPECT_NEAR(read_number(s, loss), 1, 1e-12);
  EXPECT_EQ(read(s, fractions), (std::vector<double>{1, 1, 1, 1}));
  on(s).balance_loss(
      {.scores = one, .starts = starts, .fractions = fractions, .loss = loss, .sequences = 1, .top_k = 1});
  EXPECT_NEAR(read_number(s, loss), 4, 1e-6);
}

TEST_F(RefGateTest, BalanceLossOfAnEmptySequenceIsZero) {
  const Tensor loss = t.garbage(DType::f64, 1, 2), fractions = t.garbage(DType::f64, 2, 3);
  on(s).balance_loss({.scores = t.uniform(DType::f64, 2, 3, 0.1, 0.9),
                      .starts = t.indices({0, 0, 2}),
                      .fractions = fractions,
                      .loss = loss,
                      .sequences = 2,
                      .top_k = 1});
  EXPECT_EQ(read(s, loss)[0], 0);
  EXPECT_GT(read(s, loss)[1], 0);
}

TEST_F(RefGateTest, BiasMovesAgainstTheLoadAndStaysAtTheMean) {
  const Tensor bias = t.values(DType::f32, 1, 4, {0, 0.5, -0.5, 1});
  on(s).update_gate_bias({.counts = t.indices({1, 5, 3, 3}), .bias = bias, .gamma = 0.25});
  EXPECT_EQ(read(s, bias), (std::vector<double>{0.25, 0.25, -0.5, 1}));
  on(s).update_gate_bias(
      {.counts = t.indices({0, 1, 0, 1}), .bias = bias, .gamma = 0.25});  // mean 0.5: all move
  EXPECT_EQ(read(s, bias), (std::vector<double>{0.5, 0, -0.25, 0.75}));
}

}  // namespace
}  // namespace cachalot
