#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <exception>
#include <fstream>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"

namespace cachalot {

namespace {

// cgroup v2: cpu.max holds "quota period" or "max period"; v1: two files. No file, no limit.
double cgroup_cpus() {
  double quota = -1, period = 0;
  std::string path = "/sys/fs/cgroup";
  std::ifstream self("/proc/self/cgroup");
  for (std::string line; std::getline(self, line);)
    if (line.rfind("0::", 0) == 0) {
      // Every ancestor limits too: walk from our own group to the root and take the smallest.
      double best = -1;
      std::string group = line.substr(3);
      for (;;) {
        std::ifstream max(path + (group == "/" ? "" : group) + "/cpu.max");
        std::string first;
        if (max >> first >> period && first != "max" && period > 0) {
          const double cpus = std::atof(first.c_str()) / period;
          best = best < 0 ? cpus : std::min(best, cpus);
        }
        const size_t slash = group.rfind('/');
        if (group.size() <= 1 || slash == std::string::npos) break;
        group = slash == 0 ? "/" : group.substr(0, slash);
      }
      return best;
    }
  std::ifstream(path + "/cpu/cpu.cfs_quota_us") >> quota;
  std::ifstream(path + "/cpu/cpu.cfs_period_us") >> period;
  return quota > 0 && period > 0 ? quota / period : -1;
}

}  // namespace

int available_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int cpus = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set)
                                                         : int(std::thread::hardware_concurrency());
  const double limit = cgroup_cpus();
  if (limit > 0) cpus = std::min(cpus, std::max(1, int(limit + 0.5)));
  return std::max(1, cpus);
}

struct ThreadPool::State {
  std::mutex mutex;
  std::condition_variable work, done;
  const std::function<void(int64_t)>* body = nullptr;
  int64_t count = 0;
  std::atomic<int64_t> next{0};
  uint64_t generation = 0;
  int running = 0;
  bool stop = false;
  std::exception_ptr failure;
  std::vector<std::thread> threads;

  void drain() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      try {
        (*body)(i);
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
      }
    }
  }

  void serve() {
    uint64_t seen = 0;
    std::unique_lock lock(mutex);
    for (;;) {
      work.wait(lock, [&] { return stop || generation != seen; });
      if (stop) return;
      seen = generation;
      lock.unlock();
      drain();
      lock.lock();
      if (--running == 0) done.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  CHECK(threads >= 1);
  for (int i = 1; i < threads; ++i) state_->threads.emplace_back([s = state_.get()] { s->serve(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->work.notify_all();
  for (auto& t : state_->threads) t.join();
}

int ThreadPool::threads() const { return int(state_->threads.size()) + 1; }

void ThreadPool::parallel_for(int64_t count, const std::function<void(int64_t)>& body) {
  State& s = *state_;
  if (s.threads.empty() || count <= 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  {
    std::lock_guard lock(s.mutex);
    CHECK(s.body == nullptr, "parallel_for called from inside parallel_for, or from two threads");
    s.body = &body;
    s.count = count;
    s.next = 0;
    s.failure = nullptr;
    s.running = int(s.threads.size());
    ++s.generation;
  }
  s.work.notify_all();
  s.drain();
  std::exception_ptr failure;
  {
    std::unique_lock lock(s.mutex);
    s.done.wait(lock, [&] { return s.running == 0; });
    s.body = nullptr;
    failure = s.failure;
  }
  if (failure) std::rethrow_exception(failure);
}

void ThreadPool::parallel_ranges(int64_t count, int64_t grain,
                                 const std::function<void(int64_t, int64_t)>& body) {
  CHECK(grain > 0);
  parallel_for((count + grain - 1) / grain,
               [&](int64_t i) { body(i * grain, std::min(count, (i + 1) * grain)); });
}

}  // namespace cachalot
