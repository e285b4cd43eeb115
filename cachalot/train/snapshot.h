// A copy of a run's state, taken between two steps, from which another thread writes a checkpoint while
// training goes on: training pays for the copy only.
//
// The copy lies on the device where that has room (V3's 8 bytes a parameter at the speed of its memory: 16 GB
// of traffic a billion parameters, 4 ms on an H200), else in memory of the host, through the bus. Without
// room in either, the checkpoint is written from the state itself and training waits for it.
#pragma once

#include <vector>

#include "backend/buffer.h"
#include "train/state_tensor.h"

namespace cachalot {

class Snapshot {
 public:
  enum class Place : uint8_t { device, host, nowhere };

  // Takes the memory for copies of tensors like these. `state` must name the same tensors at every take().
  Snapshot(Device& device, const std::vector<StateTensor>& state);
  ~Snapshot();
  Snapshot(const Snapshot&) = delete;

  Place place() const { return place_; }
  int64_t bytes() const { return bytes_; }  // of the copy

  // Copies after all work queued on `s`, and waits for it.
  void take(Stream& s, const std::vector<StateTensor>& state);
  // What take() copied; with Place::nowhere the state itself.
  const std::vector<StateTensor>& tensors() const { return copies_; }

 private:
  Place place_ = Place::nowhere;
  int64_t bytes_ = 0;
  Buffer device_memory_;
  void* host_memory_ = nullptr;
  std::vector<StateTensor> copies_;
};

}  // namespace cachalot
