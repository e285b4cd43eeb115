#include "train/activity.h"

namespace cachalot {

namespace {

class FollowedBackend final : public Backend {
 public:
  FollowedBackend(std::unique_ptr<Backend> inner, Activity& activity)
      : inner_(std::move(inner)), activity_(activity) {}

  void upload(const void* host, Tensor dst) override {
    note("upload", [&] { inner_->upload(host, dst); });
    ++activity_.progress;
  }
  void download(Tensor src, void* host) override {
    note("download", [&] { inner_->download(src, host); });
  }
  void synchronize() override {
    note("synchronize", [&] { inner_->synchronize(); });
    ++activity_.progress;
  }
  EventPtr record() override { return inner_->record(); }
  void wait(const EventPtr& e) override { inner_->wait(e); }
  GraphPtr capture(const std::function<void()>& work) override { return inner_->capture(work); }
  void replay(const GraphPtr& graph) override {
    note("graph", [&] { inner_->replay(graph); });
  }
  void fix_rows(bool fixed) override { inner_->fix_rows(fixed); }

#define CACHALOT_NOTE(op, Args)           \
  void op(const Args& args) override {    \
    note(#op, [&] { inner_->op(args); }); \
  }
  CACHALOT_OPS(CACHALOT_NOTE)
#undef CACHALOT_NOTE

 private:
  template <class Call> void note(const char* op, const Call& call) {
    constexpr auto relaxed = std::memory_order_relaxed;
    activity_.op.store(op, relaxed);
    activity_.calls.fetch_add(1, relaxed);
    activity_.in_call.store(true, relaxed);
    call();
    activity_.in_call.store(false, relaxed);
  }

  std::unique_ptr<Backend> inner_;
  Activity& activity_;
};

class FollowedDevice final : public Device {
 public:
  FollowedDevice(Device& inner, Activity& activity) : inner_(inner), activity_(activity) {}
  std::string name() const override { return inner_.name(); }
  void* take(int64_t bytes) override { return inner_.take(bytes); }
  void give(void* data, int64_t bytes) noexcept override { inner_.give(data, bytes); }
  int64_t free_bytes() const override { return inner_.free_bytes(); }
  std::unique_ptr<Backend> open_backend() override {
    return std::make_unique<FollowedBackend>(inner_.open_backend(), activity_);
  }
  Device& inner() const { return inner_; }

 private:
  Device& inner_;
  Activity& activity_;
};

}  // namespace

std::unique_ptr<Device> open_followed_device(Device& inner, Activity& activity) {
  return std::make_unique<FollowedDevice>(inner, activity);
}

Device& unfollowed(Device& device) {
  const auto* followed = dynamic_cast<const FollowedDevice*>(&device);
  return followed ? followed->inner() : device;
}

}  // namespace cachalot
