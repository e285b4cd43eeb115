#include "backend/cpu/scratch.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#include "base/error.h"

namespace cachalot::cpu {

namespace {

constexpr int64_t kAlign = 64, kSmallest = int64_t(1) << 20;

int64_t round_up(int64_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

}  // namespace

void ScratchStack::Free::operator()(void* p) const { std::free(p); }

ScratchStack& ScratchStack::of_this_thread() {
  thread_local ScratchStack stack;
  return stack;
}

void* ScratchStack::take(int64_t bytes) {
  CHECK(bytes >= 0);
  bytes = round_up(std::max<int64_t>(bytes, 1));
  while (top_.block < blocks_.size() && top_.used + bytes > blocks_[top_.block].bytes) {
    ++top_.block;
    top_.used = 0;
  }
  if (top_.block == blocks_.size()) {
    const int64_t size = std::max(bytes, blocks_.empty() ? kSmallest : 2 * blocks_.back().bytes);
    void* data = std::aligned_alloc(kAlign, size_t(size));
    if (!data) throw std::bad_alloc();
    blocks_.push_back({std::unique_ptr<void, Free>(data), size});
  }
  void* result = static_cast<uint8_t*>(blocks_[top_.block].data.get()) + top_.used;
  top_.used += bytes;
  return result;
}

void ScratchStack::release(Mark m) {
  top_ = m;
  if (m.block == 0 && m.used == 0 && blocks_.size() > 1) {  // nothing is in use: keep the largest, it doubles
    std::swap(blocks_.front(), blocks_.back());
    blocks_.resize(1);
  }
}

}  // namespace cachalot::cpu
