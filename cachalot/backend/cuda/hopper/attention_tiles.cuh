// The work of an attention kernel: blocks of rows of packed sequences whose lengths lie on the device, for
// one head after the other, and the pieces that the forward and the backward share.
#pragma once

#include "backend/cuda/faults.cuh"
#include "backend/cuda/hopper/barrier.cuh"
#include "backend/cuda/hopper/tma.cuh"
#include "backend/cuda/hopper/wgmma.cuh"

namespace cachalot::cuda::hopper {

constexpr int kNope = 128, kRope = 64, kWide = kNope + kRope, kValue = 128,
              kBox = 64;  // kBox: columns a copy
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

struct Sequences {
  const int32_t *q_starts, *k_starts;
  int32_t count, q_rows, k_rows;
  Faults faults;
  FaultOf op;
};

// A block of rows of one sequence and head. Rows are counted in the whole batch for q and k, in the sequence
// for first.
struct AttentionTile {  // no initialisers: it stands in shared memory
  int32_t head;         // -1: there are no more
  int32_t sequence, q, queries, k, keys, first;
  __device__ int32_t visible(int32_t i) const { return keys - queries + i + 1; }  // keys that query i sees
};

// Lane's sequence base + lane: its rows, and how many blocks of `size` rows (of queries or of keys) it has;
// none when its rows are not inside q and k.
__device__ inline int32_t blocks_of(const Sequences& all, int32_t s, bool of_queries, int32_t size,
                                    AttentionTile& t) {
  t.sequence = s, t.q = t.queries = t.k = t.keys = 0;
  if (s >= all.count) return 0;
  t.q = all.q_starts[s], t.queries = all.q_starts[s + 1] - t.q;
  t.k = all.k_starts[s], t.keys = all.k_starts[s + 1] - t.k;
  const bool fine = all.faults.fine(all.op, t.q, int64_t(all.q_rows) + 1) &&
                    all.faults.fine(all.op, t.queries, int64_t(all.q_rows) - t.q + 1) &&
                    all.faults.fine(all.op, t.k, int64_t(all.k_rows) + 1) &&
                    all.faults.fine(all.op, t.keys, int64_t(all.k_rows) - t.k + 1) &&
                    all.faults.fine(all.op, t.queries, int64_t(t.keys) + 1);
  return fine ? ((of_queries ? t.queries : t.keys) + size - 1) / size : 0;
}

// Blocks of one head. By one whole warp.
__device__ inline int32_t count_tiles(const Sequences& all, bool of_queries, int32_t size) {
  int32_t sum = 0;
  AttentionTile t;
  for (int32_t base = 0; base < all.count; base += 32)
    sum += blocks_of(all, base + int32_t(threadIdx.x % 32), of_queries, size, t);
  return __reduce_add_sync(~0u, sum);
}

// Block `index` of one head, 0 <= index < count_tiles. By one whole warp.
__device__ inline AttentionTile find_tile(const Sequences& all, bool of_queries, int32_t size, int32_t index,
                                          int32_t head) {
  const int lane = threadIdx.x % 32;
  int32_t before = 0;
  for (int32_t base = 0;; base += 32) {
    AttentionTile t;
    const int32_t blocks = blocks_of(all, base + lane, of_queries, size, t);
    int32_t sum = blocks;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int32_t other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    const unsigned found = __ballot_sync(~0u, before + sum > index);
    if (found || base + 32 >= all.count) {
      const int at = found ? __ffs(int(found)) - 1 : 31;
      AttentionTile r;
      r.head = found ? head : -1;
      r.sequence = __shfl_sync(~0u, t.sequence, at);
      r.q = __shfl_sync(~0u, t.q, at);
      r.queries = __shfl_sync(~0u, t.queries, at);
      r.k = __shfl_sync(~0u, t.k, at);
      r.keys = __shfl_sync(~0u, t.keys, at);
      r.first = (index - before - __shfl_sync(~0u, sum - blocks, at)) * size;
      return r;
    }
    before += __shfl_sync(~0u, sum, 31);
  }
}

__device__ __forceinline__ float exp2_fast(float x) {  // 2 ulp; exp2_fast(-inf) = 0
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// {low, high} rounded to nearest even, low in the lower half.
__device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

// Rows [begin, rows) of a tile of boxes become zero; by one warpgroup, which meets
// at barrier `id` before its next product. What lies behind a sequence's end may be any number, NaN too, and
// zero times NaN would reach the sums.
template <int RowBytes>
__device__ inline void clear_rows(uint8_t* tile, int boxes, int box_bytes, int begin, int rows, uint32_t id) {
  const int chunks = (rows - begin) * (RowBytes / 16);
  for (int b = 0; b < boxes; ++b)
    for (int i = threadIdx.x % 128; i < chunks; i += 128)
      *reinterpret_cast<uint4*>(tile + b * box_bytes + begin * RowBytes + i * 16) = uint4{0, 0, 0, 0};
  shared_writes_visible();
  meet(id, 128);
}

// Four numbers a lane, number j for lane j of its group of four neighbours: afterwards lane p has number p of
// each of its group's lanes, in order of lanes.
__device__ __forceinline__ void exchange(uint32_t (&x)[4]) {
  const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
  // 2 x 2 blocks first, then their contents.
  const uint32_t a = __shfl_xor_sync(~0u, odd ? x[0] : x[1], 1),
                 b = __shfl_xor_sync(~0u, odd ? x[2] : x[3], 1);
  const uint32_t y0 = odd ? a : x[0], y1 = odd ? x[1] : a, y2 = odd ? b : x[2], y3 = odd ? x[3] : b;
  const uint32_t c = __shfl_xor_sync(~0u, high ? y0 : y2, 2), d = __shfl_xor_sync(~0u, high ? y1 : y3, 2);
  x[0] = high ? c : y0, x[1] = high ? d : y1, x[2] = high ? y2 : c, x[3] = high ? y3 : d;
}

}  // namespace cachalot::cuda::hopper
