// How often each distinct string occurs: what BPE training keeps of a text.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

namespace cachalot {

// Open addressing with linear probing; the strings' bytes are copied once into blocks that never move.
// Memory: 24 bytes a slot, at most half of them full, and the distinct strings.
class PieceCounts {
 public:
  PieceCounts() : slots_(1 << 10) {}

  void add(std::string_view piece, int64_t count);  // piece: not empty, less than 4 GiB
  size_t size() const { return size_; }             // distinct strings

  // Calls each(string, count) for every string, in no particular order.
  template <class Each> void for_each(const Each& each) const {
    for (const Slot& slot : slots_)
      if (slot.bytes) each(std::string_view(slot.bytes, slot.size), slot.count);
  }

 private:
  struct Slot {
    const char* bytes = nullptr;  // none: free
    uint32_t size = 0, hash = 0;
    int64_t count = 0;
  };
  Slot& find(std::string_view piece, uint32_t hash);
  const char* keep(std::string_view piece);
  void grow();

  std::vector<Slot> slots_;
  size_t size_ = 0;
  std::vector<std::unique_ptr<char[]>> blocks_;
  size_t block_left_ = 0;  // bytes not used of the last block
};

}  // namespace cachalot
