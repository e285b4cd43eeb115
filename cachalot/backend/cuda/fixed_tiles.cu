// Contract: some_rows.h. Wide products of as many rows as there are, weights read once for every 128 of them. A block
// makes up to 128 rows by 128 columns of C, K in chunks of 64 through three or four stages of shared memory; the
// first weights are there before the kernel before has ended. However many rows a block takes, a number is one chain
// of sums in the order of K, so its bits depend on its own row and column and on K only.
//
// Shared memory: a stage holds 64 numbers of the columns' and of the rows' operand, 128 bytes each, the 16-byte piece
// j of row r at j ^ r % 8.
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/mma.cuh"
#include "backend/cuda/some_rows.h"

namespace cachalot::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kColumns = 128, kChunk = 64, kRowBytes = 2 * kChunk,
              kPieces = kRowBytes / 16, kWeightBytes = kColumns * kRowBytes, kMostRows = 128;
constexpr int64_t kMostColumns = int64_t(1) << 24;

struct Args {
  const bf16 *a, *b;
  void* c;
  int64_t a_ld, b_ld, c_ld;
  int rows, columns, depth;
  bool floats, add, ahead;  // C is f32; C +=; B may be read ahead
};

__device__ inline uint32_t piece_address(int row, int piece) {
  return uint32_t(row * kRowBytes + (piece ^ row % 8) * 16);
}

// Columns k and k + 1 of a row of C.
template <class T> __device__ inline void store_pair(T* to, bool add, float x, float y) {
  if constexpr (sizeof(T) == 4) {
    auto* pair = reinterpret_cast<float2*>(to);
    const float2 before = add ? *pair : float2{0, 0};
    *pair = {before.x + x, before.y + y};
  } else {
    const float first = add ? float(to[0]) : 0, second = add ? float(to[1]) : 0;
    *reinterpret_cast<uint32_t*>(to) = pack_bf16(first + x, second + y);
  }
}

// Warps side by side along the rows; each has 16 `tall` rows and 8 `across` columns.
constexpr int beside_of(int rows) { return rows > 32 ? 2 : 1; }
constexpr int stages_of(int rows) { return rows > 32 ? 3 : 4; }

// Grid: groups of `rows` rows, tiles of columns: the groups of a tile meet its weights in the second-level cache.
template <int rows> __global__ void __launch_bounds__(kThreads, 2)
    fixed_kernel(const __grid_constant__ Args p) {
  constexpr int kBeside = beside_of(rows), kStages = stages_of(rows), kTall = rows / kBeside / 16,
                kAcross = kColumns / (kWarps / kBeside) / 8, kStageBytes = kWeightBytes + rows * kRowBytes;
  extern __shared__ __align__(128) uint8_t memory[];
  let_next_start();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = int(blockIdx.x) * rows, column = int(blockIdx.y) * kColumns, chunks = p.depth / kChunk;
  const uint32_t base = shared_address(memory);
  const int piece = threadIdx.x % kPieces, line = threadIdx.x / kPieces;
  constexpr int kLines = kThreads / kPieces;
  const auto call_weights = [&](int chunk) {
    const uint32_t to = base + uint32_t(chunk % kStages * kStageBytes);
#pragma unroll
    for (int i = 0; i < kColumns / kLines; ++i) {
      const int n = line + kLines * i;
      const bool real = column + n < p.columns;
      copy_16(to + piece_address(n, piece),
              p.b + int64_t(real ? column + n : 0) * p.b_ld + chunk * kChunk + piece * 8, real);
    }
  };
  const auto call_rows = [&](int chunk) {
    const uint32_t to = base + uint32_t(chunk % kStages * kStageBytes + kWeightBytes);
#pragma unroll
    for (int i = 0; i < (rows + kLines - 1) / kLines; ++i) {
      const int r = line + kLines * i;
      if (r >= rows) break;
      const bool real = row + r < p.rows;
      copy_16(to + piece_address(r, piece),
              p.a + int64_t(real ? row + r : 0) * p.a_ld + chunk * kChunk + piece * 8, real);
    }
  };
  if (!p.ahead) wait_for_earlier();
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i)
    if (i < chunks) call_weights(i);
  end_copies();
  if (p.ahead) wait_for_earlier();
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < chunks) call_rows(i);
    end_copies();
  }
  const int first_row = warp % kBeside * 16 * kTall, first_column = warp / kBeside * 8 * kAcross;
  float sums[kTall][kAcross][4] = {};
  for (int chunk = 0; chunk < chunks; ++chunk) {
    wait_copies<kStages - 2>();
    __syncthreads();
    if (const int next = chunk + kStages - 1; next < chunks) call_weights(next), call_rows(next);
    end_copies();
    const uint32_t weights = base + uint32_t(chunk % kStages * kStageBytes), tokens = weights + kWeightBytes;
#pragma unroll
    for (int k = 0; k < kChunk / 16; ++k) {
      uint32_t x[kTall][4];
#pragma unroll
      for (int m = 0; m < kTall; ++m)
        load_blocks(x[m], tokens + piece_address(first_row + 16 * m + lane % 16, 2 * k + lane / 16));
#pragma unroll
      for (int n = 0; n < kAcross; n += 2) {
        uint32_t w[4];
        load_blocks(w, weights + piece_address(first_column + 8 * n + lane / 16 * 8 + lane % 8,
                                               2 * k + lane / 8 % 2));
#pragma unroll
        for (int m = 0; m < kTall; ++m) {
          multiply_add(sums[m][n], x[m], w[0], w[1]);
          multiply_add(sums[m][n + 1], x[m], w[2], w[3]);
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kTall; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int n = 0; n < kAcross; ++n) {
        const int r = row + first_row + 16 * m + 8 * half + lane / 4,
                  c = column + first_column + 8 * n + lane % 4 * 2;
        if (r >= p.rows || c >= p.columns) continue;
        const int64_t to = r * p.c_ld + c;
        const float* pair = sums[m][n] + 2 * half;
        if (p.floats) store_pair(static_cast<float*>(p.c) + to, p.add, pair[0], pair[1]);
        else store_pair(static_cast<bf16*>(p.c) + to, p.add, pair[0], pair[1]);
      }
}

template <int rows> void launch_rows(const Queue& queue, const Args& p) {
  constexpr int kBytes = stages_of(rows) * (kWeightBytes + rows * kRowBytes);
  must(cudaFuncSetAttribute(fixed_kernel<rows>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
       "a product of fixed tiles: shared memory");
  const dim3 grid(unsigned((p.rows + rows - 1) / rows), unsigned((p.columns + kColumns - 1) / kColumns));
  launch(queue, fixed_kernel<rows>, grid, kThreads, size_t(kBytes), p);
  launched("a product of fixed tiles");
}

// On 16 bytes also as one of several rows: a choice of kernels must not hang on their number.
bool wide(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.ld * size_of(t.dtype) % 16 == 0;
}

}  // namespace

bool fixed_tiles(const Queue& queue, const Products& g) {
  if (g.trans_a || !g.trans_b || g.ragged != Products::Ragged::none || g.count != 1 || g.m < 1 ||
      g.n < kFixedTileColumns || g.n > kMostColumns || g.n % 8 != 0 || g.k == 0 || g.k % kChunk != 0 ||
      g.b_row_first != 0 || g.m > int64_t(1) << 24 || g.k > int64_t(1) << 24 || !wide(g.a) || !wide(g.b) ||
      !wide(g.c) || g.a.dtype != DType::bf16 || g.b.dtype != DType::bf16 ||
      (g.c.dtype != DType::bf16 && g.c.dtype != DType::f32))
    return false;
  const Args p{.a = static_cast<const bf16*>(g.a.data),
               .b = static_cast<const bf16*>(g.b.data),
               .c = g.c.data,
               .a_ld = g.a.ld,
               .b_ld = g.b.ld,
               .c_ld = g.c.ld,
               .rows = int(g.m),
               .columns = int(g.n),
               .depth = int(g.k),
               .floats = g.c.dtype == DType::f32,
               .add = g.add,
               .ahead = g.read_ahead};
  if (g.m <= 16) launch_rows<16>(queue, p);
  else if (g.m <= 32) launch_rows<32>(queue, p);
  else if (g.m <= 64) launch_rows<64>(queue, p);
  else launch_rows<kMostRows>(queue, p);
  return true;
}

}  // namespace cachalot::cuda
