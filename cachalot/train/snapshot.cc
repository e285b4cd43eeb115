#include "train/snapshot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "backend/host_memory.h"

namespace cachalot {

namespace {

constexpr int64_t kAlignment = 256;
int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// What stays free beside a copy: for streams, files in memory and other programs.
int64_t margin(int64_t bytes) { return std::max<int64_t>(int64_t{64} << 20, bytes / 8); }

}  // namespace

Snapshot::Snapshot(Device& device, const std::vector<StateTensor>& state) {
  int64_t on_device = 0, on_host = 0;
  for (const StateTensor& t : state) {
    CHECK(t.tensor.ld == t.tensor.cols && !t.tensor.scales, t.name + " is " + t.tensor.describe());
    (t.on_host ? on_host : on_device) += aligned(bytes_of(t.tensor));
  }
  if (on_device + margin(on_device) <= device.free_bytes()) {
    try {
      device_memory_ = Buffer(device, on_device, "the copy that checkpoints are written from");
    } catch (const Error&) {  // taken by others meanwhile
    }
  }
  const int64_t host_bytes = on_host + (device_memory_.data() ? 0 : on_device);
  if (host_bytes > 0 && fits_host_memory(host_bytes + margin(host_bytes)))
    host_memory_ = take_host_memory(host_bytes);
  if (host_bytes > 0 && !host_memory_) {
    device_memory_ = Buffer();
    return;
  }
  place_ = device_memory_.data() ? Place::device : Place::host;
  bytes_ = on_device + on_host;
  auto* at = static_cast<uint8_t*>(device_memory_.data());
  auto* host_at = static_cast<uint8_t*>(host_memory_);
  for (StateTensor t : state) {
    t.on_host = t.on_host || place_ == Place::host;
    uint8_t*& place = t.on_host ? host_at : at;
    t.tensor.data = place;
    place += aligned(bytes_of(t.tensor));
    copies_.push_back(std::move(t));
  }
}

Snapshot::~Snapshot() {
  if (host_memory_) give_host_memory(host_memory_);
}

void Snapshot::take(Stream& s, const std::vector<StateTensor>& state) {
  if (place_ == Place::nowhere) {
    on(s).synchronize();
    copies_ = state;
    return;
  }
  CHECK(state.size() == copies_.size());
  for (size_t i = 0; i < state.size(); ++i) {
    const StateTensor &from = state[i], &to = copies_[i];
    CHECK(from.name == to.name && same_shape(from.tensor, to.tensor), from.name);
    if (from.on_host) std::memcpy(to.tensor.data, from.tensor.data, size_t(bytes_of(from.tensor)));
    else if (to.on_host) on(s).download(from.tensor, to.tensor.data);
    else on(s).cast({.x = from.tensor, .y = to.tensor});
  }
  on(s).synchronize();
}

}  // namespace cachalot
