// The plain kernel of product.h: 64 x 64 of C a block, 4 x 4 a thread, panels of 16 in shared memory. A chain
// of multiply-adds runs over 256 numbers of K, chains are added in order: the error grows like sqrt(256) +
// sqrt(K / 256), not like sqrt(K).
#include <algorithm>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/number.cuh"
#include "backend/cuda/product.h"
#include "backend/cuda/tile.cuh"

namespace cachalot::cuda {

namespace {

constexpr int kTile = 64, kDepth = 16, kThreads = 256, kChain = 256;
constexpr int kLd = kTile + 4;

struct Panel {
  const Tensor* t;
  bool along;              // K runs along the rows of t
  int64_t first, count;    // of M or N: where the tile begins in t, how many are left
  int64_t k_first, depth;  // where K begins in t, how long it is
};

// Four numbers of the panel at depth k: thread i of 256 takes neighbours of its neighbours in memory.
__device__ inline void fetch(const Panel& p, int64_t k, float (&x)[4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int i = int(threadIdx.x) + j * kThreads;
    const int at = p.along ? i / kDepth : i % kTile, d = p.along ? i % kDepth : i / kTile;
    x[j] = 0;
    if (at < p.count && k + d < p.depth) {
      const int64_t a = p.first + at, b = p.k_first + k + d;
      x[j] = p.along ? load_number(*p.t, a, b) : load_number(*p.t, b, a);
    }
  }
}
__device__ inline void put(bool along, const float (&x)[4], float* panel) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int i = int(threadIdx.x) + j * kThreads;
    const int at = along ? i / kDepth : i % kTile, d = along ? i % kDepth : i / kTile;
    panel[d * kLd + at] = x[j];
  }
}

__global__ void __launch_bounds__(kThreads) multiply(const __grid_constant__ Products p) {
  __shared__ __align__(16) float left[kDepth * kLd], right[kDepth * kLd];
  __shared__ Tile shared_tile;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  for (int64_t index = blockIdx.x;; index += gridDim.x) {
    __syncthreads();
    if (threadIdx.x < 32) {
      const Tile t = find_tile(p, kTile, kTile, index);
      if (threadIdx.x == 0) shared_tile = t;
    }
    __syncthreads();
    const Tile t = shared_tile;
    if (t.problem < 0) return;
    const bool rows = p.ragged == Products::Ragged::rows, depth = p.ragged == Products::Ragged::depth;
    const int64_t m = rows ? t.size : p.m, k = depth ? t.size : p.k;
    const int64_t a_row = rows || depth ? t.begin : 0, b_row = p.b_row_first + t.problem * p.b_row_step;
    const int64_t a_col = t.problem * p.a_col_step;
    const Panel a{.t = &p.a,
                  .along = !p.trans_a,
                  .first = t.row + (p.trans_a ? a_col
                                    : rows    ? a_row
                                              : 0),
                  .count = m - t.row,
                  .k_first = p.trans_a || depth ? a_row : a_col,
                  .depth = k};
    const Panel b{.t = &p.b,
                  .along = p.trans_b,
                  .first = t.col + (p.trans_b ? b_row : 0),
                  .count = p.n - t.col,
                  .k_first = depth       ? t.begin
                             : p.trans_b ? 0
                                         : b_row,
                  .depth = k};
    float sum[4][4] = {}, chain[4][4] = {}, x[4], y[4];
    fetch(a, 0, x);
    fetch(b, 0, y);
    for (int64_t at = 0; at < k; at += kDepth) {
      put(a.along, x, left);
      put(b.along, y, right);
      __syncthreads();
      if (at + kDepth < k) {
        fetch(a, at + kDepth, x);
        fetch(b, at + kDepth, y);
      }
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        const float4 u = *reinterpret_cast<const float4*>(left + d * kLd + 4 * ty);
        const float4 v = *reinterpret_cast<const float4*>(right + d * kLd + 4 * tx);
        const float us[4] = {u.x, u.y, u.z, u.w}, vs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) chain[i][j] = fmaf(us[i], vs[j], chain[i][j]);
      }
      __syncthreads();
      if ((at + kDepth) % kChain == 0 || at + kDepth >= k) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            sum[i][j] += chain[i][j];
            chain[i][j] = 0;
          }
      }
    }
    const int64_t c_row = rows ? t.begin : t.problem * p.c_row_step, c_col = t.problem * p.c_col_step;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int64_t r = t.row + 4 * ty + i, c = t.col + 4 * tx + j;
        if (r >= m || c >= p.n) continue;
        const float before = p.add ? load_number(p.c, c_row + r, c_col + c) : 0;
        store_number(p.c, c_row + r, c_col + c, p.add ? before + sum[i][j] : sum[i][j]);
      }
  }
}

}  // namespace

void plain_products(cudaStream_t stream, int multiprocessors, const Products& p) {
  const int64_t tiles = most_tiles(p, kTile, kTile);
  if (tiles == 0) return;
  multiply<<<unsigned(std::min<int64_t>(tiles, 8 * multiprocessors)), kThreads, 0, stream>>>(p);
  launched("a plain product");
}

}  // namespace cachalot::cuda
