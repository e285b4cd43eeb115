// From accumulators to a matrix in device memory.
//
// A warp owns 16 rows of a tile. It sends them 128 bytes of columns (a "slab") at a time: registers -> 2 KB
// of its own shared memory, swizzled as the copy engine expects -> one TMA store, which runs on while the
// warp goes ahead; the engine cuts at the edges of the matrix. Rows that end inside the 16 (the last ones of
// an expert) go through ordinary 16-byte stores instead: the row below belongs to somebody else.
#pragma once

#include <cuda_bf16.h>

#include "backend/cuda/hopper/fp8_kernel.h"
#include "backend/cuda/hopper/tma.cuh"
#include "backend/cuda/hopper/wgmma.cuh"

namespace cachalot::cuda::hopper {

struct OutMatrix {
  TensorMap slab = {},
            tail =
                {};  // boxes of 16 rows x 128 bytes (128-byte swizzle), and of the columns that remain (none)
  void* data = nullptr;
  int64_t ld = 0;          // elements
  int cols = 0, rows = 0;  // of a part
  bool add = false;        // f32: D += instead of D =. Each element is added to once, by the L2's adders
};

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(v);
}
__device__ __forceinline__ void store_matrices(uint32_t to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b),
               "r"(c), "r"(d)
               : "memory");
}

// Asks for what D (bf16) holds in a row, every second 64 columns from `col` on, to be in L2 soon.
template <int Slabs> __device__ __forceinline__ void fetch_stored(const OutMatrix& out, int row, int col) {
  if (row >= out.rows) return;
  const auto* from = static_cast<const uint16_t*>(out.data) + row * out.ld + col;
#pragma unroll
  for (int i = 0; i < Slabs; i += 2)
    if (col + 64 * i < out.cols) asm volatile("prefetch.global.L2 [%0];" ::"l"(from + 64 * i));
}

// Cols: columns of the warp's piece, d[Cols / 2] as wgmma leaves them. Slots: slabs of shared memory. Add: D
// bf16 += d, rounded once: what D holds takes the way of a store backwards. Streams: D is not to stay in L2.
template <Out O, int Cols, int Slots, bool Add = false, bool Streams = false> struct WarpStore {
  static constexpr int kSlab = O == Out::bf16 ? 64 : 32;  // columns
  static constexpr int kSlabs = (Cols + kSlab - 1) / kSlab, kTail = Cols % kSlab;
  static constexpr int kSlots = Slots < kSlabs ? Slots : kSlabs;
  static constexpr int kBytes = kSlots * 2048;

  // rows: how many of the 16 exist, when not `whole` matrices are stored (whole: the edge of the matrix
  // cuts).
  template <int S = 0> static __device__ __forceinline__ void run(const OutMatrix& out, uint8_t* memory,
                                                                  float (&d)[Cols / 2], int row, int rows,
                                                                  bool whole, int col, int part) {
    if constexpr (S < kSlabs) {
      Held held;
      if constexpr (Add) load_held(held, out, row, col + S * kSlab);
      slab<S>(out, memory, d, row, rows, whole, col, part, held[0]);
      if constexpr (kHeld > 1) slab<S + 1>(out, memory, d, row, rows, whole, col, part, held[1]);
      run<S + kHeld>(out, memory, d, row, rows, whole, col, part);
    }
  }

 private:
  // Add: what D holds in the next slabs, 16 rows of 8 chunks of 16 bytes, four a lane.
  static constexpr int kHeld = !Add ? 1 : kSlabs < 2 ? kSlabs : 2;
  using Held = uint4[kHeld][4];
  static __device__ __forceinline__ void load_held(Held& held, const OutMatrix& out, int row, int col) {
    static_assert(O == Out::bf16 && kTail == 0 && kSlabs % kHeld == 0, "D += in bf16");
    const int lane = int(threadIdx.x % 32), r = row + lane / 8, c = col + lane % 8 * 8;
    const auto* from = static_cast<const uint16_t*>(out.data) + r * out.ld + c;
#pragma unroll
    for (int s = 0; s < kHeld; ++s)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (r + 4 * j < out.rows && c + s * kSlab < out.cols)
          held[s][j] = *reinterpret_cast<const uint4*>(from + 4 * j * out.ld + s * kSlab);
  }
  template <int S> static __device__ __forceinline__ void slab(const OutMatrix& out, uint8_t* memory,
                                                               float (&d)[Cols / 2], int row, int rows,
                                                               bool whole, int col, int part,
                                                               const uint4 (&held)[4]) {
    const int lane = int(threadIdx.x % 32);
    constexpr int kSwizzle = 7, s = S;
    constexpr bool tail = kTail != 0 && s == kSlabs - 1;
    uint8_t* slot = memory + s % kSlots * 2048;
    if (lane == 0) wait_stores_read<kSlots - 1>();
    __syncwarp();
    if constexpr (O == Out::bf16) {
      const int r = lane % 16;  // which of the 16 rows this lane's address is for
      constexpr int kPairs = (tail ? kTail : kSlab) / 16;
      if constexpr (Add) {  // what was held, in the layout of the sums
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int from = lane / 8 + 4 * j;
          *reinterpret_cast<uint4*>(slot + from * 128 + (lane % 8 ^ from & kSwizzle) * 16) = held[j];
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
          const int chunk = 2 * i + lane / 16, j = 4 * (s * (kSlab / 8) + 2 * i);
          uint32_t x[4];
          load_matrices(x, shared_address(slot) + uint32_t(r * 128 + (chunk ^ r & kSwizzle) * 16));
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const float2 v = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(x[k]));
            d[j + 2 * k] += v.x, d[j + 2 * k + 1] += v.y;
          }
        }
        __syncwarp();
      }
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const int chunk = 2 * i + lane / 16, j = 4 * (s * (kSlab / 8) + 2 * i);
        const uint32_t at =
            tail ? uint32_t(r * kTail * 2 + chunk * 16) : uint32_t(r * 128 + (chunk ^ r & kSwizzle) * 16);
        store_matrices(shared_address(slot) + at, pack_bf16(d[j], d[j + 1]), pack_bf16(d[j + 2], d[j + 3]),
                       pack_bf16(d[j + 4], d[j + 5]), pack_bf16(d[j + 6], d[j + 7]));
      }
    } else {
      static_assert(kTail == 0, "f32: a multiple of 32 columns");
      const int r = lane / 4;
#pragma unroll
      for (int i = 0; i < kSlab / 8; ++i) {
        const int j = 4 * (s * (kSlab / 8) + i), chunk = 2 * i + lane % 4 / 2;
        uint8_t* at = slot + r * 128 + (chunk ^ r) * 16 + lane % 2 * 8;
        *reinterpret_cast<float2*>(at) = {d[j], d[j + 1]};
        *reinterpret_cast<float2*>(at + 1024) = {d[j + 2], d[j + 3]};
      }
    }
    if (whole || rows >= 16) {
      shared_writes_visible();
      __syncwarp();
      if (lane == 0) {
        const TensorMap* map = tail ? &out.tail : &out.slab;
        if (O == Out::f32 && out.add) store_adding(map, slot, col + s * kSlab, row, part);
        else if constexpr (Streams) store(map, slot, col + s * kSlab, row, part, Reuse::first_out);
        else store(map, slot, col + s * kSlab, row, part);
      }
    } else {
      __syncwarp();
      constexpr int kSize = O == Out::bf16 ? 2 : 4, kPer = 16 / kSize;
      const int chunks = (tail ? kTail : kSlab) / kPer;
      for (int at = lane; at < 16 * chunks; at += 32) {
        const int r = at / chunks, chunk = at % chunks, c = col + s * kSlab + chunk * kPer;
        if (r >= rows || c >= out.cols) continue;
        const uint8_t* from =
            slot + (tail ? r * kTail * kSize + chunk * 16 : r * 128 + (chunk ^ r & kSwizzle) * 16);
        *reinterpret_cast<uint4*>(static_cast<uint8_t*>(out.data) + ((row + r) * out.ld + c) * kSize) =
            *reinterpret_cast<const uint4*>(from);
      }
      __syncwarp();
    }
    if (lane == 0) commit_stores();  // an empty one too: the waits above count slabs
  }
};

}  // namespace cachalot::cuda::hopper
