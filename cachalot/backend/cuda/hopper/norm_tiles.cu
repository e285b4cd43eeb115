// Contract: backend/ops/norm_gemm.h, 33 to 256 rows of bf16 (or any number), K up to 1024: a decoding step of many
// sequences.
// There is little to multiply and to read; what counts is how long one such kernel makes the next one wait. A
// block makes 32 rows by 64 columns over all of K: its weights are in shared memory before the kernel before
// has ended, then it waits once for all of its rows, which it normalises on the way.
//
// Two warps side by side, four behind each other along K: a warp multiplies 32 x 32 over a quarter of K, the
// quarters are added in order. A number depends on its own row and column and on K only.
//
// Shared memory: chunks of 64 numbers along K, 128 bytes a row, the 16-byte piece j of row r at j ^ r % 8.
// Norms as in few_rows.cuh.
#include <algorithm>

#include "backend/cuda/few_rows.cuh"
#include "backend/cuda/hopper/decoding.h"
#include "backend/cuda/hopper/launched.h"
#include "backend/cuda/mma.cuh"

namespace cachalot::cuda::hopper {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kRows = 32, kColumns = 64, kQuarters = 4, kChunk = 64,
              kMostDepth = 1024;
constexpr int kPieces = kMostDepth / kPieceStep, kMyRows = kRows / kWarps;
constexpr int kSumLd = kColumns + 8, kSumBytes = kQuarters * kRows * kSumLd * int(sizeof(float));
constexpr int64_t kFewest = 33, kMost = 256, kMostFixed = int64_t(1) << 20,
                  kMostBlocks = 264;  // rows; blocks: two for each multiprocessor

struct Side {  // a matrix of weights and its product
  const bf16* w = nullptr;
  void* c = nullptr;
  int64_t w_ld = 0, c_ld = 0;
  int columns = 0;
};

struct Args {
  Side first, second;
  const bf16* x = nullptr;
  const float* gain = nullptr;
  bf16* y = nullptr;
  float* r = nullptr;
  int64_t x_ld = 0, y_ld = 0;
  int rows = 0, depth = 0;
  bool floats = false;  // the products are f32
  double eps = 0;
};

// Bytes from the first of `rows` rows.
__device__ inline uint32_t piece_address(int row, int piece, int rows) {
  return uint32_t(piece / 8 * rows * 2 * kChunk + row * 2 * kChunk + (piece % 8 ^ row % 8) * 16);
}

// Grid: tiles of columns, of the first product and then of the second; tiles of rows.
__global__ void __launch_bounds__(kThreads) norm_tiles_kernel(const __grid_constant__ Args p) {
  extern __shared__ __align__(128) uint8_t memory[];
  let_next_start();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, depth = p.depth;
  const int of_first = (p.first.columns + kColumns - 1) / kColumns, tile = int(blockIdx.x);
  const Side& side = tile < of_first ? p.first : p.second;
  const int column = (tile < of_first ? tile : tile - of_first) * kColumns, row = int(blockIdx.y) * kRows;
  uint8_t* const rows = memory + depth * kColumns * 2;
  const uint32_t w_base = shared_address(memory), x_base = shared_address(rows);
  for (int n = warp; n < kColumns; n += kWarps) {
    const bool real = column + n < side.columns;
    for (int piece = lane; piece < depth / 8; piece += 32)
      copy_16(w_base + piece_address(n, piece, kColumns),
              side.w + (real ? column + n : 0) * side.w_ld + piece * 8, real);
  }
  end_copies();
  Packed<float> gain[kPieces];
  load_pieces(p.gain, depth, gain);
  wait_for_earlier();

  // A warp every eighth row.
  Packed<bf16> x[kMyRows][kPieces];
#pragma unroll
  for (int i = 0; i < kMyRows; ++i) {
    const int mine = row + warp + kWarps * i;
    load_pieces(p.x + (mine < p.rows ? mine : 0) * p.x_ld, mine < p.rows ? depth : 0, x[i]);
  }
#pragma unroll
  for (int i = 0; i < kMyRows; ++i) {
    const int local = warp + kWarps * i, mine = row + local;
    float r;
    normalise(x[i], gain, depth, p.eps, r);
    if (tile == 0 && mine < p.rows) {
#pragma unroll
      for (int k = 0; k < kPieces; ++k)
        if (8 * lane + kPieceStep * k < depth)
          store<true>(p.y + mine * p.y_ld, 8 * lane + kPieceStep * k, depth, x[i][k]);
      if (lane == 0) p.r[mine] = r;
    }
#pragma unroll
    for (int k = 0; k < kPieces; ++k)
      if (const int piece = lane + 32 * k; 8 * piece < depth)
        *reinterpret_cast<uint4*>(rows + piece_address(local, piece, kRows)) =
            *reinterpret_cast<const uint4*>(&x[i][k]);
  }
  wait_copies<0>();
  __syncthreads();

  const int side_of = warp % 2 * 32, quarter = warp / 2, steps = depth / 16 / kQuarters;
  float part[2][4][4] = {};  // 16 rows, 8 columns
#pragma unroll 4
  for (int s = quarter * steps; s < (quarter + 1) * steps; ++s) {
    uint32_t a[2][4], b[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m)
      load_blocks(a[m], x_base + piece_address(16 * m + lane % 16, 2 * s + lane / 16, kRows));
#pragma unroll
    for (int n = 0; n < 2; ++n)
      load_blocks(b[n], w_base + piece_address(side_of + 16 * n + lane / 16 * 8 + lane % 8,
                                               2 * s + lane / 8 % 2, kColumns));
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int n = 0; n < 4; ++n)
        multiply_add(part[m][n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
  }
  __syncthreads();  // the rows have been read: the sums take their place
  float* const sums = reinterpret_cast<float*>(rows);
  const int group = lane / 4, pair = lane % 4;
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<float2*>(sums + (quarter * kRows + 16 * m + 8 * half + group) * kSumLd + side_of +
                                   8 * n + 2 * pair) =
            make_float2(part[m][n][2 * half], part[m][n][2 * half + 1]);
  __syncthreads();
  const int local = int(threadIdx.x) / 8, mine = row + local, first = int(threadIdx.x) % 8 * kEight;
  if (mine >= p.rows || column + first >= side.columns) return;
  Eight sum = {};
#pragma unroll
  for (int q = 0; q < kQuarters; ++q)
#pragma unroll
    for (int i = 0; i < kEight; ++i) sum.v[i] += sums[(q * kRows + local) * kSumLd + first + i];
  const int64_t to = mine * side.c_ld + column + first;
  if (p.floats) store_eight<true>(static_cast<float*>(side.c) + to, 0, kEight, sum);
  else store_eight<true>(static_cast<bf16*>(side.c) + to, 0, kEight, sum);
}

bool wide(const Tensor& t) { return t.dtype == DType::bf16 && is_wide(t); }
Side side_of(const Tensor& w, const Tensor& c) {
  return {
      .w = static_cast<const bf16*>(w.data), .c = c.data, .w_ld = w.ld, .c_ld = c.ld, .columns = int(w.rows)};
}
int64_t tiles_of(const Tensor& w) { return (w.rows + kColumns - 1) / kColumns; }

}  // namespace

bool norm_tiles(const Queue& queue, const NormGemm& g, bool any_rows) {
  const bool two = bool(g.w2);
  if (g.x.rows < (any_rows ? 1 : kFewest) || g.x.rows > (any_rows ? kMostFixed : kMost) ||
      g.x.cols > kMostDepth || g.x.cols % kChunk != 0 || !wide(g.x) || !wide(g.w) || !wide(g.y) ||
      !is_wide(g.gain) || !is_wide(g.c) || g.c.dtype == DType::e4m3 || g.gain.dtype != DType::f32 ||
      (two && (!wide(g.w2) || !is_wide(g.c2) || g.c2.dtype != g.c.dtype)))
    return false;
  const int64_t columns = tiles_of(g.w) + (two ? tiles_of(g.w2) : 0), rows = (g.x.rows + kRows - 1) / kRows;
  if (columns * rows > kMostBlocks && !any_rows) return false;
  Args p{.first = side_of(g.w, g.c),
         .second = {},
         .x = static_cast<const bf16*>(g.x.data),
         .gain = static_cast<const float*>(g.gain.data),
         .y = static_cast<bf16*>(g.y.data),
         .r = static_cast<float*>(g.r.data),
         .x_ld = g.x.ld,
         .y_ld = g.y.ld,
         .rows = int(g.x.rows),
         .depth = int(g.x.cols),
         .floats = g.c.dtype == DType::f32,
         .eps = g.eps};
  if (two) p.second = side_of(g.w2, g.c2);
  const int bytes = p.depth * kColumns * 2 + std::max(p.depth * kRows * 2, kSumBytes);
  launched(cudaFuncSetAttribute(norm_tiles_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
           "norm_gemm");
  launch(queue, norm_tiles_kernel, dim3(unsigned(columns), unsigned(rows)), kThreads, size_t(bytes), p);
  launched(cudaGetLastError(), "norm_gemm");
  return true;
}

}  // namespace cachalot::cuda::hopper
