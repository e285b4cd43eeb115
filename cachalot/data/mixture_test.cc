#include "data/mixture.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/rng.h"

namespace cachalot {
namespace {

std::string error_of(const auto& body) {
  try {
    body();
  } catch (const Error& e) {
    return std::string(e.what()) + " | " + e.hint();
  }
  return "no error";
}

::testing::AssertionResult contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "\"" << part << "\" is not in: " << text;
}

TEST(Mixture, EveryRowOfEveryPartComesInOrderAndOnce) {
  for (const std::vector<double>& shares :
       {std::vector<double>{1}, {0.5, 0.5}, {0.7, 0.2, 0.1}, {1e-5, 3, 0, 2, 1e-3, 0.5, 7}, {0, 1}, {1, 0}}) {
    const Mixture mixture(shares);
    std::vector<int64_t> next(shares.size(), 0);
    for (int64_t n = 0; n < 20000; ++n) {
      if (n % 997 == 0) {
        ASSERT_EQ(mixture.counts(n), next);
      }
      const Mixture::Place place = mixture.place(n);
      ASSERT_EQ(place.row, next[size_t(place.part)]++) << n;
    }
  }
}

TEST(Mixture, EveryPrefixHasTheShares) {
  std::vector<double> shares;
  for (uint64_t i = 0; i < 37; ++i) shares.push_back(random_uniform(3, 0, i) * random_uniform(3, 1, i));
  const double all = std::accumulate(shares.begin(), shares.end(), 0.0);
  const Mixture mixture(shares);
  for (const int64_t n : {1, 10, 333, 4096, 100000, 1000000007}) {
    const auto counts = mixture.counts(n);
    EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), int64_t{0}), n);
    for (size_t p = 0; p < shares.size(); ++p)
      EXPECT_NEAR(double(counts[p]), double(n) * shares[p] / all, 6.5 + double(n) * 1e-9)
          << n;  // log2(37) = 5.2
  }
}

TEST(Mixture, FarIntoARunNothingOverflows) {
  const Mixture mixture({0.3, 0.3, 0.4});
  const int64_t n = int64_t{1} << 60;
  const auto before = mixture.counts(n), after = mixture.counts(n + 1);
  const Mixture::Place place = mixture.place(n);
  for (int64_t p = 0; p < 3; ++p) EXPECT_EQ(after[size_t(p)] - before[size_t(p)], p == place.part);
  EXPECT_EQ(place.row, before[size_t(place.part)]);
}

TEST(MixturePlan, WithoutWishesEveryPartIsAsLargeAsItIs) {
  const MixturePlan plan = plan_mixture({{"a", 100}, {"b", 300}}, {.rows = 800});
  EXPECT_DOUBLE_EQ(plan.parts[0].share, 0.25);
  EXPECT_DOUBLE_EQ(plan.parts[1].share, 0.75);
  EXPECT_DOUBLE_EQ(plan.parts[0].epochs, 2);
  EXPECT_DOUBLE_EQ(plan.parts[1].epochs, 2);
}

TEST(MixturePlan, EpochsTakeWhatTheyNeedAndWeightsShareTheRest) {
  const MixturePlan plan = plan_mixture({{.name = "a", .rows = 1000, .weight = 3},
                                         {.name = "b", .rows = 1000, .weight = 1},
                                         {.name = "c", .rows = 100, .epochs = 2},
                                         {.name = "d", .rows = 77}},
                                        {.rows = 1000});
  EXPECT_DOUBLE_EQ(plan.parts[0].rows, 600);
  EXPECT_DOUBLE_EQ(plan.parts[1].rows, 200);
  EXPECT_DOUBLE_EQ(plan.parts[2].rows, 200);
  EXPECT_DOUBLE_EQ(plan.parts[2].epochs, 2);
  EXPECT_DOUBLE_EQ(plan.parts[3].share, 0);
}

TEST(MixturePlan, TheImpossibleIsRefusedWithItsNumbers) {
  const auto plan = [](std::vector<MixturePart> parts, double max_epochs) {
    return error_of([&] {
      plan_mixture(std::move(parts), {.rows = 1000, .row_tokens = 4096, .max_epochs = max_epochs});
    });
  };
  std::string text =
      plan({{.name = "en", .rows = 5000, .weight = 0.7}, {.name = "ja", .rows = 24, .weight = 0.3}}, 4);
  EXPECT_TRUE(contains(
      text, "passes part \"ja\" 12.50 times: 1.2M of the run's 4.1M tokens, and the part has 98.3K"));
  EXPECT_TRUE(contains(text, "data.max_epochs is 4"));
  EXPECT_TRUE(contains(text, "a weight of 0.0743 at most"));
  // That weight is right.
  EXPECT_EQ(
      plan({{.name = "en", .rows = 5000, .weight = 0.7}, {.name = "ja", .rows = 24, .weight = 0.0743}}, 4),
      "no error");
  text = plan({{.name = "en", .rows = 600, .epochs = 2}, {.name = "de", .rows = 10, .weight = 1}}, 0);
  EXPECT_TRUE(contains(text, "2 epochs of \"en\" (4.9M): 4.9M tokens, and the budget is 4.1M"));
  EXPECT_TRUE(contains(text, "--train.tokens 4915200"));
  text = plan({{.name = "en", .rows = 600, .epochs = 1}, {.name = "de", .rows = 10}}, 0);
  EXPECT_TRUE(contains(text, "no part has a weight to fill the rest"));
  EXPECT_TRUE(
      contains(plan({{.name = "en", .rows = 6, .weight = -1}}, 0), "the weight of part \"en\" is -1"));
  EXPECT_TRUE(contains(plan({{.name = "en", .rows = 6, .epochs = std::nan("")}}, 0), "number of epochs"));
  EXPECT_TRUE(contains(plan({{.name = "en", .rows = 6, .weight = 1, .epochs = 1}}, 0), "one or the other"));
}

}  // namespace
}  // namespace cachalot
