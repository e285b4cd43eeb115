#include "base/thread_pool.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <ctime>
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

// Many more threads than CPUs, and several pools at once: nobody spins for long, so all of them get on.
TEST(ThreadPool, ManyPoolsOfManyThreadsShareTheMachine) {
  constexpr int kPools = 4, kRounds = 300, kItems = 37;
  std::vector<std::thread> callers;
  std::atomic<int> wrong = 0;
  for (int p = 0; p < kPools; ++p)
    callers.emplace_back([&] {
      ThreadPool pool(8);
      std::vector<int64_t> sums(kItems, 0);  // no atomics: see above
      for (int round = 1; round <= kRounds; ++round) {
        pool.parallel_for(kItems, [&](int64_t i) { sums[size_t(i)] += i; });
        for (int64_t i = 0; i < kItems; ++i) wrong += sums[size_t(i)] != round * i;
      }
    });
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong, 0);
}

// The caller does not wait for threads that have nothing left to do: a job ends when its items do, and late
// threads find no trace of it.
TEST(ThreadPool, ShortJobsDoNotReachIntoTheNextOne) {
  ThreadPool pool(6);
  for (int round = 0; round < 20000; ++round) {
    int calls[2] = {0, 0};  // gone when the call is over
    pool.parallel_for(2, [&calls](int64_t i) { ++calls[i]; });
    ASSERT_EQ(calls[0] + calls[1], 2);
  }
}

// With as many threads as CPUs, every one of them has a CPU of its own.
TEST(ThreadPool, ThreadsOfAJobSpreadOverTheCpus) {
  const int cpus = std::min(available_cpus(), 4);
  if (cpus < 2) GTEST_SKIP() << "runs on machines with two CPUs or more; this one gives us one";
  ThreadPool pool(cpus);
  int apart = 0;
  for (int round = 0; round < 20; ++round) {
    std::mutex mutex;
    std::set<int> used;
    std::atomic<int> here = 0;
    pool.parallel_for(cpus, [&](int64_t) {
      ++here;
      while (here < cpus) std::this_thread::yield();
      std::lock_guard lock(mutex);
      used.insert(sched_getcpu());
    });
    apart += int(used.size()) == cpus;
  }
  EXPECT_GT(apart, 0);  // the kernel may move a thread in between
}

// Awake between the jobs of a step, asleep soon after it: an idle pool costs next to nothing.
TEST(ThreadPool, IdleThreadsFallAsleep) {
  ThreadPool pool(available_cpus());
  const auto cpu_seconds = [] { return double(std::clock()) / CLOCKS_PER_SEC; };
  double worst = 0;
  for (int round = 0; round < 5; ++round) {
    for (int job = 0; job < 50; ++job) pool.parallel_for(64, [](int64_t) {});
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_FALSE(pool.awake());
    const double before = cpu_seconds();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    worst = std::max(worst, cpu_seconds() - before);
  }
  EXPECT_LT(worst, 0.01);
}

TEST(ThreadPool, WithMoreThreadsThanCpusNobodyLooksForWork) {
  ThreadPool pool(available_cpus() + 1);
  for (int job = 0; job < 1000; ++job) {
    pool.parallel_for(8, [](int64_t) {});
    ASSERT_FALSE(pool.awake());
  }
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
