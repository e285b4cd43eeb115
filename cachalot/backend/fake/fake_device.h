// A device for tests that behaves like a GPU where a CPU would forgive:
//   - operations, uploads and downloads are queued and run only in synchronize();
//   - memory is unreadable (PROT_NONE) except while they run: code that touches it dies at that line;
//   - fresh memory and the targets of downloads hold NaN until something is written there;
//   - streams without an event between them run in an order drawn from the seed: a missing wait shows up;
//   - memory given back while queued work uses it is reported by the next synchronize() of that stream;
//   - an access behind a block (rounded up to 256 bytes) dies.
// Operations run on a cpu or ref backend inside, so results are theirs.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace cachalot {

struct FakeOptions {
  enum class Inner { cpu, ref };
  Inner inner = Inner::cpu;
  int threads = 0;    // of the cpu device inside; 0: all
  uint64_t seed = 0;  // order of independent streams
};

struct FakeCounters {
  int64_t synchronizes = 0;            // calls of synchronize()
  int64_t operations = 0;              // that have run
  int64_t uploads = 0, downloads = 0;  // calls
  int64_t queued = 0;                  // waiting now, events and copies included
};

class FakeDevice : public Device {
 public:
  explicit FakeDevice(const FakeOptions& options);
  ~FakeDevice() override;
  std::string name() const override;
  void* take(int64_t bytes) override;
  void give(void* data, int64_t bytes) noexcept override;
  int64_t free_bytes() const override;
  std::unique_ptr<Backend> open_backend() override;

  FakeCounters counters() const;
  int64_t blocks() const;  // held by the program, or given back and still in use by queued work

  class Queues;

 private:
  std::shared_ptr<Queues> queues_;  // streams keep it alive
};

std::unique_ptr<FakeDevice> open_fake_device(const FakeOptions& options = {});

}  // namespace cachalot
