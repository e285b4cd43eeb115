#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/error.h"

namespace cachalot {
namespace {

class Pool : public testing::TestWithParam<int> {};

TEST_P(Pool, CallsEveryIndexExactlyOnce) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.threads(), GetParam());
  for (const int64_t count : {0, 1, 2, 3, 1000}) {
    std::vector<int> calls(size_t(count), 0);  // no atomics: two calls of one index would be a race (TSan)
    pool.parallel_for(count, [&](int64_t i) { ++calls[size_t(i)]; });
    for (const int c : calls) EXPECT_EQ(c, 1);
  }
}

TEST_P(Pool, RangesTileTheCountAtMultiplesOfGrain) {
  ThreadPool pool(GetParam());
  std::mutex mutex;
  std::set<std::pair<int64_t, int64_t>> ranges;
  pool.parallel_ranges(10, 4, [&](int64_t begin, int64_t end) {
    std::lock_guard lock(mutex);
    EXPECT_TRUE(ranges.insert({begin, end}).second);
  });
  EXPECT_EQ(ranges, (std::set<std::pair<int64_t, int64_t>>{{0, 4}, {4, 8}, {8, 10}}));
  pool.parallel_ranges(0, 4, [](int64_t, int64_t) { FAIL(); });
}

TEST_P(Pool, WritesOfTheBodiesAreVisibleAfterTheCall) {
  ThreadPool pool(GetParam());
  std::vector<int64_t> x(1000);
  for (int round = 0; round < 200; ++round) {
    pool.parallel_for(int64_t(x.size()), [&](int64_t i) { x[size_t(i)] += i; });
    ASSERT_EQ(x[999], 999 * (round + 1));
  }
}

TEST_P(Pool, RethrowsAndStaysUsable) {
  ThreadPool pool(GetParam());
  for (int round = 0; round < 20; ++round) {
    EXPECT_THROW(pool.parallel_for(64,
                                   [](int64_t i) {
                                     if (i % 2) throw Error("odd");
                                   }),
                 Error);
    std::atomic<int> calls = 0;
    pool.parallel_for(64, [&](int64_t) { ++calls; });
    EXPECT_EQ(calls, 64);
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, Pool, testing::Values(1, 2, 5));

TEST(ThreadPool, ReallyRunsOnSeveralThreads) {
  ThreadPool pool(3);
  std::mutex mutex;
  std::set<std::thread::id> ids;
  std::atomic<int> here = 0;
  pool.parallel_for(3, [&](int64_t) {  // each waits for the others: one thread alone would never return
    ++here;
    while (here < 3) std::this_thread::yield();
    std::lock_guard lock(mutex);
    ids.insert(std::this_thread::get_id());
  });
  EXPECT_EQ(ids.size(), 3u);
}

TEST(ThreadPool, RefusesToBeReentered) {
  ThreadPool pool(2);
  EXPECT_THROW(pool.parallel_for(4, [&](int64_t) { pool.parallel_for(4, [](int64_t) {}); }), InternalError);
}

TEST(AvailableCpus, IsAtLeastOneAndNoMoreThanTheMachineHas) {
  EXPECT_GE(available_cpus(), 1);
  EXPECT_LE(available_cpus(), int(std::thread::hardware_concurrency()));
}

}  // namespace
}  // namespace cachalot
