#include "train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

namespace cachalot {
namespace {

TEST(Schedule, WarmsUpLinearlyThenFallsAlongACosineToTheSmallestRate) {
  const Schedule s{.lr = 1.0, .min_lr = 0.1, .warmup_steps = 10, .total_steps = 110};
  EXPECT_DOUBLE_EQ(s.at(1), 0.1);
  EXPECT_DOUBLE_EQ(s.at(5), 0.5);
  EXPECT_DOUBLE_EQ(s.at(10), 1.0);
  EXPECT_DOUBLE_EQ(s.at(60), 0.55);                                    // half of the cosine
  EXPECT_NEAR(s.at(35), 0.1 + 0.9 * (1 + std::sqrt(0.5)) / 2, 1e-12);  // a quarter
  EXPECT_DOUBLE_EQ(s.at(110), 0.1);
  EXPECT_DOUBLE_EQ(s.at(1000), 0.1);
  for (int64_t i = 11; i < 110; ++i) EXPECT_LT(s.at(i + 1), s.at(i)) << i;
}

TEST(Schedule, WithoutWarmUpTheFirstStepIsAlreadyOnTheCosine) {
  const Schedule s{.lr = 2.0, .min_lr = 0.0, .warmup_steps = 0, .total_steps = 4};
  EXPECT_DOUBLE_EQ(s.at(2), 1.0);
  EXPECT_GT(s.at(1), 1.0);
  EXPECT_LT(s.at(1), 2.0);
  EXPECT_DOUBLE_EQ(s.at(4), 0.0);
}

TEST(Schedule, AWarmUpAsLongAsTheRunEndsAtThePeak) {
  const Schedule s{.lr = 3.0, .min_lr = 1.0, .warmup_steps = 4, .total_steps = 4};
  EXPECT_DOUBLE_EQ(s.at(2), 1.5);
  EXPECT_DOUBLE_EQ(s.at(4), 3.0);
}

}  // namespace
}  // namespace cachalot
