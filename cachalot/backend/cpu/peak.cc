#include "backend/cpu/peak.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>

#include "backend/cpu/cpu_backend.h"
#include "backend/host_memory.h"
#include "base/error.h"
#include "base/thread_pool.h"

namespace cachalot::cpu {

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

double measure_peak_flops(const Arithmetic& arithmetic, int threads, double seconds) {
  ThreadPool pool(threads);
  // The number of rounds grows until one takes a millisecond: waking the threads is then small beside it.
  double best = 0;
  int64_t rounds = 1000;
  for (const double end = now() + seconds; now() < end || best == 0;) {
    const double start = now();
    double flops = 0;
    pool.parallel_for(threads, [&](int64_t i) {
      const double mine = arithmetic.spin(rounds);
      if (i == 0) flops = mine;  // the others do the same
    });
    const double took = now() - start;
    if (took < 2e-3) rounds *= 2;
    else best = std::max(best, flops * threads / took);
  }
  return best;
}

double measure_read_bandwidth(const Kernels& kernels, int64_t bytes, int threads, double seconds) {
  constexpr int64_t kStep = 4096;
  constexpr int64_t kPage = int64_t(2) << 20;  // as the device's large blocks are (cpu_device.cc)
  const int64_t part = std::max(kStep, bytes / threads / kStep * kStep), all = part * threads;
  auto* block = static_cast<uint8_t*>(take_host_memory(all + kPage));
  CHECK(block != nullptr, "no memory to read");
  auto* data = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<int64_t>(block), kPage));
  madvise(data, size_t(all), MADV_HUGEPAGE);
  ThreadPool pool(threads);
  pool.parallel_for(threads,
                    [&](int64_t i) { std::fill(data + i * part, data + (i + 1) * part, uint8_t(i + 1)); });
  double best = 0;
  int64_t times = 1;
  for (const double end = now() + seconds; now() < end || best == 0;) {
    const double start = now();
    pool.parallel_for(threads, [&](int64_t i) {
      for (int64_t t = 0; t < times; ++t) {
        volatile uint32_t kept = kernels.read(data + i * part, part);
        (void)kept;
      }
    });
    const double took = now() - start;
    if (took < 2e-3) times *= 2;
    else best = std::max(best, double(all) * double(times) / took);
  }
  give_host_memory(block);
  return best;
}

}  // namespace cachalot::cpu
