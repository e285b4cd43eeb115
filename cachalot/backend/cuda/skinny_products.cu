// Contract: product.h. Few rows: decoding. Nothing is used twice, so it is a matter of reading the weights at
// full speed, 16 bytes a lane, no tiles.
//   B [N, K], as checkpoints hold weights: a warp a column of C; the sum of a lane runs over its pieces of 8
//            numbers in order, then the lanes add pairwise
//   B [K, N]: a block 64 columns of C; 32 groups of 8 threads walk every 32nd row of B, then the groups add in
//            order
// A number of C depends on its own row and column only.
#include <algorithm>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/number.cuh"
#include "backend/cuda/product.h"
#include "backend/cuda/tile.cuh"

namespace cachalot::cuda {

namespace {

constexpr int kWarps = 8, kMostRows = 8;

__device__ inline void load_eight(const bf16* p, float (&x)[8]) {
  const uint4 v = *reinterpret_cast<const uint4*>(p);
  const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = __uint_as_float(w[i] << 16);
    x[2 * i + 1] = __uint_as_float(w[i] & 0xFFFF0000u);
  }
}
__device__ inline void load_eight(const float* p, float (&x)[8]) {
  const float4 u = reinterpret_cast<const float4*>(p)[0], v = reinterpret_cast<const float4*>(p)[1];
  x[0] = u.x, x[1] = u.y, x[2] = u.z, x[3] = u.w, x[4] = v.x, x[5] = v.y, x[6] = v.z, x[7] = v.w;
}

// Rows [row, row + count) of A from column a_col against rows of B from b_row; blockIdx.x * kWarps + warp:
// the column of C, counted from c_col.
template <class A, class B, int rows> __device__ inline void column(const Products& p, int64_t row, int count,
                                                                    int64_t a_col, int64_t b_row,
                                                                    int64_t c_col) {
  const int lane = threadIdx.x % 32;
  const int64_t n = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (n >= p.n) return;
  const B* b = static_cast<const B*>(p.b.data) + (b_row + n) * p.b.ld;
  const A* a = static_cast<const A*>(p.a.data) + row * p.a.ld + a_col;
  float sum[rows] = {};
#pragma unroll 4
  for (int64_t k = 8 * lane; k < p.k; k += 256) {
    float y[8];
    load_eight(b + k, y);
#pragma unroll
    for (int i = 0; i < rows; ++i) {
      if (rows > 1 && i >= count) break;
      float x[8];
      load_eight(a + i * p.a.ld + k, x);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[i] = fmaf(x[j], y[j], sum[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < rows; ++i) {
    if (i >= count) break;
    for (int step = 16; step > 0; step /= 2) sum[i] += __shfl_xor_sync(~0u, sum[i], step);
    if (lane == 0) {
      const float before = p.add ? load_number(p.c, row + i, c_col + n) : 0;
      store_number(p.c, row + i, c_col + n, p.add ? before + sum[i] : sum[i]);
    }
  }
}

// blockIdx.y: a group of rows; ragged: a row, whose problem is looked up. blockIdx.z: the problem, when not
// ragged.
template <class A, class B, int rows> __global__ void __launch_bounds__(32 * kWarps)
    multiply(const __grid_constant__ Products p) {
  if (p.ragged == Products::Ragged::none) {
    const int64_t row = int64_t(blockIdx.y) * rows;
    const int64_t z = blockIdx.z;
    column<A, B, rows>(p, row, int(min(int64_t(rows), p.m - row)), z * p.a_col_step,
                       p.b_row_first + z * p.b_row_step, z * p.c_col_step);
    return;
  }
  const int64_t row = blockIdx.y;
  for (int64_t first = 0; first < p.count; first += 32) {  // every warp for itself
    const int64_t z = first + threadIdx.x % 32;
    const Range range = z < p.count ? range_of(p, z) : Range{0, 0};
    const unsigned found = __ballot_sync(~0u, range.begin <= row && row < range.begin + range.size);
    if (!found) continue;
    column<A, B, 1>(p, row, 1, 0, p.b_row_first + (first + __ffs(found) - 1) * p.b_row_step, 0);
    return;
  }
}

// B [K, N] in bf16. blockIdx.x: 64 columns; y: a group of rows; z: the problem.
constexpr int kColumns = 64, kGroups = 32;
__global__ void __launch_bounds__(kColumns / 8 * kGroups)
    multiply_across(const __grid_constant__ Products p) {
  __shared__ float sums[kGroups][kColumns];
  const int part = threadIdx.x % (kColumns / 8), group = threadIdx.x / (kColumns / 8);
  const int64_t z = blockIdx.z, col = int64_t(blockIdx.x) * kColumns + 8 * part;
  const int64_t row = int64_t(blockIdx.y) * kMostRows, rows = min(int64_t(kMostRows), p.m - row);
  const bf16* b = static_cast<const bf16*>(p.b.data) + (p.b_row_first + z * p.b_row_step) * p.b.ld + col;
  const bf16* a = static_cast<const bf16*>(p.a.data) + row * p.a.ld + z * p.a_col_step;
  float sum[kMostRows][8] = {};
  if (col < p.n) {
#pragma unroll 4
    for (int64_t k = group; k < p.k; k += kGroups) {
      float y[8];
      load_eight(b + k * p.b.ld, y);
#pragma unroll
      for (int i = 0; i < kMostRows; ++i) {
        if (i >= rows) break;
        const float x = float(a[i * p.a.ld + k]);
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[i][j] = fmaf(x, y[j], sum[i][j]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kMostRows; ++i) {
    if (i >= rows) break;
    __syncthreads();
#pragma unroll
    for (int j = 0; j < 8; ++j) sums[group][8 * part + j] = sum[i][j];
    __syncthreads();
    const int64_t to = int64_t(blockIdx.x) * kColumns + threadIdx.x;
    if (threadIdx.x < kColumns && to < p.n) {
      float total = 0;
      for (int g = 0; g < kGroups; ++g) total += sums[g][threadIdx.x];
      const float before = p.add ? load_number(p.c, row + i, z * p.c_col_step + to) : 0;
      store_number(p.c, row + i, z * p.c_col_step + to, p.add ? before + total : total);
    }
  }
}

template <class A, class B> void launch(cudaStream_t stream, const Products& p) {
  const unsigned across = unsigned((p.n + kWarps - 1) / kWarps);
  if (p.ragged != Products::Ragged::none || p.m == 1) {
    const bool ragged = p.ragged != Products::Ragged::none;
    const dim3 grid(across, ragged ? unsigned(p.total) : 1, ragged ? 1 : unsigned(p.count));
    multiply<A, B, 1><<<grid, 32 * kWarps, 0, stream>>>(p);
  } else {
    const dim3 grid(across, unsigned((p.m + kMostRows - 1) / kMostRows), unsigned(p.count));
    multiply<A, B, kMostRows><<<grid, 32 * kWarps, 0, stream>>>(p);
  }
  launched("a product of few rows");
}

bool fits(const Tensor& t) {
  return (t.dtype == DType::bf16 || t.dtype == DType::f32) && reinterpret_cast<uintptr_t>(t.data) % 16 == 0 &&
         (t.rows <= 1 || t.ld * size_of(t.dtype) % 16 == 0) && t.cols % 8 == 0;
}

}  // namespace

bool skinny_products(cudaStream_t stream, const Products& p) {
  const bool ragged = p.ragged == Products::Ragged::rows;
  // A router's product of a decoding step is small enough to read its weights a few times.
  const bool router = p.b.dtype == DType::f32 && p.n <= 256;
  const int64_t most = ragged ? 64 : router ? 256 : kMostRows;
  if (p.trans_a || p.ragged == Products::Ragged::depth || (ragged ? p.total : p.m) > most || p.k == 0 ||
      p.c_row_step != 0 || p.a_col_step % 8 != 0 || !fits(p.a) || !fits(p.b))
    return false;
  if (p.n == 0 || (ragged ? p.total : p.m) == 0) return true;
  if (!p.trans_b) {
    // Long columns of few numbers would keep one block busy for long: those are for tiles.
    if (ragged || p.m > kMostRows || p.k > 1024 || p.n % 8 != 0 || p.a.dtype != DType::bf16 ||
        p.b.dtype != DType::bf16)
      return false;
    const dim3 grid(unsigned((p.n + kColumns - 1) / kColumns), 1, unsigned(p.count));
    multiply_across<<<grid, kColumns / 8 * kGroups, 0, stream>>>(p);
    launched("a product of few rows");
    return true;
  }
  const bool a = p.a.dtype == DType::bf16, b = p.b.dtype == DType::bf16;
  if (a && b) launch<bf16, bf16>(stream, p);
  else if (a) launch<bf16, float>(stream, p);
  else if (b) launch<float, bf16>(stream, p);
  else launch<float, float>(stream, p);
  return true;
}

}  // namespace cachalot::cuda
