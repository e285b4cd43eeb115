// The oracle: every operation in double, one number after the other, as its contract writes it. Slow on
// purpose. One file an operation family; accumulation is in double wherever the formula has a sum.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace cachalot {

class RefBackend final : public Backend {
 public:
  void upload(const void* host, Tensor dst) override;
  void download(Tensor src, void* host) override;
  void synchronize() override {}  // everything is done on return
  EventPtr record() override { return std::make_shared<Event>(); }
  void wait(const EventPtr& e) override { CHECK(e != nullptr, "wait for an event that was never recorded"); }

#define CACHALOT_OVERRIDE(name, Args) void name(const Args&) override;
  CACHALOT_OPS(CACHALOT_OVERRIDE)
#undef CACHALOT_OVERRIDE
};

std::unique_ptr<Device> open_ref_device();

}  // namespace cachalot
