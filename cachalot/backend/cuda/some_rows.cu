// Contract: some_rows.h. Products of 2 to 32 rows of bf16 on the tensor cores, of more where weights are small:
// decoding of some sequences.
// Nothing of B is used twice, so its fragments come straight from memory: B's rows are the operand of 16
// rows, those of A that of 8. The order of K within a fragment is free as long as both share it, hence a
// lane loads 16 neighbouring bytes. A block makes 16 columns of C; its eight warps share K, and their sums
// are added in order. A number of C depends on its own row and column and on K only. Norms as in few_rows.cuh.
#include "backend/cuda/some_rows.h"

#include <algorithm>

#include "backend/cuda/convert.cuh"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/few_rows.cuh"
#include "backend/cuda/mma.cuh"

namespace cachalot::cuda {

namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps, kColumns = 16, kStep = 32, kSumLd = kColumns + 4;
constexpr int64_t kMostRows = 32, kMostFixedRows = int64_t(1) << 20, kMostColumns = int64_t(1) << 20,
                  kMostDepth = 8192, kMostNormed = 1024;

struct Side {  // a matrix B and the columns of its C
  const bf16* b = nullptr;
  void* c = nullptr;
  int64_t b_ld = 0, c_ld = 0;
  int columns = 0;
};

struct Args {
  Side first, second;
  const bf16* a = nullptr;
  int64_t a_ld = 0, a_step = 0, b_step = 0, c_step = 0;  // steps from problem to problem
  int rows = 0, depth = 0;
  bool floats = false, add = false, ahead = false;  // C is f32; C +=; B may be read ahead
  const float* gain = nullptr;                      // norm
  bf16* y = nullptr;
  float* r = nullptr;
  int64_t y_ld = 0;
  double eps = 0;
};

// Blocks a multiprocessor: as many as leave the fragments in registers.
constexpr int blocks_of(int tiles, bool norm) { return tiles == 4 ? (norm ? 1 : 2) : norm ? 2 : 3; }

// Grid: 16 columns of the first side, then of the second; groups of rows; problems.
template <int tiles, int pieces, bool norm>
__global__ void __launch_bounds__(kThreads, blocks_of(tiles, norm))
    some_columns(const __grid_constant__ Args p) {
  constexpr int kRows = 8 * tiles, kMine = (kRows * kColumns + kThreads - 1) / kThreads;
  __shared__ float sums[kWarps][kRows][kSumLd];
  __shared__ float factor[norm ? kRows : 1];
  let_next_start();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4;
  const int of_first = (p.first.columns + kColumns - 1) / kColumns, tile = int(blockIdx.x);
  const bool second = tile >= of_first;
  const Side& side = second ? p.second : p.first;
  const int column = (second ? tile - of_first : tile) * kColumns, row = int(blockIdx.y) * kRows;
  const int64_t z = blockIdx.z;
  const bf16* b = side.b + z * p.b_step;
  const bf16* low = b + int64_t(min(column + group, side.columns - 1)) * side.b_ld;
  const bf16* high = b + int64_t(min(column + group + 8, side.columns - 1)) * side.b_ld;
  const auto depth_of = [&](int step, int i) {
    return kStep * (pieces * (kWarps * step + warp) + i) + 8 * pair;
  };
  Packed<bf16> w[2][pieces];
  const auto load_weights = [&](int step) {
#pragma unroll
    for (int i = 0; i < pieces; ++i) {
      const int k = depth_of(step, i);
      w[0][i] = k < p.depth ? load<true>(low, k, p.depth) : Packed<bf16>{};
      w[1][i] = k < p.depth ? load<true>(high, k, p.depth) : Packed<bf16>{};
    }
  };
  if (p.ahead) load_weights(0);
  wait_for_earlier();
  if (!p.ahead) load_weights(0);
  // What this thread stores at the end.
  float before[kMine] = {};
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int at = int(threadIdx.x) + kThreads * i, t = row + at / kColumns, c = column + at % kColumns;
    if (p.add && at < kRows * kColumns && t < p.rows && c < side.columns) {
      const int64_t to = t * side.c_ld + z * p.c_step + c;
      before[i] =
          p.floats ? static_cast<const float*>(side.c)[to] : float(static_cast<const bf16*>(side.c)[to]);
    }
  }
  if constexpr (norm) {
    Packed<float> gain[pieces];
    Packed<bf16> x[tiles][pieces];
#pragma unroll
    for (int t = 0; t < tiles; ++t) {
      const int mine = row + 8 * t + warp;
      load_pieces(p.a + (mine < p.rows ? mine : 0) * p.a_ld, mine < p.rows ? p.depth : 0, x[t]);
    }
    load_pieces(p.gain, p.depth, gain);
#pragma unroll
    for (int t = 0; t < tiles; ++t) {
      const int mine = row + 8 * t + warp;
      float r;
      normalise(x[t], gain, p.depth, p.eps, r);
      if (lane == 0) factor[8 * t + warp] = r;
      if (tile > 0 || mine >= p.rows) continue;
#pragma unroll
      for (int i = 0; i < pieces; ++i)
        if (8 * lane + kPieceStep * i < p.depth)
          store<true>(p.y + mine * p.y_ld, 8 * lane + kPieceStep * i, p.depth, x[t][i]);
      if (lane == 0) p.r[mine] = r;
    }
    __syncthreads();
  }
  float part[tiles][2][4] = {};
  const int steps = (p.depth + kStep * kWarps * pieces - 1) / (kStep * kWarps * pieces);
  for (int step = 0; step < steps; ++step) {
    if (step > 0) load_weights(step);
    Packed<bf16> x[tiles][pieces];
#pragma unroll
    for (int i = 0; i < pieces; ++i)
#pragma unroll
      for (int t = 0; t < tiles; ++t) {
        const int k = depth_of(step, i), mine = row + 8 * t + group;
        x[t][i] = mine < p.rows && k < p.depth ? load<true>(p.a + mine * p.a_ld + z * p.a_step, k, p.depth)
                                               : Packed<bf16>{};
      }
#pragma unroll
    for (int i = 0; i < pieces; ++i) {
      const int k = depth_of(step, i);
      if constexpr (norm) {
        const Eight gain = unpack(k < p.depth ? load<true>(p.gain, k, p.depth) : Packed<float>{});
#pragma unroll
        for (int t = 0; t < tiles; ++t) {
          const float r = factor[8 * t + group];
          Eight e = unpack(x[t][i]);
#pragma unroll
          for (int j = 0; j < kEight; ++j) e.v[j] = gain.v[j] * (e.v[j] * r);
          x[t][i] = pack<bf16>(e);
        }
      }
      const uint32_t first[4] = {w[0][i].w[0], w[1][i].w[0], w[0][i].w[1], w[1][i].w[1]},
                     last[4] = {w[0][i].w[2], w[1][i].w[2], w[0][i].w[3], w[1][i].w[3]};
#pragma unroll
      for (int t = 0; t < tiles; ++t) {
        multiply_add(part[t][0], first, x[t][i].w[0], x[t][i].w[1]);
        multiply_add(part[t][1], last, x[t][i].w[2], x[t][i].w[3]);
      }
    }
  }
#pragma unroll
  for (int t = 0; t < tiles; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      sums[warp][8 * t + 2 * pair + i % 2][group + i / 2 * 8] = part[t][0][i] + part[t][1][i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int at = int(threadIdx.x) + kThreads * i, t = at / kColumns, c = at % kColumns;
    if (at >= kRows * kColumns || row + t >= p.rows || column + c >= side.columns) continue;
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kWarps; ++k) sum += sums[k][t][c];
    const int64_t to = (row + t) * side.c_ld + z * p.c_step + column + c;
    if (p.floats) static_cast<float*>(side.c)[to] = before[i] + sum;
    else static_cast<bf16*>(side.c)[to] = bf16(before[i] + sum);
  }
}

template <int tiles> void start_tiles(const Queue& queue, const Args& p, int64_t count, bool norm) {
  const auto tiles_of = [](const Side& s) { return (s.columns + kColumns - 1) / kColumns; };
  const dim3 grid(unsigned(tiles_of(p.first) + tiles_of(p.second)),
                  unsigned((p.rows + 8 * tiles - 1) / (8 * tiles)), unsigned(count));
  const auto run = [&](auto kernel) { launch(queue, kernel, grid, kThreads, 0, p); };
  const bool flat = p.depth <= 2 * kStep * kWarps;
  if (norm && flat) run(some_columns<tiles, 2, true>);
  else if (norm) run(some_columns<tiles, 4, true>);
  else if (flat) run(some_columns<tiles, 2, false>);
  else run(some_columns<tiles, 4, false>);
  launched("a product of some rows");
}

void start(const Queue& queue, const Args& p, int64_t count, bool norm) {
  if (p.rows <= 8) start_tiles<1>(queue, p, count, norm);
  else if (p.rows <= 16) start_tiles<2>(queue, p, count, norm);
  else start_tiles<4>(queue, p, count, norm);
}

bool wide(const Tensor& t) { return t.dtype == DType::bf16 && is_wide(t); }
bool stores(const Tensor& t) { return t.dtype == DType::bf16 || t.dtype == DType::f32; }
Side side_of(const Tensor& b, const Tensor& c, int64_t columns) {
  return {.b = static_cast<const bf16*>(b.data),
          .c = c.data,
          .b_ld = b.ld,
          .c_ld = c.ld,
          .columns = int(columns)};
}

// Small weights stay in the second-level cache: every 32 rows may read them again.
int64_t most_rows(const Products& g) {
  constexpr int64_t kSmallWeights = int64_t(1) << 20, kNumbers = int64_t(1) << 16, kMostAgain = 256;
  return g.n * g.k * g.count > kSmallWeights ? kMostRows : std::clamp(kNumbers / g.k, kMostRows, kMostAgain);
}

}  // namespace

bool some_rows(const Queue& queue, const NormGemm& g) {
  // One product of up to 4 rows may stand in for a part of hopper/query_few.cu, which adds in another order.
  if (g.x.rows < (g.w2 ? 2 : 5) || g.x.rows > kMostRows || g.x.cols > kMostNormed ||
      g.w.rows > kMostColumns || !wide(g.x) || !wide(g.w) || !wide(g.y) || !is_wide(g.gain) ||
      g.gain.dtype != DType::f32 || !stores(g.c) || (g.w2 && (!wide(g.w2) || g.c2.dtype != g.c.dtype)))
    return false;
  Args p{.first = side_of(g.w, g.c, g.w.rows),
         .second = {},
         .a = static_cast<const bf16*>(g.x.data),
         .a_ld = g.x.ld,
         .rows = int(g.x.rows),
         .depth = int(g.x.cols),
         .floats = g.c.dtype == DType::f32,
         .ahead = true,
         .gain = static_cast<const float*>(g.gain.data),
         .y = static_cast<bf16*>(g.y.data),
         .r = static_cast<float*>(g.r.data),
         .y_ld = g.y.ld,
         .eps = g.eps};
  if (g.w2) p.second = side_of(g.w2, g.c2, g.w2.rows);
  start(queue, p, 1, true);
  return true;
}

bool some_rows(const Queue& queue, const Products& g, bool any_rows) {
  if (g.trans_a || !g.trans_b || g.ragged != Products::Ragged::none || g.m < (any_rows ? 1 : 2) || g.n == 0 ||
      g.k == 0 || g.m > (any_rows ? kMostFixedRows : most_rows(g)) || g.n > kMostColumns ||
      g.k > (any_rows ? kMostColumns : kMostDepth) || g.k % 8 != 0 || g.count > 65535 || g.c_row_step != 0 ||
      g.a_col_step % 8 != 0 || !wide(g.a) || !wide(g.b) || !stores(g.c))
    return false;
  Side first = side_of(g.b, g.c, g.n);
  first.b += g.b_row_first * g.b.ld;
  start(queue,
        {.first = first,
         .second = {},
         .a = static_cast<const bf16*>(g.a.data),
         .a_ld = g.a.ld,
         .a_step = g.a_col_step,
         .b_step = g.b_row_step * g.b.ld,
         .c_step = g.c_col_step,
         .rows = int(g.m),
         .depth = int(g.k),
         .floats = g.c.dtype == DType::f32,
         .add = g.add,
         .ahead = g.read_ahead},
        g.count, false);
  return true;
}

}  // namespace cachalot::cuda
