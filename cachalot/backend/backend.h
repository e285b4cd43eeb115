// The seam between layers and hardware. A Device owns memory; a Backend executes operations in the order
// given on one stream of one device. Calls return at once: results are there after synchronize() (CPU
// backends happen to be done on return; fake/ is not, so that code which would forget the wait fails on a
// laptop).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "backend/ops.h"
#include "base/error.h"
#include "tensor/tensor.h"

namespace cachalot {

// A point in a stream's work that another stream can wait for.
class Event {
 public:
  virtual ~Event() = default;
  // Seconds between `earlier` and this on the device's own clock, once both have passed; negative where the
  // device has no clock of its own (then the host's is as good, around synchronize()).
  virtual double seconds_after(const Event& /*earlier*/) const { return -1; }
};
using EventPtr = std::shared_ptr<Event>;

// Operations queued once and repeated at the cost of one launch.
class Graph {
 public:
  virtual ~Graph() = default;
};
using GraphPtr = std::shared_ptr<Graph>;

class Backend {
 public:
  virtual ~Backend() = default;

  // Host to device and back; dst/src contiguous or not. upload copies `host` before it returns (the caller
  // may reuse it at once); download fills `host` by the next synchronize(). `host` is contiguous: rows * cols
  // elements.
  virtual void upload(const void* host, Tensor dst) = 0;
  virtual void download(Tensor src, void* host) = 0;
  virtual void
  synchronize() = 0;  // waits for everything queued on this stream; rethrows what an operation threw

  virtual EventPtr record() = 0;  // after everything queued so far
  virtual void wait(
      const EventPtr& e) = 0;  // later work of this stream starts after e; the host does not wait

  // Takes down what `work` queues on this stream (operations only: no transfers, no waiting) instead of
  // running it; replay() then runs it on the same memory. nullptr, and nothing was called, where queueing is
  // as cheap (CPU): the caller then queues the work itself, each time.
  virtual GraphPtr capture(const std::function<void()>& /*work*/) { return nullptr; }
  virtual void replay(const GraphPtr&) { CHECK(false, "this device captures no graphs"); }

  // From now on a row's bits depend on its own numbers only, in every operation that decoding consists of, however
  // many rows stand beside it (docs/numerics.md). Where that always holds (ref, cpu) there is nothing to do.
  virtual void fix_rows(bool /*fixed*/) {}

#define CACHALOT_DECLARE(name, Args) virtual void name(const Args&) = 0;
  CACHALOT_OPS(CACHALOT_DECLARE)
#undef CACHALOT_DECLARE
};

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;  // "cpu (2 threads)"
  // Memory, 256-byte aligned, contents unspecified; nullptr when there is not enough.
  virtual void* take(int64_t bytes) = 0;
  virtual void give(void* data, int64_t bytes) noexcept = 0;
  virtual int64_t free_bytes() const = 0;
  virtual std::unique_ptr<Backend> open_backend() = 0;  // a new stream
};

// A stream of work on a device. `on(s).gemm({...})` queues.
class Stream {
 public:
  explicit Stream(Device& device) : device_(&device), backend_(device.open_backend()) {}
  Device& device() const { return *device_; }
  Backend& backend() const { return *backend_; }

 private:
  Device* device_;
  std::unique_ptr<Backend> backend_;
};

inline Backend& on(Stream& s) { return s.backend(); }

struct DeviceOptions {
  int threads = 0;         // cpu: 0 = all that the machine and the container allow
  uint64_t fake_seed = 0;  // fake: order in which independent streams run
};

// "cpu": threads, any x86 or ARM. "cuda", "cuda:1": a GPU of NVIDIA's, by number. "ref": double, scalar, the
// oracle. "fake": cpu behind a queue (fake/fake_device.h). "plan": memory that is never touched and operations
// that never run, to measure what a step would take. Unknown names and devices that this build or machine
// lacks throw Error.
std::unique_ptr<Device> open_device(const std::string& name, const DeviceOptions& options = {});

}  // namespace cachalot
