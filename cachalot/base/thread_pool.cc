#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <fstream>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/cpu_limits.h"
#include "base/error.h"

namespace cachalot {

namespace {

std::string text_of(const char* path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

cpu_set_t affinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) CPU_ZERO(&set);
  return set;
}

// This thread goes to `cpu` at once.
void move_to(int cpu) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  sched_setaffinity(0, sizeof one, &one);
}

// The CPUs of `set` node by node when they belong to several NUMA nodes, else none.
std::vector<int> cpus_of_several_nodes(const cpu_set_t& set) {
  std::vector<int> cpus;
  int nodes = 0;
  for (const std::vector<int>& node : numa_nodes("/sys/devices/system/node")) {
    const size_t before = cpus.size();
    for (const int cpu : node)
      if (cpu < CPU_SETSIZE && CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
    nodes += cpus.size() > before;
  }
  return nodes > 1 ? cpus : std::vector<int>{};
}

}  // namespace

int available_cpus() {
  const cpu_set_t set = affinity();
  int cpus = CPU_COUNT(&set) > 0 ? CPU_COUNT(&set) : int(std::thread::hardware_concurrency());
  const double limit = cgroup_cpu_limit("/sys/fs/cgroup", text_of("/proc/self/cgroup"));
  if (limit > 0) cpus = std::min(cpus, std::max(1, int(limit + 0.5)));
  return std::max(1, cpus);
}

// A thread that wakes up when a job is no longer open sleeps on: the caller waits for those that entered,
// never for those that are still asleep.
struct ThreadPool::State {
  std::mutex mutex;
  std::condition_variable work, done;
  bool busy = false;  // between begin and end of parallel_for
  bool open = false;  // threads may enter
  const std::function<void(int64_t)>* body = nullptr;
  int64_t count = 0;
  std::atomic<int64_t> next{0};
  uint64_t generation = 0;
  int inside = 0;  // threads of the pool that work on the open job
  bool stop = false;
  std::exception_ptr failure;
  std::vector<std::thread> threads;
  std::vector<int> homes;  // the CPU of each thread, when they are pinned
  // The last job in which a thread of ours worked on a CPU.
  std::array<std::atomic<uint64_t>, CPU_SETSIZE> used{};

  // False: another thread of this job is there already.
  bool claim(int cpu, uint64_t job) {
    return cpu < 0 || cpu >= CPU_SETSIZE || used[size_t(cpu)].exchange(job, std::memory_order_relaxed) != job;
  }

  // The kernel may wake a thread on the CPU of the thread that woke it, and leave the two there for
  // milliseconds while another CPU sleeps (a virtual machine's sleeping CPU does not count as idle).
  void spread(uint64_t job) {
    if (claim(sched_getcpu(), job)) return;
    const cpu_set_t allowed = affinity();
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &allowed) && claim(cpu, job)) {
        move_to(cpu);
        sched_setaffinity(0, sizeof allowed, &allowed);  // free to be moved again
        return;
      }
  }

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

  void serve(int index) {
    if (!homes.empty()) move_to(homes[size_t(index) % homes.size()]);
    uint64_t seen = 0;
    std::unique_lock lock(mutex);
    for (;;) {
      work.wait(lock, [&] { return stop || (open && generation != seen); });
      if (stop) return;
      seen = generation;
      ++inside;
      lock.unlock();
      if (homes.empty()) spread(seen);
      drain();
      lock.lock();
      if (--inside == 0) done.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  CHECK(threads >= 1);
  if (threads > 1) state_->homes = cpus_of_several_nodes(affinity());
  for (int i = 1; i < threads; ++i) state_->threads.emplace_back([s = state_.get(), i] { s->serve(i); });
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
    CHECK(!s.busy, "parallel_for called from inside parallel_for, or from two threads");
    s.busy = s.open = true;
    s.body = &body;
    s.count = count;
    s.next = 0;
    s.failure = nullptr;
    ++s.generation;
    if (s.homes.empty()) s.claim(sched_getcpu(), s.generation);
  }
  if (count > int64_t(s.threads.size())) s.work.notify_all();
  else
    for (int64_t i = 1; i < count; ++i) s.work.notify_one();
  s.drain();
  std::exception_ptr failure;
  {
    std::unique_lock lock(s.mutex);
    s.open = false;
    s.done.wait(lock, [&] { return s.inside == 0; });
    s.busy = false;
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
