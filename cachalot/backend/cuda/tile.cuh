// For kernels that walk the tiles of a batch of products whose row counts lie on the device.
#pragma once

#include "backend/cuda/product.h"

namespace cachalot::cuda {

// The rows of problem z. Offsets come from device memory: a wrong one must not become a wild access.
struct Range {
  int64_t begin, size;
};
__device__ inline Range range_of(const Products& p, int64_t z) {
  const int64_t begin = p.offsets[z], end = p.offsets[z + 1];
  const bool fine = p.faults.fine(p.op, begin, p.total + 1) && p.faults.fine(p.op, end, p.total + 1) &&
                    p.faults.fine(p.op, end - begin, p.total + 1) &&
                    (z > 0 || p.faults.fine(p.op, -begin, 1));
  return {fine ? begin : 0, fine ? end - begin : 0};
}

struct Tile {                 // no initialisers: it stands in shared memory
  int64_t problem, row, col;  // problem -1: there are no more
  int64_t begin, size;        // ragged: its offset and how many rows it owns
};

// Tile `index` of all: problems in order, in each the columns of a row of tiles before the next row. Called
// by one whole warp.
__device__ inline Tile find_tile(const Products& p, int64_t tile_rows, int64_t tile_cols, int64_t index) {
  const int64_t across = (p.n + tile_cols - 1) / tile_cols;
  Tile t{.problem = -1, .row = 0, .col = 0, .begin = 0, .size = 0};
  if (p.ragged != Products::Ragged::rows) {
    const int64_t each = (p.m + tile_rows - 1) / tile_rows * across;
    const int64_t z = index / each;
    if (z >= p.count) return t;
    t.problem = z;
    t.row = index % each / across * tile_rows;
    t.col = index % each % across * tile_cols;
    if (p.ragged == Products::Ragged::depth) {
      const Range range = range_of(p, z);
      t.begin = range.begin;
      t.size = range.size;
    }
    return t;
  }
  const int lane = threadIdx.x % 32;
  int64_t before = 0;
  for (int64_t first = 0; first < p.count; first += 32) {
    const int64_t z = first + lane;
    const Range range = z < p.count ? range_of(p, z) : Range{0, 0};
    const int64_t tiles = (range.size + tile_rows - 1) / tile_rows * across;
    int64_t sum = tiles;  // inclusive prefix over the warp
    for (int step = 1; step < 32; step *= 2) {
      const int64_t other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    const unsigned found = __ballot_sync(~0u, before + sum > index);
    if (found) {
      const int at = __ffs(found) - 1;
      t.problem = first + at;
      t.begin = __shfl_sync(~0u, range.begin, at);
      t.size = __shfl_sync(~0u, range.size, at);
      const int64_t within = index - (before + __shfl_sync(~0u, sum - tiles, at));
      t.row = within / across * tile_rows;
      t.col = within % across * tile_cols;
      return t;
    }
    before += __shfl_sync(~0u, sum, 31);
  }
  return t;
}

// The most tiles there can be, as far as the host knows.
inline int64_t most_tiles(const Products& p, int64_t tile_rows, int64_t tile_cols) {
  const int64_t across = (p.n + tile_cols - 1) / tile_cols;
  if (p.ragged == Products::Ragged::rows)
    return (p.total / tile_rows + (p.count < p.total ? p.count : p.total)) * across;
  return (p.m + tile_rows - 1) / tile_rows * across * p.count;
}

}  // namespace cachalot::cuda
