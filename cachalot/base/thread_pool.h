// A pool of threads that sleeps when it has nothing to do. Between the operations of one step it stays awake:
// a thread without work looks for the next job for 100 us at most, then it sleeps. It never spins for long
// (on a shared machine a spinning pool takes the cores that its neighbours compute on; docs/architecture.md,
// "Dependencies"): after a look in vain it does not look for 5 ms, so idle threads cost 2 % of a CPU at most;
// a look ends when another program takes the CPU meanwhile; and a pool with more threads than CPUs never
// looks.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace cachalot {

// CPUs that this process may really use: the affinity mask, limited by the cgroup's CPU quota (containers).
int available_cpus();

// Threads are left to the kernel, except that one which wakes up beside another of the same job moves to a
// CPU without any; where the CPUs of this process belong to several NUMA nodes, each thread but the caller is
// pinned to a CPU, node by node, so that the memory which it touches first stays near.
//
// Measured on a virtual machine with 2 CPUs: an empty call takes 4 us when the other thread sleeps, whose
// CPU needs some 50 us to wake up; the caller does not wait for it and begins at once. A thread that is awake
// comes within 1 us.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // >= 1; the caller of parallel_for is one of them
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  int threads() const;
  bool awake() const;  // a thread looks for work: it comes at once

  // Calls body(i) once for every i in [0, count), on any thread in any order; returns when all are done.
  // The first exception of a body is rethrown here. Not reentrant: a body must not call parallel_for.
  // Determinism is the caller's: work item i must write only what belongs to i, never depend on threads().
  void parallel_for(int64_t count, const std::function<void(int64_t)>& body);

  // The same over ranges: body(begin, end) with end - begin <= grain, at multiples of grain.
  void parallel_ranges(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace cachalot
