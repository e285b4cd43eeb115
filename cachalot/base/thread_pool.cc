#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
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

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;
constexpr auto kLook = microseconds(100), kRest = 50 * kLook;  // without work, for the next job
constexpr auto kLeave = microseconds(50);                      // for threads that finish the last items
constexpr auto kTaken = microseconds(20);  // longer than any step of a look on a CPU of ours

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Looks until `found` or for `most` at most; false: in vain.
template <class Found> bool look_until(const Found& found, Clock::duration most) {
  const auto begin = Clock::now();
  for (auto before = begin;;) {
    for (int i = 0; i < 16; ++i) {
      if (found()) return true;
      pause();
    }
    const auto now = Clock::now();
    if (now - begin > most || now - before > kTaken) return false;
    before = now;
  }
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
  std::atomic<uint64_t> posted{0};  // the generation, for threads that look
  std::atomic<int> inside{0};       // threads of the pool that work on the open job; changed under the mutex
  std::atomic<int> looking{0};
  bool may_look = false;
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

  // A thread that sleeps on a mutex is as late as one that sleeps without work.
  std::unique_lock<std::mutex> lock_soon() {
    for (int i = 0; may_look && i < 256; ++i) {
      if (std::unique_lock lock(mutex, std::try_to_lock); lock) return lock;
      pause();
    }
    return std::unique_lock(mutex);
  }

  void serve(int index) {
    if (!homes.empty()) move_to(homes[size_t(index) % homes.size()]);
    uint64_t seen = 0;
    auto rested = Clock::now();
    std::unique_lock lock(mutex);
    for (;;) {
      const auto called = [&] { return stop || (open && generation != seen); };
      if (may_look && !called() && Clock::now() >= rested) {
        const uint64_t known = generation;
        lock.unlock();
        looking.fetch_add(1, std::memory_order_relaxed);
        const bool found = look_until([&] { return posted.load(std::memory_order_acquire) != known; }, kLook);
        looking.fetch_sub(1, std::memory_order_relaxed);
        if (!found) rested = Clock::now() + kRest;
        lock = lock_soon();
        if (found) continue;
      }
      work.wait(lock, called);
      if (stop) return;
      seen = generation;
      ++inside;
      lock.unlock();
      if (homes.empty()) spread(seen);
      drain();
      lock = lock_soon();
      if (--inside == 0) done.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  CHECK(threads >= 1);
  if (threads > 1) state_->homes = cpus_of_several_nodes(affinity());
  state_->may_look = threads <= available_cpus();
  for (int i = 1; i < threads; ++i) state_->threads.emplace_back([s = state_.get(), i] { s->serve(i); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stop = true;
    state_->posted = ++state_->generation;
  }
  state_->work.notify_all();
  for (auto& t : state_->threads) t.join();
}

int ThreadPool::threads() const { return int(state_->threads.size()) + 1; }
bool ThreadPool::awake() const { return state_->looking.load(std::memory_order_relaxed) > 0; }

void ThreadPool::parallel_for(int64_t count, const std::function<void(int64_t)>& body) {
  State& s = *state_;
  if (s.threads.empty() || count <= 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  uint64_t job = 0;
  {
    const auto lock = s.lock_soon();
    CHECK(!s.busy, "parallel_for called from inside parallel_for, or from two threads");
    s.busy = s.open = true;
    s.body = &body;
    s.count = count;
    s.next = 0;
    s.failure = nullptr;
    job = ++s.generation;
    if (s.homes.empty()) s.claim(sched_getcpu(), job);
  }
  s.posted.store(job, std::memory_order_release);  // not under the mutex, which those that see it want next
  if (count > int64_t(s.threads.size())) s.work.notify_all();
  else
    for (int64_t i = 1; i < count; ++i) s.work.notify_one();
  s.drain();
  std::exception_ptr failure;
  {
    auto lock = s.lock_soon();
    s.open = false;
    if (s.may_look && s.inside > 0) {
      lock.unlock();
      look_until([&] { return s.inside == 0; }, kLeave);
      lock = s.lock_soon();
    }
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
