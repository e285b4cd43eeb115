#include "data/piece_counts.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "base/error.h"

namespace cachalot {

namespace {

constexpr size_t kBlock = 1 << 16;  // bytes

uint32_t hash_of(std::string_view piece) {
  const uint64_t h = std::hash<std::string_view>()(piece);
  return uint32_t(h ^ h >> 32);
}

}  // namespace

PieceCounts::Slot& PieceCounts::find(std::string_view piece, uint32_t hash) {
  const auto is_piece = [&](const Slot& slot) {
    return slot.hash == hash && std::string_view(slot.bytes, slot.size) == piece;
  };
  size_t at = hash & (slots_.size() - 1);
  while (slots_[at].bytes && !is_piece(slots_[at])) at = (at + 1) & (slots_.size() - 1);
  return slots_[at];
}

void PieceCounts::add(std::string_view piece, int64_t count) {
  CHECK(!piece.empty() && piece.size() <= UINT32_MAX);
  const uint32_t hash = hash_of(piece);
  Slot& slot = find(piece, hash);
  if (slot.bytes) {
    slot.count += count;
    return;
  }
  slot = {.bytes = keep(piece), .size = uint32_t(piece.size()), .hash = hash, .count = count};
  if (++size_ * 2 > slots_.size()) grow();
}

const char* PieceCounts::keep(std::string_view piece) {
  if (piece.size() > block_left_) {
    block_left_ = std::max(kBlock, piece.size());
    blocks_.push_back(std::make_unique_for_overwrite<char[]>(block_left_));
    if (block_left_ > kBlock) {  // fills its block alone
      std::memcpy(blocks_.back().get(), piece.data(), piece.size());
      block_left_ = 0;
      return blocks_.back().get();
    }
  }
  char* bytes = blocks_.back().get() + (kBlock - block_left_);
  std::memcpy(bytes, piece.data(), piece.size());
  block_left_ -= piece.size();
  return bytes;
}

void PieceCounts::grow() {
  std::vector<Slot> old(2 * slots_.size());
  old.swap(slots_);
  for (const Slot& slot : old) {
    if (!slot.bytes) continue;
    size_t at = slot.hash & (slots_.size() - 1);
    while (slots_[at].bytes) at = (at + 1) & (slots_.size() - 1);
    slots_[at] = slot;
  }
}

}  // namespace cachalot
