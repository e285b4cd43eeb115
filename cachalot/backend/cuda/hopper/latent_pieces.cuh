// Where a unit's output goes in the two large kernels of absorbed MLA decoding, and how its pieces are added
// up.
//
// A piece has for each of its rows a reference m_i (an exponent of two), the sum l_i of exp2(score - m_i),
// and the values' sum o_i with the same weights:
//   o = sum_i w_i o_i / sum_i w_i l_i,   w_i = 2^(m_i - max m)
// Its tile [64, 512] lies in memory as its threads have it, f32: 256 slabs of 16 rows and 8 columns, each of
// a warp, whose lane has columns 2 (lane % 4) + {0, 1} of rows lane / 4 and lane / 4 + 8. Slab (half, warp,
// i): columns 256 half + 8 i ..., rows 16 warp ... . Writing it takes no instruction but the stores: code
// that runs once a launch costs its way from memory as well.
#pragma once

#include "backend/cuda/hopper/latent_unit.cuh"

namespace cachalot::cuda::hopper {

constexpr int kSlabs = 256, kRowSlabs = 32;  // of a tile; of 16 rows and a half of the columns

// This lane's four numbers of a slab of the piece at `slot`; slabs follow each other by 32.
__device__ __forceinline__ float4* slab_of(const LatentArgs& a, int slot, int slab, int lane) {
  return reinterpret_cast<float4*>(a.piece_o) + (int64_t(slot) * kSlabs + slab) * 32 + lane;
}
// {m, l} of a row of a piece.
__device__ __forceinline__ float2* ends_of(const LatentArgs& a, int slot, int row) {
  return reinterpret_cast<float2*>(a.piece_lse) + int64_t(slot) * kTileRows + row;
}
__device__ __forceinline__ float natural_lse(float largest, float total) {
  return total > 0 ? largest * 0.6931471805599453f + logf(total) : -INFINITY;
}

// A tile's rows, and where they go.
struct TilePlace {
  int rows, first_row;
};

// Of two rows, `row` and 8 more, the sums of slab `slab` to their place. {m, sum of w l} of each.
__device__ __forceinline__ void put_slab(const LatentArgs& a, const TilePlace& to, int row, int slab,
                                         int lane, const float2 (&ends)[2], const float4& o) {
  const int column = slab / (kSlabs / 2) * (kLatentWidth / 2) + slab % kRowSlabs * 8 + lane % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (row + 8 * half >= to.rows) continue;
    const int64_t at = int64_t(to.first_row) + row + 8 * half;
    const float over = ends[half].y > 0 ? 1 / ends[half].y : 0;
    *reinterpret_cast<uint32_t*>(a.o + at * kLatentWidth + column) =
        half == 0 ? bf16_pair(o.x * over, o.y * over) : bf16_pair(o.z * over, o.w * over);
    if (a.lse && column == 0) a.lse[at] = natural_lse(ends[half].x, ends[half].y);
  }
}

// Warps of a warpgroup meet; whether any thread says yes.
template <uint32_t Id> __device__ __forceinline__ bool meet_any(bool yes) {
  uint32_t any;
  asm volatile(
      "{\n"
      ".reg .pred p, q;\n"
      "setp.ne.u32 p, %1, 0;\n"
      "bar.red.or.pred q, %2, 128, p;\n"
      "selp.u32 %0, 1, 0, q;\n"
      "}"
      : "=r"(any)
      : "r"(uint32_t(yes)), "n"(Id)
      : "memory");
  return __any_sync(~0u, any != 0);
}
__device__ __forceinline__ int32_t load_acquire(const int32_t* from) {
  int32_t x;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(x) : "l"(from) : "memory");
  return x;
}

__device__ __forceinline__ void store_release(int32_t* to, int32_t x) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(to), "r"(x) : "memory");
}

// By one thread of a block, once nothing of earlier kernels runs any more: launches follow each other whole,
// so that the count is a multiple of their blocks when all of one have begun.
__device__ __forceinline__ void count_begun(const PlanView& plan) {
  asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(&plan.head().begun) : "memory");
}
// Waits for a flag that another block of the launch raises; false: some have not begun, and might not before
// this one ends.
__device__ __forceinline__ bool comes(const PlanView& plan, const int32_t* flag) {
  if (load_acquire(flag) != 0) return true;
  if (uint32_t(load_acquire(&plan.head().begun)) % gridDim.x != 0) return false;
  while (load_acquire(flag) == 0) {
  }
  return true;
}

// A unit's output: 256 columns, the left or the right half. A sequence's only piece goes to its place, others
// to memory. Of two pieces of a sequence that was cut evenly, the second is the beginning of the next part's
// work and mostly done when the first, the end of this part's, is: the first waits for it and adds it up from
// its registers. But beside other work on the card the block of the second may not run before this one ends.
// Unless all blocks of the launch have begun, the first goes to memory as well, and merge_pieces adds them
// up, as it does more than two, to the same bits.
// (Branches are taken by whole warps, and said to be: else the loop around this keeps its addresses in other
// than uniform registers and takes 5 % longer.)
template <bool kRight> __device__ __forceinline__ void write_unit(const LatentArgs& a, const Unit& u,
                                                                  int tile, float (&o)[128], const Rows& rows,
                                                                  const float (&sum)[2], int row, int lane) {
  constexpr int kColumn = kRight ? kLatentWidth / 2 : 0;
  constexpr uint32_t kAlone = kRight ? kRightOnly : kLeftOnly, kAll = ~0u;
  const int heads = int(a.step.heads), tiles = u.shape.tiles(heads), slot = u.slot + u.piece * tiles + tile,
            slab = (kRight ? kSlabs / 2 : 0) + row / 16 * kRowSlabs;
  const TilePlace to{u.shape.queries * heads - tile * kTileRows,
                     u.shape.first_row * heads + tile * kTileRows};
  const bool first = threadIdx.x % 128 == 0, cut = __any_sync(kAll, u.slots > 0),
             two = __any_sync(kAll, a.step.unit == 0 && u.slots == 2 * tiles);
  int32_t* const there = a.plan.flags(a.step.sequences) + 2 * (u.slot + tile) + kRight;  // the second of two
  float2 ends[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) ends[half] = make_float2(rows.largest[half] * a.scale2, sum[half]);
  bool other_there = false;
  if (__any_sync(kAll, two && u.piece == 0)) other_there = meet_any<kAlone>(first && comes(a.plan, there));
  if (cut && !other_there) {
    if (__any_sync(kAll, row < to.rows)) {
      float4* const piece = slab_of(a, slot, slab, lane);
#pragma unroll
      for (int i = 0; i < kRowSlabs; ++i)
        piece[32 * i] = make_float4(o[4 * i], o[4 * i + 1], o[4 * i + 2], o[4 * i + 3]);
      if (lane % 4 == 0)  // by each half, the same
        *ends_of(a, slot, row) = ends[0], *ends_of(a, slot, row + 8) = ends[1];
    }
    if (two && u.piece == 1) {
      __threadfence();
      meet(kAlone, 128);
      if (first) store_release(there, 1);
    } else if (two && first) {
      int32_t* const left = a.plan.left(a.step);
      const int at = atomicAdd(left, 1);
      left[1 + 2 * at] = u.sequence, left[2 + 2 * at] = 2 * tile + kRight;
    }
    return;
  }
  if (other_there) {
    float mine[2], its[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 y = __ldcg(ends_of(a, slot + tiles, row + 8 * half));
      const float m = fmaxf(ends[half].x, y.x);
      mine[half] = exp2_of(ends[half].x - m), its[half] = exp2_of(y.x - m);
      ends[half] = make_float2(m, fmaf(its[half], y.y, __fmul_rn(mine[half], ends[half].y)));
    }
    const float4* const piece = slab_of(a, slot + tiles, slab, lane);
#pragma unroll
    for (int i = 0; i < kRowSlabs; ++i) {
      if (i % 8 == 0) meet(kAlone, 128);  // so many loads at a time as registers allow
      const float4 y = __ldcg(piece + 32 * i);
      o[4 * i] = fmaf(its[0], y.x, __fmul_rn(mine[0], o[4 * i]));
      o[4 * i + 1] = fmaf(its[0], y.y, __fmul_rn(mine[0], o[4 * i + 1]));
      o[4 * i + 2] = fmaf(its[1], y.z, __fmul_rn(mine[1], o[4 * i + 2]));
      o[4 * i + 3] = fmaf(its[1], y.w, __fmul_rn(mine[1], o[4 * i + 3]));
    }
    if (first) *there = 0;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool fits = row + 8 * half < to.rows;
    const int64_t at = int64_t(to.first_row) + row + 8 * half;
    const float over = ends[half].y > 0 ? 1 / ends[half].y : 0;
    bf16* const place = a.o + at * kLatentWidth + kColumn + lane % 4 * 8;
#pragma unroll
    for (int i = 0; i < 32; i += 4) {
      uint32_t x[4];
#pragma unroll
      for (int j = 0; j < 4; ++j)
        x[j] = bf16_pair(o[4 * (i + j) + 2 * half] * over, o[4 * (i + j) + 2 * half + 1] * over);
      gather_words(x, lane);
      if (fits) *reinterpret_cast<uint4*>(place + 8 * i) = make_uint4(x[0], x[1], x[2], x[3]);
    }
    if (fits && a.lse && !kRight && lane % 4 == 0) a.lse[at] = natural_lse(ends[half].x, ends[half].y);
  }
}

}  // namespace cachalot::cuda::hopper
