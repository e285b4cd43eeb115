#include "backend/cpu/cpu_device.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>

#include "backend/cpu/cpu_backend.h"
#include "backend/host_memory.h"

namespace cachalot {

namespace {

// Large blocks in pages of 2 MiB: a GEMM touches many rows at once, and small pages miss the TLB.
void ask_for_huge_pages(void* data, int64_t bytes) {
  constexpr uintptr_t kPage = 4096, kWorthIt = uintptr_t(4) << 20;
  if (uintptr_t(bytes) < kWorthIt) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

// Twice the time until a second thread is at work, median of some wake-ups: then half of the work is still
// there to share.
double measure_worth_waking(ThreadPool& pool) {
  using Clock = std::chrono::steady_clock;
  constexpr int kTimes = 7;
  constexpr double kLeast = 10e3, kMost = 200e3;
  if (pool.threads() == 1) return kLeast;
  std::array<double, kTimes> wakes{};
  for (double& wake : wakes) {
    std::this_thread::sleep_for(std::chrono::microseconds(200));  // until the threads sleep, too
    const auto caller = std::this_thread::get_id();
    const auto start = Clock::now();
    const auto passed = [&] { return std::chrono::duration<double, std::nano>(Clock::now() - start).count(); };
    std::atomic<double> other = kMost;
    pool.parallel_for(2, [&](int64_t) {
      if (std::this_thread::get_id() != caller) other = std::min(kMost, passed());
      else while (other == kMost && passed() < kMost) {}  // leaves the second item to somebody else
    });
    wake = other;
  }
  std::nth_element(wakes.begin(), wakes.begin() + kTimes / 2, wakes.end());
  return std::clamp(2 * wakes[kTimes / 2], kLeast, kMost);
}

class CpuDevice : public Device {
 public:
  CpuDevice(int threads, double worth_waking)
      : context_(std::make_shared<cpu::Context>(threads, cpu::choose_kernels(), worth_waking)) {
    if (worth_waking == kMeasured) context_->worth_waking = measure_worth_waking(context_->pool);
  }

  std::string name() const override {
    return "cpu (" + std::to_string(context_->pool.threads()) +
           (context_->pool.threads() == 1 ? " thread)" : " threads)");
  }

  void* take(int64_t bytes) override {
    void* data = take_host_memory(bytes);
    if (data) ask_for_huge_pages(data, bytes);
    return data;
  }
  void give(void* data, int64_t) noexcept override { give_host_memory(data); }
  int64_t free_bytes() const override { return host_free_bytes(); }
  std::unique_ptr<Backend> open_backend() override { return std::make_unique<cpu::CpuBackend>(context_); }
  cpu::Context* context() { return context_.get(); }

 private:
  std::shared_ptr<cpu::Context> context_;
};

}  // namespace

std::unique_ptr<Device> open_cpu_device(int threads, double worth_waking) {
  CHECK(threads >= 0);
  return std::make_unique<CpuDevice>(threads == 0 ? available_cpus() : threads, worth_waking);
}

cpu::Context* cpu_context(Device& device) {
  auto* cpu = dynamic_cast<CpuDevice*>(&device);
  return cpu ? cpu->context() : nullptr;
}

namespace cpu {

void CpuBackend::upload(const void* host, Tensor dst) {
  const int64_t row = dst.cols * size_of(dst.dtype);
  if (row == 0) return;
  for (int64_t r = 0; r < dst.rows; ++r)
    std::memcpy(static_cast<uint8_t*>(dst.data) + r * dst.ld * size_of(dst.dtype),
                static_cast<const uint8_t*>(host) + r * row, size_t(row));
}

void CpuBackend::download(Tensor src, void* host) {
  const int64_t row = src.cols * size_of(src.dtype);
  if (row == 0) return;
  for (int64_t r = 0; r < src.rows; ++r)
    std::memcpy(static_cast<uint8_t*>(host) + r * row,
                static_cast<const uint8_t*>(src.data) + r * src.ld * size_of(src.dtype), size_t(row));
}

EventPtr CpuBackend::record() {
  static const EventPtr done = std::make_shared<Event>();
  return done;
}

}  // namespace cpu

}  // namespace cachalot
