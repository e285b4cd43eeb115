#include "backend/fake/plan_device.h"

#include <algorithm>
#include <atomic>
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

// Addresses count up from 2^55, where no process on x86 or ARM has memory: nothing is asked of the system,
// and code that touches them dies.
class PlanDevice final : public Device {
 public:
  std::string name() const override { return "plan"; }
  void* take(int64_t bytes) override {
    CHECK(bytes >= 0);
    const int64_t rounded = round_up(bytes);
    if (rounded > free_bytes()) return nullptr;
    taken_ += rounded;
    return reinterpret_cast<void*>(next_.fetch_add(rounded));
  }
  void give(void*, int64_t bytes) noexcept override { taken_ -= round_up(bytes); }
  int64_t free_bytes() const override { return kMostBytes - taken_; }
  std::unique_ptr<Backend> open_backend() override { return std::make_unique<PlanBackend>(); }

 private:
  static constexpr int64_t kFirst = int64_t{1} << 55, kMostBytes = int64_t{1} << 54;
  static int64_t round_up(int64_t bytes) {
    return std::min(std::max<int64_t>(bytes, 1), kFirst) / 256 * 256 + 256;
  }

  std::atomic<int64_t> next_ = kFirst, taken_ = 0;
};

}  // namespace

std::unique_ptr<Device> open_plan_device() { return std::make_unique<PlanDevice>(); }

}  // namespace cachalot
