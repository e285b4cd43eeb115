#include "backend/cpu/cpu_device.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

#include "backend/cpu/cpu_backend.h"

namespace cachalot {

namespace {

constexpr int64_t kAlign = 256, kHugePage = int64_t(2) << 20;

// What the machine could give without swapping, limited by the container's memory (cgroup v2).
int64_t available_memory() {
  int64_t available = INT64_MAX;
  std::ifstream info("/proc/meminfo");
  for (std::string key, unit; int64_t kib = 0;) {
    if (!(info >> key >> kib)) break;
    std::getline(info, unit);
    if (key == "MemAvailable:") available = kib * 1024;
  }
  std::ifstream limit("/sys/fs/cgroup/memory.max"), used("/sys/fs/cgroup/memory.current");
  int64_t most = 0, now = 0;
  if (limit >> most && used >> now) available = std::min(available, std::max<int64_t>(0, most - now));
  return available;
}

class CpuDevice : public Device {
 public:
  explicit CpuDevice(int threads) : context_(std::make_shared<cpu::Context>(threads, cpu::choose_kernels())) {}

  std::string name() const override { return "cpu (" + std::to_string(context_->pool.threads()) + " threads)"; }

  void* take(int64_t bytes) override {
    CHECK(bytes >= 0);
    const int64_t align = bytes >= 2 * kHugePage ? kHugePage : kAlign;
    // The kernel hands out more than there is and kills later: ask first when it matters.
    if (bytes >= 2 * kHugePage && bytes > free_bytes()) return nullptr;
    const int64_t rounded = (std::max<int64_t>(bytes, 1) + align - 1) / align * align;
    void* data = std::aligned_alloc(size_t(align), size_t(rounded));
    if (data && align == kHugePage) madvise(data, size_t(rounded), MADV_HUGEPAGE);
    return data;
  }
  void give(void* data, int64_t) noexcept override { std::free(data); }
  int64_t free_bytes() const override { return available_memory(); }
  std::unique_ptr<Backend> open_backend() override { return std::make_unique<cpu::CpuBackend>(context_); }

 private:
  std::shared_ptr<cpu::Context> context_;
};

}  // namespace

std::unique_ptr<Device> open_cpu_device(int threads) {
  CHECK(threads >= 0);
  return std::make_unique<CpuDevice>(threads == 0 ? available_cpus() : threads);
}

namespace cpu {

void CpuBackend::upload(const void* host, Tensor dst) {
  const int64_t row = dst.cols * size_of(dst.dtype);
  for (int64_t r = 0; r < dst.rows; ++r)
    std::memcpy(static_cast<uint8_t*>(dst.data) + r * dst.ld * size_of(dst.dtype),
                static_cast<const uint8_t*>(host) + r * row, size_t(row));
}

void CpuBackend::download(Tensor src, void* host) {
  const int64_t row = src.cols * size_of(src.dtype);
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
