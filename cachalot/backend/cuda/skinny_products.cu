// Contract: product.h. Few rows: decoding. Nothing is used twice, so it is a matter of reading the weights at
// full speed, 16 bytes a lane, no tiles.
//   B [N, K], as checkpoints hold weights: a warp a column of C; the sum of a lane runs over its pieces of 8
//            numbers in order, then the lanes add pairwise. A single row stays in registers, and so do the rows
//            of B that are on their way: the first ones before the kernel before has ended
//   B [K, N]: a block 64 columns of C; 32 groups of 8 threads walk every 32nd row of B, then the groups of a
//            warp add pairwise and the warps in order
// A number of C depends on its own row and column only.
#include <algorithm>

#include "backend/cuda/convert.cuh"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/few_rows.cuh"
#include "backend/cuda/number.cuh"
#include "backend/cuda/product.h"
#include "backend/cuda/tile.cuh"

namespace cachalot::cuda {

namespace {

constexpr int kWarps = 4, kMostRows = 8;

// The row of B that belongs to this warp's column of C.
template <class B> __device__ inline const B* row_of_b(const Products& p, int64_t b_row) {
  const int64_t n = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  return n < p.n ? static_cast<const B*>(p.b.data) + (b_row + n) * p.b.ld : nullptr;
}

// Calls that row into the second-level cache: weights do not wait for the kernel before.
template <class B> __device__ inline void call_in_row(const B* b, int64_t k) {
  constexpr int64_t kLine = 128 / int64_t(sizeof(B));
  if (b)
    for (int64_t at = kLine * int64_t(threadIdx.x % 32); at < k; at += 32 * kLine) call_in(b + at);
}

// Rows [row, row + count) of A from column a_col against rows of B from b_row; blockIdx.x * kWarps + warp:
// the column of C, counted from c_col.
template <class A, class B, int rows> __device__ inline void column(const Products& p, int64_t row, int count,
                                                                    int64_t a_col, int64_t b_row,
                                                                    int64_t c_col) {
  const int lane = threadIdx.x % 32;
  const int64_t n = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const B* b = row_of_b<B>(p, b_row);
  if (!b) return;
  const A* a = static_cast<const A*>(p.a.data) + row * p.a.ld + a_col;
  float sum[rows] = {};
  if constexpr (rows == 1) {
    constexpr int kAtOnce = sizeof(A) + sizeof(B) == 4 ? 8 : 4;  // pieces of a lane under way
    for (int64_t first = 8 * lane; first < p.k; first += 256 * kAtOnce) {
      Packed<A> x[kAtOnce];
      Packed<B> y[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int64_t k = first + 256 * i;
        if (k >= p.k) break;
        y[i] = load<true>(b, k, p.k);
        x[i] = load<true>(a, k, p.k);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + 256 * i >= p.k) break;
        const Eight u = unpack(x[i]), v = unpack(y[i]);
#pragma unroll
        for (int j = 0; j < kEight; ++j) sum[0] = fmaf(u.v[j], v.v[j], sum[0]);
      }
    }
  } else {
#pragma unroll 4
    for (int64_t k = 8 * lane; k < p.k; k += 256) {
      const Eight y = load_eight<true>(b, k, p.k);
#pragma unroll
      for (int i = 0; i < rows; ++i) {
        if (i >= count) break;
        const Eight x = load_eight<true>(a + i * p.a.ld, k, p.k);
#pragma unroll
        for (int j = 0; j < kEight; ++j) sum[i] = fmaf(x.v[j], y.v[j], sum[i]);
      }
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
  let_next_start();
  if (p.ragged == Products::Ragged::none) {
    const int64_t row = int64_t(blockIdx.y) * rows;
    const int64_t z = blockIdx.z, b_row = p.b_row_first + z * p.b_row_step;
    if (blockIdx.y == 0) call_in_row(row_of_b<B>(p, b_row), p.k);
    wait_for_earlier();
    column<A, B, rows>(p, row, int(min(int64_t(rows), p.m - row)), z * p.a_col_step, b_row, z * p.c_col_step);
    return;
  }
  wait_for_earlier();
  // The problem that owns the row; every warp looks for itself, at 128 problems at once.
  constexpr int kLooks = 4;
  const int64_t row = blockIdx.y;
  for (int64_t first = 0; first < p.count; first += 32 * kLooks) {
    bool mine[kLooks];
#pragma unroll
    for (int i = 0; i < kLooks; ++i) {
      const int64_t z = first + 32 * i + threadIdx.x % 32;
      const Range range = z < p.count ? range_of(p, z) : Range{0, 0};
      mine[i] = range.begin <= row && row < range.begin + range.size;
    }
#pragma unroll
    for (int i = 0; i < kLooks; ++i) {
      const unsigned found = __ballot_sync(~0u, mine[i]);
      if (!found) continue;
      column<A, B, 1>(p, row, 1, 0, p.b_row_first + (first + 32 * i + __ffs(int(found)) - 1) * p.b_row_step,
                      0);
      return;
    }
  }
}

// One row of A. blockIdx.z: the problem; the warps of x walk over the columns.
constexpr int kRowWarps = 8, kRowBlocks = 512;  // four blocks for each multiprocessor of a large card
template <class A, class B, int pieces> __global__ void __launch_bounds__(32 * kRowWarps)
    multiply_row(const __grid_constant__ Products p) {
  let_next_start();
  const int64_t z = blockIdx.z, step = int64_t(gridDim.x) * kRowWarps;
  int64_t n = int64_t(blockIdx.x) * kRowWarps + threadIdx.x / 32;
  const B* b = static_cast<const B*>(p.b.data) + (p.b_row_first + z * p.b_row_step) * p.b.ld;
  Packed<B> next[pieces];
  if (p.read_ahead && n < p.n) load_pieces(b + n * p.b.ld, p.k, next);
  wait_for_earlier();
  if (n >= p.n) return;
  if (!p.read_ahead) load_pieces(b + n * p.b.ld, p.k, next);
  Packed<A> x[pieces];
  load_pieces(static_cast<const A*>(p.a.data) + z * p.a_col_step, p.k, x);
  for (; n < p.n; n += step) {
    Packed<B> w[pieces];
#pragma unroll
    for (int i = 0; i < pieces; ++i) w[i] = next[i];
    const int64_t column = z * p.c_col_step + n;
    const float before = p.add ? load_number(p.c, 0, column) : 0;
    if (n + step < p.n) load_pieces(b + (n + step) * p.b.ld, p.k, next);
    const float sum = warp_sum(dot(x, w));
    if (threadIdx.x % 32 == 0) store_number(p.c, 0, column, p.add ? before + sum : sum);
  }
}

// B [K, N] in bf16. blockIdx.x: 64 columns; y: a group of rows; z: the problem.
constexpr int kColumns = 64, kGroups = 32, kColumnWarps = kColumns / 8 * kGroups / 32;
__global__ void __launch_bounds__(kColumns / 8 * kGroups)
    multiply_across(const __grid_constant__ Products p) {
  __shared__ float sums[kColumnWarps][kMostRows][kColumns];
  const int part = threadIdx.x % (kColumns / 8), group = threadIdx.x / (kColumns / 8);
  const int64_t z = blockIdx.z, col = int64_t(blockIdx.x) * kColumns + 8 * part;
  const int64_t row = int64_t(blockIdx.y) * kMostRows, rows = min(int64_t(kMostRows), p.m - row);
  const bf16* b = static_cast<const bf16*>(p.b.data) + (p.b_row_first + z * p.b_row_step) * p.b.ld + col;
  const bf16* a = static_cast<const bf16*>(p.a.data) + row * p.a.ld + z * p.a_col_step;
  float sum[kMostRows][8] = {};
  let_next_start();
  if (blockIdx.y == 0 && col < p.n &&
      (part == 0 || reinterpret_cast<uintptr_t>(b) % 128 == 0))  // one of the eight a line
    for (int64_t k = group; k < p.k; k += kGroups) call_in(b + k * p.b.ld);
  wait_for_earlier();
  if (col < p.n) {
#pragma unroll 4
    for (int64_t k = group; k < p.k; k += kGroups) {
      const Eight y = load_eight<true>(b + k * p.b.ld, 0, kEight);
#pragma unroll
      for (int i = 0; i < kMostRows; ++i) {
        if (i >= rows) break;
        const float x = float(a[i * p.a.ld + k]);
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[i][j] = fmaf(x, y.v[j], sum[i][j]);
      }
    }
  }
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kMostRows; ++i) {
    if (i >= rows) break;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      sum[i][j] += __shfl_xor_sync(~0u, sum[i][j], 8);
      sum[i][j] += __shfl_xor_sync(~0u, sum[i][j], 16);
      if (lane < 8) sums[warp][i][8 * part + j] = sum[i][j];
    }
  }
  __syncthreads();
  const int64_t first = int64_t(blockIdx.x) * kColumns;
  for (int at = int(threadIdx.x); at < int(rows) * kColumns; at += int(blockDim.x)) {
    const int i = at / kColumns, c = at % kColumns;
    if (first + c >= p.n) continue;
    float total = 0;
#pragma unroll
    for (int w = 0; w < kColumnWarps; ++w) total += sums[w][i][c];
    const int64_t to = z * p.c_col_step + first + c;
    store_number(p.c, row + i, to, p.add ? load_number(p.c, row + i, to) + total : total);
  }
}

template <class A, class B> void multiply_one_row(const Queue& queue, const Products& p) {
  const int64_t most = std::max<int64_t>(1, kRowBlocks / p.count) * kRowWarps,
                each = (p.n + most - 1) / most;  // columns of a warp
  const dim3 grid(unsigned((p.n + each * kRowWarps - 1) / (each * kRowWarps)), 1, unsigned(p.count));
  const auto run = [&](auto kernel) { launch(queue, kernel, grid, 32 * kRowWarps, 0, p); };
  if (p.k <= 2 * kPieceStep) run(multiply_row<A, B, 2>);
  else if (p.k <= 4 * kPieceStep) run(multiply_row<A, B, 4>);
  else run(multiply_row<A, B, 8>);
  launched("a product of one row");
}

template <class A, class B> void multiply_by(const Queue& queue, const Products& p) {
  if (p.ragged == Products::Ragged::none && p.m == 1 && p.k <= 8 * kPieceStep) return multiply_one_row<A, B>(queue, p);
  const unsigned across = unsigned((p.n + kWarps - 1) / kWarps);
  if (p.ragged != Products::Ragged::none || p.m == 1) {
    const bool ragged = p.ragged != Products::Ragged::none;
    const dim3 grid(across, ragged ? unsigned(p.total) : 1, ragged ? 1 : unsigned(p.count));
    launch(queue, multiply<A, B, 1>, grid, 32 * kWarps, 0, p);
  } else {
    const dim3 grid(across, unsigned((p.m + kMostRows - 1) / kMostRows), unsigned(p.count));
    launch(queue, multiply<A, B, kMostRows>, grid, 32 * kWarps, 0, p);
  }
  launched("a product of few rows");
}

bool fits(const Tensor& t) {
  return (t.dtype == DType::bf16 || t.dtype == DType::f32) && reinterpret_cast<uintptr_t>(t.data) % 16 == 0 &&
         (t.rows <= 1 || t.ld * size_of(t.dtype) % 16 == 0) && t.cols % 8 == 0;
}

}  // namespace

bool skinny_products(const Queue& queue, const Products& p, bool any_rows) {
  const bool ragged = p.ragged == Products::Ragged::rows;
  // A router's product of a decoding step is small enough to read its weights a few times.
  const bool router = p.b.dtype == DType::f32 && p.n <= 256;
  const int64_t most = ragged ? 64 : router ? 256 : kMostRows;
  const int64_t rows = ragged ? p.total : p.m;
  if (p.trans_a || p.ragged == Products::Ragged::depth || (rows > most && !any_rows) || p.k == 0 ||
      p.c_row_step != 0 || p.a_col_step % 8 != 0 || !fits(p.a) || !fits(p.b))
    return false;
  if (p.n == 0 || rows == 0) return true;
  if (rows > 65535) return false;
  if (!p.trans_b) {
    // Long columns of few numbers would keep one block busy for long: those are for tiles.
    if (ragged || (p.m > kMostRows && !any_rows) || p.k > 1024 || p.n % 8 != 0 || p.a.dtype != DType::bf16 ||
        p.b.dtype != DType::bf16)
      return false;
    const dim3 grid(unsigned((p.n + kColumns - 1) / kColumns), unsigned((p.m + kMostRows - 1) / kMostRows),
                    unsigned(p.count));
    launch(queue, multiply_across, grid, kColumns / 8 * kGroups, 0, p);
    launched("a product of few rows");
    return true;
  }
  const bool a = p.a.dtype == DType::bf16, b = p.b.dtype == DType::bf16;
  if (a && b) multiply_by<bf16, bf16>(queue, p);
  else if (a) multiply_by<bf16, float>(queue, p);
  else if (b) multiply_by<float, bf16>(queue, p);
  else multiply_by<float, float>(queue, p);
  return true;
}

}  // namespace cachalot::cuda
