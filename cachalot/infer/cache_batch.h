// TokenBatches that read and write the latent cache: a piece of a prompt (Attend::expand) or the newest
// tokens of running sequences (Attend::absorb), one or several sequences at a time.
#pragma once

#include <span>
#include <vector>

#include "infer/kv_cache.h"
#include "model/batch.h"

namespace cachalot {

// What one sequence puts into a batch: neighbouring positions; everything before them is in the cache.
struct CacheRows {
  int64_t first = 0;                 // position of the first row
  std::vector<int32_t> tokens;       // one a row; -1: written on the device later
  const PageTable* pages = nullptr;  // must hold the last row's position
};

// Made in two steps, so that all index vectors of a step of inference travel in one upload:
//   CacheBatch batch(pack, Attend::absorb, rows);
//   pack.upload(s, arena);
//   model.forward(s, arena, batch.view(pack), options);
class CacheBatch {
 public:
  // absorb: the page table is at least `table_width` pages wide, so that shapes need not grow with sequences.
  CacheBatch(IndexPack& pack, Attend attend, std::span<const CacheRows> sequences, int64_t table_width = 0);

  TokenBatch view(const IndexPack& pack) const;  // after the upload
  int64_t rows() const { return starts_.back(); }
  // Of 0 ... number of sequences: the last one is rows().
  int64_t first_row(size_t sequence) const { return starts_[sequence]; }

 private:
  Attend attend_;
  int64_t page_size_ = 0, key_rows_ = 0;
  std::vector<int32_t> starts_{0};
  size_t tokens_, positions_, starts_handle_, slots_;
  size_t key_slots_ = 0, key_starts_ = 0;  // expand
  size_t page_table_ = 0, kv_lens_ = 0;    // absorb
};

}  // namespace cachalot
