// For tests: a device that passes everything on and, when it is told to, gets something wrong, as machines
// do.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <utility>

#include "backend/backend.h"

namespace cachalot::testing {

struct Faults {
  // Called before every operation, and "download", by its name.
  std::function<void(const char* op)> before = {};
  // Called with what each forward RMSNorm has written: nearly every number of a step goes through one.
  std::function<void(const Tensor& y)> after_norm = {};
  int64_t norms = 0, updates = 0;  // calls so far of RMSNorm and AdamW
};

class FaultyBackend final : public Backend {
 public:
  FaultyBackend(std::unique_ptr<Backend> inner, Faults& faults) : inner_(std::move(inner)), faults_(faults) {}

  void upload(const void* host, Tensor dst) override { inner_->upload(host, dst); }
  void download(Tensor src, void* host) override {
    if (faults_.before) faults_.before("download");
    inner_->download(src, host);
  }
  void synchronize() override { inner_->synchronize(); }
  EventPtr record() override { return inner_->record(); }
  void wait(const EventPtr& e) override { inner_->wait(e); }

#define CACHALOT_FAULT(op, Args)             \
  void op(const Args& args) override {       \
    if (faults_.before) faults_.before(#op); \
    inner_->op(args);                        \
    after(args);                             \
  }
  CACHALOT_OPS(CACHALOT_FAULT)
#undef CACHALOT_FAULT

 private:
  template <class Args> void after(const Args&) {}
  void after(const RmsNormForward& args) {
    ++faults_.norms;
    if (faults_.after_norm) faults_.after_norm(args.y);
  }
  void after(const AdamW&) { ++faults_.updates; }

  std::unique_ptr<Backend> inner_;
  Faults& faults_;
};

class FaultyDevice final : public Device {
 public:
  FaultyDevice(std::unique_ptr<Device> inner, Faults& faults) : inner_(std::move(inner)), faults_(faults) {}
  std::string name() const override { return inner_->name(); }
  void* take(int64_t bytes) override { return inner_->take(bytes); }
  void give(void* data, int64_t bytes) noexcept override { inner_->give(data, bytes); }
  int64_t free_bytes() const override { return inner_->free_bytes(); }
  std::unique_ptr<Backend> open_backend() override {
    return std::make_unique<FaultyBackend>(inner_->open_backend(), faults_);
  }

 private:
  std::unique_ptr<Device> inner_;
  Faults& faults_;
};

}  // namespace cachalot::testing
