// Device memory with an owner.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include "backend/backend.h"

namespace cachalot {

class Buffer {  // owns bytes on one device, frees them once; move-only: a copy would be a hidden transfer
 public:
  Buffer() = default;
  // Throws Error naming `purpose` ("optimizer state"), the size and what is free.
  Buffer(Device& device, int64_t bytes, std::string_view purpose);
  Buffer(Buffer&& o) noexcept
      : device_(o.device_), data_(std::exchange(o.data_, nullptr)), bytes_(std::exchange(o.bytes_, 0)) {}
  Buffer& operator=(Buffer&& o) noexcept {
    std::swap(device_, o.device_);
    std::swap(data_, o.data_);
    std::swap(bytes_, o.bytes_);
    return *this;
  }
  ~Buffer() {
    if (data_) device_->give(data_, bytes_);
  }
  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  Device* device_ = nullptr;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Memory of one micro-batch: taken in order, given back all at once or down to a mark (a stack). Sized once
// before the first step by running the step on the "plan" device and reading high_water(); running out is a
// bug of ours.
class Arena {
 public:
  Arena() = default;
  Arena(Device& device, int64_t bytes, std::string_view purpose) : buffer_(device, bytes, purpose) {}

  Tensor take(DType dtype, int64_t rows, int64_t cols);  // contiguous, 256-byte aligned, contents unspecified
  Tensor take_like(const Tensor& t) { return take(t.dtype, t.rows, t.cols); }
  Tensor take_vector(DType dtype, int64_t n) { return take(dtype, 1, n); }

  int64_t mark() const { return used_; }
  void release(int64_t mark) { used_ = mark; }
  void clear() { used_ = 0; }
  int64_t used() const { return used_; }
  int64_t high_water() const { return high_water_; }
  int64_t capacity() const { return buffer_.bytes(); }

  // Scratch that ends with a block of code: `Arena::Scope scope(arena);`. Safe because the work that uses the
  // memory and the work that reuses it are queued on the same stream.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
    ~Scope() { arena_.release(mark_); }
    Scope(const Scope&) = delete;

   private:
    Arena& arena_;
    int64_t mark_;
  };

 private:
  Buffer buffer_;
  int64_t used_ = 0, high_water_ = 0;
};

}  // namespace cachalot
