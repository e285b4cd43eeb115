// For kernels that walk the blocks of packed sequences whose lengths lie on the device.
#pragma once

#include "backend/cuda/attention.h"

namespace cachalot::cuda {

// A block of rows of one sequence, of queries or of keys.
struct Piece {                  // no initialisers: it stands in shared memory
  int64_t q, queries, k, keys;  // the sequence's first row and number of rows
  int64_t first;                // of the block, in the sequence
  bool none;                    // there are no more blocks
  __device__ int64_t visible(int64_t i) const { return keys - queries + i + 1; }  // keys that query i sees
};

// Block `index` of the blocks of `size` rows (of queries, or of keys) of all sequences in order. Called by
// one whole warp. A sequence whose rows are not inside q and k has none, and the fault is told.
__device__ inline Piece find_piece(const AttentionShape& shape, int64_t q_rows, int64_t k_rows,
                                   bool of_queries, int64_t size, int64_t index, const Faults& faults,
                                   FaultOf op) {
  const int32_t* q_starts = static_cast<const int32_t*>(shape.q_starts.data);
  const int32_t* k_starts = static_cast<const int32_t*>(shape.k_starts.data);
  const int lane = threadIdx.x % 32;
  int64_t before = 0;
  for (int64_t base = 0; base < shape.sequences; base += 32) {
    const int64_t s = base + lane;
    int64_t q = 0, queries = 0, k = 0, keys = 0, blocks = 0;
    if (s < shape.sequences) {
      q = q_starts[s], queries = q_starts[s + 1] - q, k = k_starts[s], keys = k_starts[s + 1] - k;
      if (faults.fine(op, q, q_rows + 1) && faults.fine(op, queries, q_rows - q + 1) &&
          faults.fine(op, k, k_rows + 1) && faults.fine(op, keys, k_rows - k + 1) &&
          faults.fine(op, queries, keys + 1))
        blocks = ((of_queries ? queries : keys) + size - 1) / size;
    }
    int64_t sum = blocks;
    for (int step = 1; step < 32; step *= 2) {
      const int64_t other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    const unsigned found = __ballot_sync(~0u, before + sum > index);
    if (found) {
      const int at = __ffs(found) - 1;
      Piece p;
      p.q = __shfl_sync(~0u, q, at);
      p.queries = __shfl_sync(~0u, queries, at);
      p.k = __shfl_sync(~0u, k, at);
      p.keys = __shfl_sync(~0u, keys, at);
      p.first = (index - before - __shfl_sync(~0u, sum - blocks, at)) * size;
      p.none = false;
      return p;
    }
    before += __shfl_sync(~0u, sum, 31);
  }
  Piece p;
  p.q = p.queries = p.k = p.keys = p.first = 0;
  p.none = true;
  return p;
}

}  // namespace cachalot::cuda
