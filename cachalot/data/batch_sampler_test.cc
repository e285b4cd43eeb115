#include "data/batch_sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "base/error.h"

namespace cachalot {
namespace {

// Starts of the windows of one epoch, in the order drawn.
std::vector<int64_t> epoch(const BatchSampler& sampler, int64_t number) {
  std::vector<int64_t> starts;
  for (int64_t i = 0; i < sampler.windows_per_epoch(); ++i)
    starts.push_back(sampler.start(number * sampler.windows_per_epoch() + i, 0));
  return starts;
}

TEST(BatchSampler, AnEpochPredictsEveryTargetOnce) {
  for (const int64_t tokens : {9, 10, 16, 17, 24, 25, 26, 100, 1000, 1003}) {
    const BatchSampler sampler({.tokens = tokens, .seq_len = 8, .batch_rows = 1, .seed = 3});
    for (const int64_t number : {0, 1, 5}) {
      std::vector<int64_t> starts = epoch(sampler, number);
      std::sort(starts.begin(), starts.end());
      EXPECT_GE(starts.front(), 0);
      EXPECT_LT(starts.front(), 8);
      EXPECT_LE(starts.back() + 9, tokens);
      for (size_t i = 1; i < starts.size(); ++i) EXPECT_EQ(starts[i] - starts[i - 1], 8) << tokens;
      EXPECT_GE(int64_t(starts.size()) * 8, tokens - 1 - 2 * 8);  // little is left out
    }
  }
}

TEST(BatchSampler, EpochsDifferInOrderAndInOffset) {
  const BatchSampler sampler({.tokens = 4001, .seq_len = 16, .batch_rows = 1, .seed = 1});
  EXPECT_NE(epoch(sampler, 0), epoch(sampler, 1));
  std::set<int64_t> offsets;
  for (int64_t number = 0; number < 40; ++number) {
    const std::vector<int64_t> starts = epoch(sampler, number);
    EXPECT_FALSE(std::is_sorted(starts.begin(), starts.end()));
    offsets.insert(*std::min_element(starts.begin(), starts.end()));
  }
  EXPECT_GT(offsets.size(), 8u);  // of 16
}

TEST(BatchSampler, IsAPureFunctionOfSeedAndStep) {
  const BatchSamplerOptions options{.tokens = 5000, .seq_len = 32, .batch_rows = 4, .seed = 7};
  const BatchSampler a(options), b(options);
  std::vector<int64_t> forwards, backwards;
  for (int64_t step = 0; step < 90; ++step) forwards.push_back(a.start(step, step % 4));
  for (int64_t step = 89; step >= 0; --step) backwards.insert(backwards.begin(), b.start(step, step % 4));
  EXPECT_EQ(forwards, backwards);
  BatchSamplerOptions other = options;
  other.seed = 8;
  int same = 0;
  for (int64_t step = 0; step < 90; ++step) same += BatchSampler(other).start(step, 0) == a.start(step, 0);
  EXPECT_LT(same, 10);
}

TEST(BatchSampler, RowsAreViewsOfTheStream) {
  std::vector<int32_t> stream(500);
  std::iota(stream.begin(), stream.end(), 0);
  const BatchSampler sampler({.tokens = 500, .seq_len = 10, .batch_rows = 3, .seed = 2});
  const auto rows = sampler.rows(stream, 5);
  ASSERT_EQ(rows.size(), 3u);
  for (int64_t row = 0; row < 3; ++row) {
    ASSERT_EQ(rows[size_t(row)].size(), 11u);
    EXPECT_EQ(rows[size_t(row)].front(), sampler.start(5, row));
    EXPECT_EQ(rows[size_t(row)].back(), sampler.start(5, row) + 10);
  }
}

TEST(BatchSampler, RefusesAStreamShorterThanAWindow) {
  EXPECT_THROW(BatchSampler({.tokens = 8, .seq_len = 8, .batch_rows = 1}), Error);
  EXPECT_THROW(BatchSampler({.tokens = 0, .seq_len = 8, .batch_rows = 1}), Error);
  EXPECT_EQ(BatchSampler({.tokens = 9, .seq_len = 8, .batch_rows = 1}).start(1000, 0), 0);
}

}  // namespace
}  // namespace cachalot
