#include "backend/ops/gate.h"

#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

struct Case {
  int64_t tokens = 0, experts = 1, groups = 1, topk_groups = 1, chosen = 1;
  bool normalise = true;
  std::string text() const {
    return fmt::format("{} tokens, {} experts in {} groups, {} of {} groups, normalise {}", tokens, experts,
                       groups, chosen, topk_groups, normalise);
  }
};

// The shapes of the real models among them: 256 experts in 8 groups; 64 in one. With few experts, many tokens are
// another kernel's on a GPU.
const Case kCases[] = {
    {.tokens = 0, .experts = 4, .groups = 2, .topk_groups = 1, .chosen = 2},
    {.tokens = 1, .experts = 1, .chosen = 1},
    {.tokens = 3, .experts = 7, .chosen = 7},
    {.tokens = 17, .experts = 8, .groups = 8, .topk_groups = 3, .chosen = 2},
    {.tokens = 33, .experts = 12, .groups = 4, .topk_groups = 2, .chosen = 5},
    {.tokens = 129, .experts = 64, .chosen = 6, .normalise = false},
    {.tokens = 65, .experts = 256, .groups = 8, .topk_groups = 4, .chosen = 8},
    {.tokens = 1100, .experts = 64, .groups = 8, .topk_groups = 4, .chosen = 6},
    {.tokens = 1027, .experts = 7, .chosen = 7},
    {.tokens = 1061, .experts = 60, .groups = 12, .topk_groups = 5, .chosen = 8},
    {.tokens = 1025, .experts = 60, .groups = 12, .topk_groups = 9, .chosen = 3},
    {.tokens = 1030, .experts = 33, .groups = 33, .topk_groups = 8, .chosen = 4, .normalise = false}};

struct Chosen {
  Tensor scores, indices, weights, counts;
};

Chosen gate(Bench& b, const Case& c, const Tensor& logits, const Tensor& bias, Tensor indices = {}) {
  const bool replay = bool(indices);
  const Chosen g{b.t.garbage(DType::f32, c.tokens, c.experts),
                 replay ? indices : b.t.garbage(DType::i32, c.tokens, c.chosen),
                 b.t.garbage(DType::f32, c.tokens, c.chosen), b.t.garbage(DType::i32, 1, c.experts)};
  on(b.s).gate_forward({.logits = logits,
                        .bias = bias,
                        .scores = g.scores,
                        .indices = g.indices,
                        .weights = g.weights,
                        .counts = g.counts,
                        .groups = c.groups,
                        .topk_groups = c.topk_groups,
                        .normalise = c.normalise,
                        .scale = 2.5,
                        .replay = replay});
  return g;
}

TEST(Gate, ChoosesAndWeighsLikeRef) {
  for (const Case& c : kCases)
    expect_like_ref(
        [&](Bench& b) -> Outputs {
          const Chosen g = gate(b, c, b.t.normal(DType::f32, c.tokens, c.experts, 2),
                                b.t.normal(DType::f32, 1, c.experts, 0.3));
          return {g.scores, g.indices, g.weights, g.counts};
        },
        c.text());
}

TEST(Gate, ReplayKeepsTheIndicesAndWeighsThem) {
  const Case c{.tokens = 3, .experts = 6, .groups = 2, .topk_groups = 1, .chosen = 2};
  expect_like_ref([&](Bench& b) -> Outputs {
    const Chosen g = gate(b, c, b.t.normal(DType::f32, 3, 6), b.t.normal(DType::f32, 1, 6),
                          b.t.indices(3, 2, {0, 5, 2, 3, 0, 1}));
    EXPECT_EQ(read_indices(b.s, g.indices), (std::vector<int32_t>{0, 5, 2, 3, 0, 1}));
    return {g.scores, g.indices, g.weights, g.counts};
  });
}

TEST(Gate, ReplayedExpertsOutOfRangeAreRefused) {
  for (const int32_t expert : {-1, 6})
    expect_refused(
        [&](Bench& b) {
          gate(b, {.tokens = 1, .experts = 6, .chosen = 1}, b.t.normal(DType::f32, 1, 6),
               b.t.normal(DType::f32, 1, 6), b.t.indices(1, 1, {expert}));
        },
        "expert");
}

// One row of logits; what is chosen, on every device and on ref.
void expect_choice(const Case& c, const std::vector<double>& logits, const std::vector<double>& bias,
                   const std::vector<int32_t>& expected) {
  const auto run = [&](Bench& b) -> Outputs {
    const Chosen g =
        gate(b, c, b.t.values(DType::f32, 1, c.experts, logits), b.t.values(DType::f32, 1, c.experts, bias));
    EXPECT_EQ(read_indices(b.s, g.indices), expected);
    return {g.indices, g.counts};
  };
  expect_like_ref(run);
}

TEST(Gate, TiesGoToTheLowerExpert) {
  expect_choice({.tokens = 1, .experts = 6, .chosen = 3}, {1, 2, 1, 2, 1, 2}, {0, 0, 0, 0, 0, 0}, {1, 3, 5});
  expect_choice({.tokens = 1, .experts = 6, .chosen = 2}, {1, 1, 1, 1, 1, 1}, {0, 0, 0, 0, 0, 0}, {0, 1});
  expect_choice({.tokens = 1, .experts = 4, .chosen = 3}, {0, 3, 0, 0}, {0, 0, 0, 0}, {0, 1, 2});
}

TEST(Gate, TiesGoToTheLowerGroup) {
  // Groups of two; groups 1 and 2 tie: one of them and group 0 would do.
  expect_choice({.tokens = 1, .experts = 6, .groups = 3, .topk_groups = 2, .chosen = 3}, {5, 5, 1, 2, 2, 1},
                {0, 0, 0, 0, 0, 0}, {0, 1, 3});
  expect_choice({.tokens = 1, .experts = 6, .groups = 3, .topk_groups = 1, .chosen = 2}, {1, 1, 1, 1, 1, 1},
                {0, 0, 0, 0, 0, 0}, {0, 1});
}

TEST(Gate, AGroupIsJudgedByItsTwoBestAndTheOthersAreMasked) {
  // The best single expert is in group 0, whose second is poor: group 1 wins and expert 0 may not be chosen.
  expect_choice({.tokens = 1, .experts = 6, .groups = 2, .topk_groups = 1, .chosen = 2},
                {4, -9, -9, 2, 2, -9}, {0, 0, 0, 0, 0, 0}, {3, 4});
  // Groups of one are judged by their only expert.
  expect_choice({.tokens = 1, .experts = 3, .groups = 3, .topk_groups = 2, .chosen = 2}, {1, 3, 2}, {0, 0, 0},
                {1, 2});
}

// Biases far below every score: all experts of open groups are negative, and still beat the masked ones.
TEST(Gate, MaskedExpertsLoseAgainstNegativeScores) {
  expect_choice({.tokens = 1, .experts = 4, .groups = 2, .topk_groups = 1, .chosen = 2}, {0, 0, 0, 0},
                {-9, -9, -5, -20}, {0, 1});
  expect_choice({.tokens = 1, .experts = 4, .groups = 2, .topk_groups = 1, .chosen = 2}, {0, 0, 0, 0},
                {-9, -9, -5, -10}, {2, 3});
}

TEST(Gate, TheBiasChoosesButDoesNotWeigh) {
  for (const TestedDevice& tested : tested_devices()) {
    Bench b(*tested.device);
    const Chosen g = gate(b, {.tokens = 1, .experts = 3, .chosen = 2},
                          b.t.values(DType::f32, 1, 3, {0, 0, 2}), b.t.values(DType::f32, 1, 3, {0, 1, 0}));
    EXPECT_EQ(read_indices(b.s, g.indices), (std::vector<int32_t>{1, 2}));
    const double s = 1 / (1 + std::exp(-2.0));
    EXPECT_NEAR(read(b.s, g.weights)[0], 2.5 * 0.5 / (0.5 + s), 1e-6);
  }
}

TEST(Gate, NanIsBelowEveryNumberAndIndicesStayInRange) {
  expect_choice({.tokens = 1, .experts = 4, .chosen = 2}, {NAN, -50, NAN, -60}, {0, 0, 0, 0}, {1, 3});
  expect_choice({.tokens = 1, .experts = 4, .chosen = 3}, {NAN, -50, NAN, NAN}, {0, 0, 0, 0}, {0, 1, 2});
  expect_choice({.tokens = 1, .experts = 4, .chosen = 4}, {NAN, NAN, NAN, NAN}, {0, 0, 0, 0}, {0, 1, 2, 3});
  // A group whose two best hold a NaN is below every other.
  expect_choice({.tokens = 1, .experts = 6, .groups = 3, .topk_groups = 1, .chosen = 1},
                {9, NAN, -3, -3, NAN, NAN}, {0, 0, 0, 0, 0, 0}, {2});
  expect_choice({.tokens = 1, .experts = 4, .groups = 2, .topk_groups = 2, .chosen = 3},
                {0, NAN, INFINITY, -INFINITY}, {0, 0, 0, 0}, {0, 2, 3});
}

// Ties and numbers that are none, in a call of many tokens and in calls of few: the same bits.
TEST(Gate, ManyTokensChooseAsFewDo) {
  constexpr int64_t kTokens = 1500, kFew = 300;
  for (const TestedDevice& tested : tested_devices()) {
    Bench b(*tested.device);
    const Case c{.tokens = kTokens, .experts = 64, .groups = 8, .topk_groups = 4, .chosen = 6};
    std::vector<double> numbers;
    for (int64_t i = 0; i < kTokens * c.experts; ++i) {
      const auto kind = int(random_uniform(5, 0, uint64_t(i)) * 16);
      numbers.push_back(kind == 0 ? NAN : kind == 1 ? INFINITY : kind == 2 ? -INFINITY : kind % 5 - 2);
    }
    const Tensor logits = b.t.values(DType::f32, kTokens, c.experts, numbers),
                 bias = b.t.values(DType::f32, 1, c.experts, std::vector<double>(size_t(c.experts), 0.25));
    const Chosen all = gate(b, c, logits, bias);
    std::vector<double> counts(size_t(c.experts), 0);
    for (int64_t at = 0; at < kTokens; at += kFew) {
      Case few = c;
      few.tokens = kFew;
      const Chosen some = gate(b, few, logits.slice_rows(at, kFew), bias);
      EXPECT_EQ(read_indices(b.s, some.indices), read_indices(b.s, all.indices.slice_rows(at, kFew)))
          << tested.name;
      const auto bits = [&](const Tensor& t) {
        std::vector<uint32_t> u;
        for (const double x : read(b.s, t))
          u.push_back(std::isnan(x) ? 0 : std::bit_cast<uint32_t>(float(x)));
        return u;
      };
      EXPECT_EQ(bits(some.weights), bits(all.weights.slice_rows(at, kFew))) << tested.name;
      EXPECT_EQ(bits(some.scores), bits(all.scores.slice_rows(at, kFew))) << tested.name;
      const std::vector<int32_t> more = read_indices(b.s, some.counts);
      for (size_t e = 0; e < counts.size(); ++e) counts[e] += more[e];
    }
    EXPECT_EQ(read(b.s, all.counts), counts) << tested.name;
  }
}

TEST(BalanceLoss, MeetsTheMetricForEverySequence) {
  const std::vector<std::vector<int32_t>> batches = {{0, 1},    {0, 0, 3, 3}, {0, 5, 70, 135, 300},
                                                     {2, 5, 7}, {0},          {0, 1, 700, 1200}};
  for (const auto& starts : batches)
    for (const auto& [experts, chosen] : {std::pair<int64_t, int64_t>{1, 1}, {7, 3}, {64, 6}})
      expect_like_ref(
          [&](Bench& b) -> Outputs {
            const int64_t tokens = starts.back() + 2, sequences = int64_t(starts.size()) - 1;
            const Tensor fractions = b.t.garbage(DType::f32, sequences, experts);
            const Tensor loss = b.t.garbage(DType::f32, 1, sequences);
            on(b.s).balance_loss({.scores = b.t.uniform(DType::f32, tokens, experts, 0.01, 1),
                                  .starts = b.t.indices(starts),
                                  .fractions = fractions,
                                  .loss = loss,
                                  .sequences = sequences,
                                  .top_k = chosen});
            return {fractions, loss};
          },
          fmt::format("{} sequences, {} experts", starts.size() - 1, experts));
}

TEST(BalanceLoss, IsOneWhenTheLoadIsEvenAndTiesGoToTheLowerExpert) {
  for (const TestedDevice& tested : tested_devices()) {
    Bench b(*tested.device);
    const Tensor fractions = b.t.garbage(DType::f32, 1, 4), loss = b.t.garbage(DType::f32, 1, 1);
    on(b.s).balance_loss({.scores = b.t.values(DType::f32, 2, 4, {1, 1, 1, 1, 1, 1, 1, 1}),
                          .starts = b.t.indices({0, 2}),
                          .fractions = fractions,
                          .loss = loss,
                          .sequences = 1,
                          .top_k = 2});
    EXPECT_EQ(read(b.s, fractions), (std::vector<double>{2, 2, 0, 0})) << tested.name;
    EXPECT_EQ(read_number(b.s, loss), 1);
  }
}

TEST(GateBackward, MeetsTheMetricWithAndWithoutTheBalanceLoss) {
  for (const Case& c : kCases)
    for (const bool balance : {false, true})
      expect_like_ref(
          [&](Bench& b) -> Outputs {
            std::vector<int32_t> indices;
            for (int64_t t = 0; t < c.tokens; ++t)
              for (int64_t j = 0; j < c.chosen; ++j)
                indices.push_back(int32_t(j * (c.experts / c.chosen) + t % (c.experts / c.chosen)));
            const std::vector<int32_t> starts{0, int32_t(c.tokens / 2), int32_t(c.tokens / 2),
                                              int32_t(c.tokens)};
            const Tensor dlogits = b.t.garbage(DType::f32, c.tokens, c.experts);
            on(b.s).gate_backward({.dweights = b.t.normal(DType::f32, c.tokens, c.chosen),
                                   .scores = b.t.uniform(DType::f32, c.tokens, c.experts, 0.05, 0.95),
                                   .indices = b.t.indices(c.tokens, c.chosen, indices),
                                   .dlogits = dlogits,
                                   .normalise = c.normalise,
                                   .scale = 2.5,
                                   .balance_factor = balance ? 0.7 : 0,
                                   .starts = b.t.indices(starts),
                                   .fractions = b.t.uniform(DType::f32, 3, c.experts, 0, 2),
                                   .sequences = 3});
            // One expert alone has no gradient but rounding.
            if (c.experts == 1 && c.normalise) return {};
            return {dlogits};
          },
          c.text());
}

TEST(CountGroups, CountsEveryGroupOfATokenOnceAndAddsMicroBatches) {
  expect_like_ref([](Bench& b) -> Outputs {
    const Tensor visits = b.t.garbage(DType::i32, 1, 1);
    const auto count = [&](const Tensor& indices, int64_t groups, Accumulate mode) {
      on(b.s).count_groups(
          {.indices = indices, .visits = visits, .experts = 12, .groups = groups, .accumulate = mode});
      return read_indices(b.s, visits)[0];
    };
    // Groups {0..3}, {4..7}, {8..11}: the tokens reach 1, 2 and 3 of them.
    const Tensor indices = b.t.indices(3, 3, {0, 1, 3, 3, 4, 7, 2, 4, 11});
    EXPECT_EQ(count(indices, 3, Accumulate::overwrite), 6);
    EXPECT_EQ(count(indices, 3, Accumulate::add), 12);
    EXPECT_EQ(count(indices, 1, Accumulate::overwrite), 3);
    EXPECT_EQ(count(indices, 12, Accumulate::overwrite), 9);
    // The last group of a token is the first of the next one.
    EXPECT_EQ(count(b.t.indices(4, 1, {4, 5, 6, 7}), 3, Accumulate::overwrite), 4);
    EXPECT_EQ(count(b.t.indices(0, 2, {}), 3, Accumulate::add), 4);
    EXPECT_EQ(count(b.t.indices(0, 2, {}), 3, Accumulate::overwrite), 0);
    return {visits};
  });
}

// As many as the gate chooses, with more tokens than one pass of the blocks takes.
TEST(CountGroups, AgreesWithRefOnWhatTheGateChose) {
  for (const Case& c : {Case{.tokens = 4099, .experts = 256, .groups = 8, .topk_groups = 4, .chosen = 8},
                        Case{.tokens = 257, .experts = 12, .groups = 6, .topk_groups = 5, .chosen = 3}})
    expect_like_ref(
        [&](Bench& b) -> Outputs {
          const Chosen g = gate(b, c, b.t.normal(DType::f32, c.tokens, c.experts, 2),
                                b.t.normal(DType::f32, 1, c.experts, 0.3));
          const Tensor visits = b.t.garbage(DType::i32, 1, 1);
          on(b.s).count_groups(
              {.indices = g.indices, .visits = visits, .experts = c.experts, .groups = c.groups});
          const int32_t n = read_indices(b.s, visits)[0];
          EXPECT_TRUE(c.tokens <= n && n <= c.tokens * c.topk_groups) << n;
          return {visits};
        },
        c.text());
}

TEST(UpdateGateBias, MovesAgainstTheLoadAndStaysAtTheMean) {
  expect_like_ref([](Bench& b) -> Outputs {
    const Tensor bias = b.t.values(DType::f32, 1, 4, {0, 0.5, -0.25, 1});
    on(b.s).update_gate_bias({.counts = b.t.indices({5, 3, 4, 4}), .bias = bias, .gamma = 0.125});
    EXPECT_EQ(read(b.s, bias), (std::vector<double>{-0.125, 0.625, -0.25, 1}));
    const Tensor uneven = b.t.values(DType::f32, 1, 3, {0, 0, 0});  // the mean is 1/3: nobody is at it
    on(b.s).update_gate_bias({.counts = b.t.indices({0, 1, 0}), .bias = uneven, .gamma = 1});
    EXPECT_EQ(read(b.s, uneven), (std::vector<double>{1, -1, 1}));
    // Sums beyond 2^31, and a mean that floats would round to a count.
    const Tensor large = b.t.values(DType::f32, 1, 2, {0, 0});
    on(b.s).update_gate_bias({.counts = b.t.indices({2000000001, 2000000000}), .bias = large, .gamma = 1});
    EXPECT_EQ(read(b.s, large), (std::vector<double>{-1, 1}));
    return {bias, uneven, large};
  });
}

}  // namespace
}  // namespace cachalot
