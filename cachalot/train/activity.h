// What a run is doing right now, for whoever must say what hung: the training thread writes, the watchdog
// reads. Names are string literals.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "backend/backend.h"

namespace cachalot {

struct Activity {
  std::atomic<int64_t> step{0};
  std::atomic<const char*> phase{"starting"};
  std::atomic<int64_t> part{0};      // of the phase: the micro-batch, from 1; 0: no parts
  std::atomic<const char*> op{""};   // the operation that was called last
  std::atomic<int64_t> calls{0};     // of operations
  std::atomic<bool> in_call{false};  // it has not returned
  std::atomic<int64_t> progress{
      0};  // grows with every phase, upload and wait for the device, and piece of a checkpoint

  void enter(const char* what, int64_t which = 0) {
    phase = what;
    part = which;
    ++progress;
  }
};

// A device that notes in `activity` which operation of its streams is called. Both outlive it.
std::unique_ptr<Device> open_followed_device(Device& inner, Activity& activity);

// The device within a followed one, else the device itself: for threads beside the training thread, whose
// operations are none of what it does.
Device& unfollowed(Device& device);

}  // namespace cachalot
