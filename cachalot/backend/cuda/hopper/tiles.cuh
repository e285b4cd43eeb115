// Which tile a block computes next. Blocks are persistent: the grid is as large as the machine, and block (or
// cluster) number c takes units c, c + count, c + 2 count, ... of a list that everybody can work out alone.
//
// A unit is one tile of D, or two side by side that a cluster computes together (fp8_gemm.cuh, "Sharing"). Units
// of a matrix are counted in bands: `band` units high, and within a band column by column, so that the
// blocks of a moment ask for few different rows of A and of B and find them in L2:
//     0 2 4 |        band = 2
//     1 3 5 |
//     6 8 10         a lower band follows
#pragma once

#include "backend/cuda/faults.cuh"
#include "backend/cuda/hopper/barrier.cuh"
#include "backend/cuda/hopper/fp8_kernel.h"

namespace cachalot::cuda::hopper {

struct TileGrid {
  int units_m = 0, units_n = 0, band = 1;  // none, depth: of one matrix; rows, count: units_m is not read
  int depth = 0;                           // K, where it does not depend on the expert
  int parts = 1, max_rows = 0;
  const int* offsets = nullptr;  // [parts + 1], or counts [parts]; depth, one part: may be absent
  int limit = INT32_MAX;         // offsets end here or before (count: counts[e])
  Faults faults = {};            // who is told if not; the expert is then empty
  FaultOf fault_of = FaultOf::grouped_gemm;

  // Whether [first, end) can be an expert's.
  __device__ bool fine(int part, int first, int end) const {
    if (0 <= first && first <= end && end <= limit && (part > 0 || first == 0)) [[likely]]
      return true;
    if (faults.words) faults.fine(fault_of, end < first || end < 0 ? -1 : end, int64_t(limit) + 1);
    if (faults.words && end <= limit) faults.fine(fault_of, -1, int64_t(limit) + 1);
    return false;
  }
};

struct Tile {
  int part = 0;
  int row = 0, row_end = 0;  // rows of A and D that belong to the part; the tile begins at `row`
  int unit_m = 0, unit_n = 0;
  int k = 0, k_end = 0;
};

// One warp walks (all its lanes call next). UnitRows: rows of a unit.
template <Ragged R, int UnitRows> class Tiles {
 public:
  __device__ Tiles(const TileGrid& grid, int first, int step)
      : grid_(grid), unit_(first - step), step_(step) {
    if constexpr (R == Ragged::rows || R == Ragged::count) read_parts();
  }

  __device__ bool next(Tile& t) {
    unit_ += step_;
    int unit = unit_, units_m = grid_.units_m;
    if constexpr (R == Ragged::none) {
      if (unit >= units_m * grid_.units_n) return false;
      t.row_end = INT32_MAX, t.k = 0, t.k_end = grid_.depth;
    } else if constexpr (R == Ragged::depth) {
      t.part = unit / (units_m * grid_.units_n);
      if (t.part >= grid_.parts) return false;
      unit -= t.part * units_m * grid_.units_n;
      t.row_end = INT32_MAX;
      t.k = 0, t.k_end = grid_.depth;
      if (grid_.offsets) {
        t.k = grid_.offsets[t.part], t.k_end = grid_.offsets[t.part + 1];
        if (!grid_.fine(t.part, t.k, t.k_end)) t.k = t.k_end = 0;
      }
    } else {
      // 32 experts at a time, one a lane: the first that ends after this unit has it.
      uint32_t later;
      while ((later = __ballot_sync(~0u, unit < before_ + ends_)) == 0) {
        before_ += __shfl_sync(~0u, ends_, 31);
        first_part_ += 32;
        if (first_part_ >= grid_.parts) return false;
        read_parts();
      }
      const int lane = __ffs(int(later)) - 1;
      const int ends = __shfl_sync(~0u, ends_, lane), units = __shfl_sync(~0u, units_, lane);
      t.part = first_part_ + lane;
      t.row = __shfl_sync(~0u, row_, lane), t.row_end = __shfl_sync(~0u, row_end_, lane);
      unit -= before_ + ends - units;
      units_m = units / grid_.units_n;
      t.k = 0, t.k_end = grid_.depth;
    }
    const int in_band = grid_.band * grid_.units_n, band = unit / in_band;
    const int height = min(grid_.band, units_m - band * grid_.band);
    t.unit_m = band * grid_.band + (unit - band * in_band) % height;
    t.unit_n = (unit - band * in_band) / height;
    if constexpr (R == Ragged::rows || R == Ragged::count) t.row += t.unit_m * UnitRows;
    else t.row = t.unit_m * UnitRows;
    return true;
  }

 private:
  __device__ void read_parts() {
    const int lane = int(threadIdx.x % 32), e = first_part_ + lane;
    row_ = row_end_ = 0;
    if (e < grid_.parts) {
      if constexpr (R == Ragged::rows) {
        row_ = grid_.offsets[e], row_end_ = grid_.offsets[e + 1];
        if (!grid_.fine(e, row_, row_end_)) row_ = row_end_ = 0;
      } else {
        const int count = grid_.offsets[e];
        row_ = e * grid_.max_rows, row_end_ = row_ + (grid_.fine(0, 0, count) ? count : 0);
      }
    }
    units_ = (max(row_end_ - row_, 0) + UnitRows - 1) / UnitRows * grid_.units_n;
    ends_ = units_;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int above = __shfl_up_sync(~0u, ends_, step);
      if (lane >= step) ends_ += above;
    }
  }

  const TileGrid& grid_;
  int unit_, step_;
  int first_part_ = 0, before_ = 0;                   // of the 32 experts at hand; units before them
  int row_ = 0, row_end_ = 0, units_ = 0, ends_ = 0;  // of this lane's expert; ends_: units up to its end
};

}  // namespace cachalot::cuda::hopper
