// Operations on the CPU. Every stream of a device shares its threads; a call is done when it returns.
//
// Determinism: work is cut into items whose size depends on shapes only, an item writes what no other item
// writes, and sums over items are taken in item order: the same bits for any number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/scratch.h"
#include "backend/cpu/vector.h"
#include "base/thread_pool.h"

namespace cachalot::cpu {

// What the streams of one device share.
struct Context {
  Context(int threads, const Kernels& kernels, double worth_waking)
      : pool(threads), kernels(kernels), vectors(vectors_for(kernels.isa)), worth_waking(worth_waking) {}

  ThreadPool pool;
  const Kernels& kernels;
  const Vectors& vectors;
  double worth_waking;  // nanoseconds of work (cpu_device.h)
  std::mutex pool_in_use;

  // So much work is worth several threads: less when they are awake.
  bool shares(double nanoseconds) const {
    constexpr double kWorthCalling = 5e3;
    return pool.threads() > 1 &&
           nanoseconds >= (pool.awake() ? std::min(kWorthCalling, worth_waking) : worth_waking);
  }

  // body(i) for i in [0, count). `nanoseconds` is a rough guess of all the work on one thread. When another
  // stream has the pool, the caller does its work alone instead of waiting.
  template <class Body> void parallel(int64_t count, double nanoseconds, const Body& body) {
    if (count > 1 && shares(nanoseconds)) {
      if (std::unique_lock lock(pool_in_use, std::try_to_lock); lock) {
        pool.parallel_for(count, std::cref(body));
        return;
      }
    }
    for (int64_t i = 0; i < count; ++i) body(i);
  }

  // body(begin, end) over ranges of `grain`.
  template <class Body>
  void parallel_ranges(int64_t count, int64_t grain, double nanoseconds, const Body& body) {
    parallel((count + grain - 1) / grain, nanoseconds,
             [&](int64_t i) { body(i * grain, i * grain + grain < count ? i * grain + grain : count); });
  }
};

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(std::shared_ptr<Context> context) : context_(std::move(context)) {}

  void upload(const void* host, Tensor dst) override;
  void download(Tensor src, void* host) override;
  void synchronize() override {}
  EventPtr record() override;  // all work before it is done
  void wait(const EventPtr&) override {}

#define CACHALOT_DECLARE(name, Args) void name(const Args&) override;
  CACHALOT_OPS(CACHALOT_DECLARE)
#undef CACHALOT_DECLARE

 private:
  std::shared_ptr<Context> context_;
  std::vector<Gemm> products_;  // of the operation that runs; kept for its memory
};

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// A grain for loops over rows: about 4096 numbers an item.
inline int64_t rows_per_item(int64_t cols) { return cols >= 4096 ? 1 : (4096 + cols) / (cols + 1); }

}  // namespace cachalot::cpu
