#include "base/rng.h"

#include <gtest/gtest.h>

#include <vector>

namespace cachalot {
namespace {

// Known answers of Philox4x32-10 (Random123 1.14, kat_vectors): counter and key all zero, all ones, digits of
// pi.
TEST(Rng, PhiloxGivesThePublishedVectors) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(philox(0, 0, 0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox(~0ull, ~0ull, ~0ull), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Rng, UniformIsInsideTheOpenIntervalWithTheRightMoments) {
  const int n = 200000;
  double sum = 0, squares = 0;
  for (int i = 0; i < n; ++i) {
    const double u = random_uniform(1, 2, uint64_t(i));
    ASSERT_GT(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u, squares += u * u;
  }
  EXPECT_NEAR(sum / n, 0.5, 5 * std::sqrt(1 / 12.0 / n));
  EXPECT_NEAR(squares / n, 1 / 3.0, 5 * std::sqrt(4 / 45.0 / n));
}

TEST(Rng, NormalHasTheRightMoments) {
  const int n = 200000;
  double m1 = 0, m2 = 0, m4 = 0;
  for (int i = 0; i < n; ++i) {
    const double z = random_normal(7, 0, uint64_t(i));
    m1 += z, m2 += z * z, m4 += z * z * z * z;
  }
  EXPECT_NEAR(m1 / n, 0, 5 / std::sqrt(n));
  EXPECT_NEAR(m2 / n, 1, 5 * std::sqrt(2.0 / n));
  EXPECT_NEAR(m4 / n, 3, 5 * std::sqrt(96.0 / n));
}

TEST(Rng, BelowCoversItsRangeEvenly) {
  std::vector<int> counts(7);
  for (int i = 0; i < 70000; ++i) {
    const uint64_t r = random_below(3, 1, uint64_t(i), 7);
    ASSERT_LT(r, 7u);
    ++counts[r];
  }
  double chi2 = 0;
  for (const int c : counts) chi2 += (c - 10000.0) * (c - 10000.0) / 10000.0;
  EXPECT_LT(chi2, 22.5);  // 6 degrees of freedom: exceeded by chance once in a thousand seeds
  EXPECT_EQ(random_below(3, 1, 0, 1), 0u);
}

TEST(Rng, SeedStreamAndIndexEachChangeTheDraw) {
  const double u = random_uniform(1, 2, 3);
  EXPECT_EQ(random_uniform(1, 2, 3), u);
  EXPECT_NE(random_uniform(2, 2, 3), u);
  EXPECT_NE(random_uniform(1, 3, 3), u);
  EXPECT_NE(random_uniform(1, 2, 4), u);
  EXPECT_NE(random_uniform(1ull << 32 | 1, 2, 3), u);  // the upper halves count too
  EXPECT_NE(random_uniform(1, 1ull << 32 | 2, 3), u);
  EXPECT_NE(random_uniform(1, 2, 1ull << 32 | 3), u);
}

}  // namespace
}  // namespace cachalot
