#include "backend/fake/plan_device.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "backend/ops/check.h"

namespace cachalot {

namespace {

class PlanBackend final : public Backend {
 public:
  void upload(const void*, Tensor) override {}
  void download(Tensor src, void* host) override {
    if (src.size() > 0) std::memset(host, 0, size_t(src.size() * size_of(src.dtype)));
  }
  void synchronize() override {}
  EventPtr record() override { return std::make_shared<Event>(); }
  void wait(const EventPtr& e) override { CHECK(e != nullptr, "waits for an event that was never recorded"); }

#define CACHALOT_DROP(op, Args) \
  void op(const Args& args) override { check(args); }
  CACHALOT_OPS(CACHALOT_DROP)
#undef CACHALOT_DROP
};

class PlanDevice final : public Device {
 public:
  std::string name() const override { return "plan"; }
  void* take(int64_t bytes) override {
    CHECK(bytes >= 0);
    void* data = mmap(nullptr, length(bytes), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return data == MAP_FAILED ? nullptr : data;
  }
  void give(void* data, int64_t bytes) noexcept override { munmap(data, length(bytes)); }
  int64_t free_bytes() const override { return int64_t{1} << 44; }  // address space of a process: 2^47
  std::unique_ptr<Backend> open_backend() override { return std::make_unique<PlanBackend>(); }

 private:
  static size_t length(int64_t bytes) { return size_t(std::max<int64_t>(bytes, 1)); }
};

}  // namespace

std::unique_ptr<Device> open_plan_device() { return std::make_unique<PlanDevice>(); }

}  // namespace cachalot
