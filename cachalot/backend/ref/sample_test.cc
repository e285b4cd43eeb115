#include <algorithm>
#include <set>

#include "backend/ref/ref_backend.h"
#include "backend/testing.h"

namespace cachalot {
namespace {

using namespace testing;

class RefSampleTest : public Test {
 protected:
  std::unique_ptr<Device> device = open_ref_device();
  Stream s{*device};
  TestTensors t{*device, s};

  // `draws` tokens from the same logits at positions 0, 1, ...
  std::vector<int32_t> draw(const std::vector<double>& logits, int64_t draws, Sample a) {
    std::vector<double> rows;
    std::vector<int32_t> positions;
    for (int64_t i = 0; i < draws; ++i) {
      rows.insert(rows.end(), logits.begin(), logits.end());
      positions.push_back(int32_t(i));
    }
    a.logits = t.values(DType::f32, draws, int64_t(logits.size()), rows);
    a.positions = t.indices(positions);
    a.tokens = t.garbage(DType::i32, 1, draws);
    on(s).sample(a);
    return read_indices(s, a.tokens);
  }

  // sum (seen - expected)^2 / expected over the tokens that can occur; others must not.
  double chi_square(const std::vector<int32_t>& tokens, std::vector<double> p) {
    double total = 0, sum = 0;
    for (const double x : p) total += x;
    for (size_t v = 0; v < p.size(); ++v) {
      const double expected = p[v] / total * double(tokens.size());
      const double seen = double(std::count(tokens.begin(), tokens.end(), int32_t(v)));
      if (expected > 0) {
        sum += (seen - expected) * (seen - expected) / expected;
      } else {
        EXPECT_EQ(seen, 0) << v;
      }
    }
    return sum;
  }
};

const std::vector<double> kLogits{0.5, 2, -1, 1.5, 0, 1};
constexpr double kFarInTheTail = 30;  // chi-square with 5 degrees of freedom exceeds it with p < 2e-5
std::vector<double> softmax_weights(double temperature) {
  std::vector<double> p;
  for (const double x : kLogits) p.push_back(std::exp(x / temperature));
  return p;
}

TEST_F(RefSampleTest, TemperatureZeroTakesTheLargestAndTiesTheLowerId) {
  EXPECT_EQ(draw(kLogits, 1, {}), (std::vector<int32_t>{1}));
  EXPECT_EQ(draw({1, 3, 3, 2}, 1, {}), (std::vector<int32_t>{1}));
  EXPECT_EQ(draw({1, 3, NAN, 2}, 1, {}), (std::vector<int32_t>{1}));
}

TEST_F(RefSampleTest, NothingLeftGivesTokenZero) {
  for (const double temperature : {0.0, 1.0}) {
    EXPECT_EQ(draw({NAN, NAN}, 1, {.temperature = temperature}), (std::vector<int32_t>{0}));
    EXPECT_EQ(draw({-INFINITY, NAN}, 1, {.temperature = temperature}), (std::vector<int32_t>{0}));
  }
}

TEST_F(RefSampleTest, MinusInfinityAndNaNAreNeverDrawn) {
  for (const int32_t v : draw({-INFINITY, 0, NAN, 0}, 200, {.temperature = 5})) EXPECT_TRUE(v == 1 || v == 3);
}

TEST_F(RefSampleTest, FrequenciesFollowTheSoftmaxAtEveryTemperature) {
  for (const double temperature : {0.5, 1.0, 3.0})
    EXPECT_LT(chi_square(draw(kLogits, 4000, {.temperature = temperature, .seed = 3}),
                         softmax_weights(temperature)),
              kFarInTheTail)
        << temperature;
}

TEST_F(RefSampleTest, TopKKeepsTheKLargestInProportion) {
  std::vector<double> p = softmax_weights(1);
  p[0] = p[2] = p[4] = 0;
  EXPECT_LT(chi_square(draw(kLogits, 3000, {.temperature = 1, .top_k = 3, .seed = 4}), p), kFarInTheTail);
  EXPECT_EQ(draw({2, 7, 7, 7}, 300, {.temperature = 1, .top_k = 1}), std::vector<int32_t>(300, 1));
}

TEST_F(RefSampleTest, TopPKeepsTheSmallestSetThatReachesIt) {
  // p = 0.5, 0.25, 0.125, 0.125
  const std::vector<double> logits{std::log(0.125), std::log(0.5), std::log(0.25), std::log(0.125)};
  const auto seen = [&](double top_p, int64_t top_k = 0) {
    const auto tokens = draw(logits, 400, {.temperature = 1, .top_p = top_p, .top_k = top_k});
    return std::set<int32_t>(tokens.begin(), tokens.end());
  };
  EXPECT_EQ(seen(1e-9), (std::set<int32_t>{1}));
  EXPECT_EQ(seen(0.49), (std::set<int32_t>{1}));
  EXPECT_EQ(seen(0.51), (std::set<int32_t>{1, 2}));
  EXPECT_EQ(seen(0.76), (std::set<int32_t>{0, 1, 2}));  // of the two with 0.125 the lower id
  EXPECT_EQ(seen(0.88), (std::set<int32_t>{0, 1, 2, 3}));
  // After top_k = 2 the first has 2/3 of what is left.
  EXPECT_EQ(seen(0.6, 2), (std::set<int32_t>{1}));
  EXPECT_EQ(seen(0.7, 2), (std::set<int32_t>{1, 2}));
  // and what is left is drawn in proportion.
  EXPECT_LT(
      chi_square(draw(logits, 3000, {.temperature = 1, .top_p = 0.76, .seed = 5}), {0.125, 0.5, 0.25, 0}),
      kFarInTheTail);
}

TEST_F(RefSampleTest, IsAFunctionOfSeedAndPositionAlone) {
  const Sample a{.temperature = 2, .seed = 9};
  const std::vector<int32_t> many = draw(kLogits, 50, a);
  EXPECT_EQ(draw(kLogits, 50, a), many);
  std::vector<double> rows = {9, 0, 0, 0, 0, 0};  // another neighbour in the batch
  rows.insert(rows.end(), kLogits.begin(), kLogits.end());
  Sample pair = a;
  pair.logits = t.values(DType::f32, 2, 6, rows);
  pair.positions = t.indices({3, 17});
  pair.tokens = t.garbage(DType::i32, 1, 2);
  on(s).sample(pair);
  EXPECT_EQ(read_indices(s, pair.tokens)[1], many[17]);
  Sample other = a;
  other.seed = 10;
  EXPECT_NE(draw(kLogits, 50, other), many);
}

TEST_F(RefSampleTest, LowTemperatureNearsTheLargestWithoutOverflow) {
  EXPECT_EQ(draw({1e30, -1e30, 1e30 * 0.9, 0}, 20, {.temperature = 1e-30}), std::vector<int32_t>(20, 0));
}

}  // namespace
}  // namespace cachalot
