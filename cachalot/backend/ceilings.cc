#include "backend/ceilings.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <vector>

#include "backend/buffer.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_device.h"
#include "backend/cpu/peak.h"
#include "base/rng.h"

namespace cachalot {

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The fastest call of what fits into `budget` seconds.
double fastest(Stream& s, double budget, const std::function<void()>& work) {
  double best = 1e30, spent = 0;
  for (int i = 0; i < 6 || spent < budget; ++i) {
    on(s).synchronize();
    const double start = now();
    const EventPtr begin = on(s).record();
    work();
    const EventPtr end = on(s).record();
    on(s).synchronize();
    const double host = now() - start, device = end->seconds_after(*begin);
    spent += host;
    if (i > 0) best = std::min(best, device >= 0 ? device : host);
  }
  return best;
}

Tensor random_tensor(Stream& s, Arena& arena, DType dtype, int64_t rows, int64_t cols, uint64_t stream) {
  // Drawing 8192^2 would take longer than what is measured: a prime number of them, again and again.
  constexpr size_t kDrawn = 1048573;
  std::vector<float> numbers(size_t(rows * cols));
  for (size_t i = 0; i < numbers.size(); ++i)
    numbers[i] = i < kDrawn ? float(random_uniform(1, stream, i) - 0.5) : numbers[i - kDrawn];
  const Tensor t = arena.take(dtype, rows, cols);
  if (dtype == DType::f32) {
    on(s).upload(numbers.data(), t);
    return t;
  }
  Arena::Scope scratch(arena);
  const Tensor wide = arena.take(DType::f32, rows, cols);
  on(s).upload(numbers.data(), wide);
  on(s).cast({.x = wide, .y = t});
  return t;
}

// The best rate of what all threads together did in one call, over about `seconds`.
double best_rate(double seconds, const std::function<double()>& work) {
  double best = 0;
  const double begin = now();
  do {
    const double start = now(), done = work();
    best = std::max(best, done / (now() - start));
  } while (now() - begin < seconds);
  return best;
}

void measure_cpu(cpu::Context& context, Device& device, int64_t bytes, double seconds, Ceilings& c) {
  const cpu::Kernels& kernels = context.kernels;
  const int threads = context.pool.threads();
  c.f32_flops = measure_peak_flops(*kernels.floats, threads, seconds);
  c.bf16_flops = kernels.halves ? measure_peak_flops(*kernels.halves, threads, seconds) : c.f32_flops;
  c.read_bytes = measure_read_bandwidth(kernels, bytes, threads, seconds);
  // Every thread copies a part of its own.
  const int64_t part = std::max<int64_t>(1, bytes / threads / 4096) * 4096;
  const Buffer from(device, part * threads, "the copy test"), to(device, part * threads, "the copy test");
  const auto at = [&](const Buffer& b, int64_t i) { return static_cast<uint8_t*>(b.data()) + i * part; };
  context.pool.parallel_for(threads, [&](int64_t i) {  // so that no page comes into being while it counts
    std::memset(at(from, i), 1, size_t(part));
    std::memset(at(to, i), 2, size_t(part));
  });
  c.copy_bytes = best_rate(seconds, [&] {
    context.pool.parallel_for(threads, [&](int64_t i) { std::memcpy(at(to, i), at(from, i), size_t(part)); });
    return 2 * double(part * threads);
  });
}

}  // namespace

double time_gemm(Device& device, DType dtype, int64_t m, int64_t n, int64_t k, double budget) {
  Stream s(device);
  Arena arena(device, 4 * (2 * m * k + 2 * n * k + m * n) + (1 << 16), "the operands of a product");
  const Tensor a = random_tensor(s, arena, dtype, m, k, 1), b = random_tensor(s, arena, dtype, n, k, 2),
               c = arena.take(dtype, m, n);
  return fastest(s, budget, [&] { on(s).gemm({.a = a, .b = b, .c = c, .trans_b = true}); });
}

Ceilings measure_ceilings(Device& device, int64_t bytes, double seconds) {
  Ceilings c{.bytes = bytes};
  if (cpu::Context* context = cpu_context(device)) {
    measure_cpu(*context, device, bytes, seconds, c);
    return c;
  }
  // A device without a loop of its own: the largest product, and operations that only move memory.
  constexpr int64_t kSide = 8192, kWidth = 4096;
  const double flops = 2.0 * kSide * kSide * kSide;
  c.f32_flops = flops / time_gemm(device, DType::f32, kSide, kSide, kSide, seconds);
  c.bf16_flops = flops / time_gemm(device, DType::bf16, kSide, kSide, kSide, seconds);
  Stream s(device);
  Arena arena(device, 2 * bytes + (1 << 16), "the copy test");
  const int64_t rows = std::max<int64_t>(1, bytes / 4 / kWidth);
  const Tensor x = arena.take(DType::f32, rows, kWidth), y = arena.take(DType::f32, rows, kWidth),
               sum = arena.take(DType::f64, 1, 1);
  on(s).fill({.y = x, .value = 1});
  on(s).fill({.y = sum, .value = 0});
  const double moved = double(x.size()) * 4;
  c.copy_bytes = 2 * moved / fastest(s, seconds, [&] { on(s).cast({.x = x, .y = y}); });
  c.read_bytes = moved / fastest(s, seconds, [&] { on(s).sum_squares({.x = x, .out = sum}); });
  return c;
}

}  // namespace cachalot
