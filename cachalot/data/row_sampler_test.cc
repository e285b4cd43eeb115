#include "data/row_sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "data/shard_testing.h"

namespace cachalot {
namespace {

using ::cachalot::testing::counting_stream;
using ::cachalot::testing::random_shard;

// First tokens of the rows of one epoch, in the order drawn.
std::vector<int64_t> epoch(const RowSampler& sampler, int64_t number) {
  std::vector<int64_t> starts;
  for (int64_t i = 0; i < sampler.rows_per_epoch(); ++i) {
    TokenRange storage;
    starts.push_back(sampler.row(number * sampler.rows_per_epoch() + i, storage)[0].first);
  }
  return starts;
}

TEST(RowSampler, AnEpochPredictsEveryTargetOnce) {
  for (const int64_t tokens : {9, 10, 16, 17, 24, 25, 26, 100, 1000, 1003}) {
    const RowSampler sampler(counting_stream(tokens), 8, Packing::concatenate, 3);
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

TEST(RowSampler, EpochsDifferInOrderAndInOffset) {
  const RowSampler sampler(counting_stream(4001), 16, Packing::concatenate, 1);
  EXPECT_NE(epoch(sampler, 0), epoch(sampler, 1));
  std::set<int64_t> offsets;
  for (int64_t number = 0; number < 40; ++number) {
    const std::vector<int64_t> starts = epoch(sampler, number);
    EXPECT_FALSE(std::is_sorted(starts.begin(), starts.end()));
    offsets.insert(*std::min_element(starts.begin(), starts.end()));
  }
  EXPECT_GT(offsets.size(), 8u);  // of 16
}

TEST(RowSampler, IsAPureFunctionOfSeedAndRow) {
  const TokenStream stream = counting_stream(5000);
  const RowSampler a(stream, 32, Packing::concatenate, 7), b(stream, 32, Packing::concatenate, 7),
      other(stream, 32, Packing::concatenate, 8);
  const auto start = [](const RowSampler& sampler, int64_t n) {
    TokenRange storage;
    return sampler.row(n, storage)[0].first;
  };
  std::vector<int64_t> forwards, backwards;
  for (int64_t n = 0; n < 360; ++n) forwards.push_back(start(a, n));
  for (int64_t n = 359; n >= 0; --n) backwards.insert(backwards.begin(), start(b, n));
  EXPECT_EQ(forwards, backwards);
  int same = 0;
  for (int64_t n = 0; n < 360; ++n) same += start(other, n) == start(a, n);
  EXPECT_LT(same, 20);
}

TEST(RowSampler, BestFitHasEveryTokenOnceAnEpochAndWholeDocuments) {
  const TokenStream stream("p", {random_shard("p", 3000, 90, 1), random_shard("p", 2000, 90, 2)});
  const RowSampler sampler(stream, 63, Packing::best_fit, 5);
  for (const int64_t number : {0, 3}) {
    std::vector<int> seen(size_t(stream.tokens()), 0);
    for (int64_t i = 0; i < sampler.rows_per_epoch(); ++i) {
      TokenRange storage;
      int64_t tokens = 0;
      for (const TokenRange& piece : sampler.row(number * sampler.rows_per_epoch() + i, storage)) {
        tokens += piece.count;
        for (int64_t t = piece.first; t < piece.first + piece.count; ++t) ++seen[size_t(t)];
      }
      EXPECT_GE(tokens, 2);
      EXPECT_LE(tokens, 64);
    }
    const auto missing = std::count(seen.begin(), seen.end(), 0);
    EXPECT_LE(missing, 2);  // a row of one token predicts nothing: at most one a shard
    EXPECT_EQ(std::count(seen.begin(), seen.end(), 1) + missing, stream.tokens());
  }
  EXPECT_NE(epoch(sampler, 0), epoch(sampler, 1));
  EXPECT_GT(sampler.fill(), 0.97);
}

TEST(RowSampler, RefusesAStreamShorterThanARow) {
  EXPECT_THROW(RowSampler(counting_stream(8), 8, Packing::concatenate, 1), Error);
  EXPECT_THROW(RowSampler(counting_stream(0), 8, Packing::concatenate, 1), Error);
  EXPECT_THROW(RowSampler(counting_stream(1), 8, Packing::best_fit, 1), Error);
  EXPECT_EQ(epoch(RowSampler(counting_stream(9), 8, Packing::concatenate, 1), 1000), std::vector<int64_t>{0});
}

TEST(RowSampler, AStreamReadsAcrossItsShards) {
  const TokenStream stream = counting_stream(20000, 7);
  EXPECT_EQ(stream.tokens(), 20000);
  for (int64_t first = 0; first + 6000 <= 20000; first += 777) {
    std::vector<int32_t> ids(6000);
    stream.read(first, ids);
    for (size_t i = 0; i < ids.size(); ++i) ASSERT_EQ(ids[i], first + int64_t(i));
  }
}

}  // namespace
}  // namespace cachalot
