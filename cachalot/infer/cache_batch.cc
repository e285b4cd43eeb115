#include "infer/cache_batch.h"

#include <algorithm>

namespace cachalot {

CacheBatch::CacheBatch(IndexPack& pack, Attend attend, std::span<const CacheRows> sequences,
                       int64_t table_width)
    : attend_(attend) {
  CHECK(attend != Attend::self && !sequences.empty());
  page_size_ = sequences[0].pages->page_size();
  std::vector<int32_t> tokens, positions, slots, key_slots, key_starts{0}, kv_lens;
  size_t widest = size_t(table_width);  // pages of the longest sequence
  for (auto* v : {&tokens, &positions, &slots, &kv_lens, &starts_}) v->reserve(sequences.size() + 1);
  for (const CacheRows& q : sequences) {
    const int64_t rows = int64_t(q.tokens.size()), length = q.first + rows;
    tokens.insert(tokens.end(), q.tokens.begin(), q.tokens.end());
    for (int64_t p = q.first; p < length; ++p) {
      positions.push_back(int32_t(p));
      slots.push_back(int32_t(q.pages->slot(p)));
    }
    starts_.push_back(int32_t(tokens.size()));
    kv_lens.push_back(int32_t(length));
    widest = std::max(widest, size_t((length + page_size_ - 1) / page_size_));
    if (attend == Attend::expand) {
      for (int64_t p = 0; p < length; ++p) key_slots.push_back(int32_t(q.pages->slot(p)));
      key_starts.push_back(int32_t(key_slots.size()));
    }
  }
  tokens_ = pack.add(std::move(tokens));
  positions_ = pack.add(std::move(positions));
  starts_handle_ = pack.add(starts_);
  slots_ = pack.add(std::move(slots));
  if (attend == Attend::expand) {
    key_rows_ = int64_t(key_slots.size());
    key_slots_ = pack.add(std::move(key_slots));
    key_starts_ = pack.add(std::move(key_starts));
  } else {
    std::vector<int32_t> table;
    table.reserve(sequences.size() * widest);
    for (const CacheRows& q : sequences) {
      const auto pages = q.pages->pages();
      const size_t held = std::min(widest, pages.size());
      table.insert(table.end(), pages.begin(), pages.begin() + std::ptrdiff_t(held));
      table.insert(table.end(), widest - held, -1);
    }
    page_table_ = pack.add(std::move(table));
    kv_lens_ = pack.add(std::move(kv_lens));
  }
}

TokenBatch CacheBatch::view(const IndexPack& pack) const {
  const int64_t sequences = int64_t(starts_.size()) - 1;
  TokenBatch batch;
  batch.rows = rows();
  batch.sequences = sequences;
  batch.tokens = pack.view(tokens_);
  batch.positions = pack.view(positions_);
  batch.starts = pack.view(starts_handle_);
  batch.attend = attend_;
  batch.slots = pack.view(slots_);
  if (attend_ == Attend::expand) {
    batch.key_rows = key_rows_;
    batch.key_slots = pack.view(key_slots_);
    batch.key_starts = pack.view(key_starts_);
  } else {
    batch.page_size = page_size_;
    batch.page_table = pack.view(page_table_, sequences);
    batch.kv_lens = pack.view(kv_lens_);
  }
  return batch;
}

}  // namespace cachalot
