// Contract: backend/ops/norm_gemm.h. Few rows: every warp normalises the rows for itself (they come from the
// cache, the arithmetic is nothing) and multiplies its row of weights, which was on its way while the kernel
// before still ran. Blocks along y take four rows each. More rows of bf16 are taken by some_rows.h and
// hopper/norm_tiles.cu where they can; with fixed rows the latter takes any number.
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/families.h"
#include "backend/cuda/few_rows.cuh"
#include "backend/cuda/hopper/decoding.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/number.cuh"
#include "backend/cuda/some_rows.h"
#include "backend/ops/check.h"
#include "backend/ops/compose.h"

namespace cachalot::cuda {

namespace {

constexpr int kWarps = 8, kMostRows = 8, kRowsABlock = 4, kRouterColumns = 256;

template <class A, class B, int pieces> __global__ void __launch_bounds__(32 * kWarps)
    norm_columns(const __grid_constant__ NormGemm g) {
  let_next_start();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t k = g.x.cols, first = g.w.rows, all = first + (g.w2.data ? g.w2.rows : 0),
                column = int64_t(blockIdx.x) * kWarps + warp;
  const bool second = column >= first;
  Packed<B> w[pieces];
  Packed<float> gain[pieces];
  if (column < all)
    load_pieces(second ? static_cast<const B*>(g.w2.data) + (column - first) * g.w2.ld
                       : static_cast<const B*>(g.w.data) + column * g.w.ld,
                k, w);
  load_pieces(static_cast<const float*>(g.gain.data), k, gain);
  wait_for_earlier();
  if (column >= all) return;
  const auto row = [&](int64_t t) { return static_cast<const A*>(g.x.data) + t * g.x.ld; };
  const int64_t begin = int64_t(blockIdx.y) * kRowsABlock, end = min(g.x.rows, begin + kRowsABlock);
  Packed<A> next[pieces];
  load_pieces(row(begin), k, next);
  for (int64_t t = begin; t < end; ++t) {
    Packed<A> x[pieces];
#pragma unroll
    for (int i = 0; i < pieces; ++i) x[i] = next[i];
    if (t + 1 < end) load_pieces(row(t + 1), k, next);
    float r;
    normalise(x, gain, k, g.eps, r);
    const float sum = warp_sum(dot(x, w));
    if (lane == 0) {
      if (second) store_number(g.c2, t, column - first, sum);
      else store_number(g.c, t, column, sum);
    }
    if (column == 0) {
#pragma unroll
      for (int i = 0; i < pieces; ++i)
        if (8 * lane + kPieceStep * i < k)
          store<true>(static_cast<A*>(g.y.data) + t * g.y.ld, 8 * lane + kPieceStep * i, k, x[i]);
      if (lane == 0) static_cast<float*>(g.r.data)[t] = r;
    }
  }
}

template <class A, class B> bool launch_for(const Queue& queue, const NormGemm& g) {
  const int64_t all = g.w.rows + (g.w2 ? g.w2.rows : 0);
  const dim3 blocks(unsigned((all + kWarps - 1) / kWarps),
                    unsigned((g.x.rows + kRowsABlock - 1) / kRowsABlock));
  if (g.x.cols <= 2 * kPieceStep) launch(queue, norm_columns<A, B, 2>, blocks, 32 * kWarps, 0, g);
  else if (g.x.cols <= 4 * kPieceStep) launch(queue, norm_columns<A, B, 4>, blocks, 32 * kWarps, 0, g);
  else if (g.x.cols <= 8 * kPieceStep) launch(queue, norm_columns<A, B, 8>, blocks, 32 * kWarps, 0, g);
  else return false;
  launched("norm_gemm");
  return true;
}

bool few_rows(const Queue& queue, const NormGemm& g, bool any_rows) {
  const DType w = g.w.dtype;
  // A router has so few columns that more rows are worth it too.
  const int64_t most = g.w.rows <= kRouterColumns && !g.w2 ? 256 : kMostRows;
  if ((g.x.rows > most && !any_rows) || g.x.rows > 65535 || (w != DType::bf16 && w != DType::f32) ||
      (g.w2 && g.w2.dtype != w) || !are_wide({&g.x, &g.y, &g.gain, &g.w, &g.w2}))
    return false;
  if (g.x.dtype == DType::bf16)
    return w == DType::bf16 ? launch_for<bf16, bf16>(queue, g) : launch_for<bf16, float>(queue, g);
  return w == DType::f32 && launch_for<float, float>(queue, g);
}

}  // namespace

void CudaBackend::norm_gemm(const NormGemm& g) {
  check(g);
  require_no_f64("norm_gemm", {&g.x, &g.c, &g.c2});
  select();
  // Many columns are worth a norm apart, whatever the number of rows: one kernel reads their weights once.
  if (g.x.rows == 0 || g.w.rows == 0 || (rows_fixed_ && g.w.rows >= kFixedTileColumns))
    return compose(*this, g);
  if (!rows_fixed_ && some_rows(queue_, g)) return;
  if (kHopperDecoding.runs_on(context_->major) && hopper::norm_tiles(queue_, g, rows_fixed_)) return;
  if (!few_rows(queue_, g, rows_fixed_)) compose(*this, g);
}

}  // namespace cachalot::cuda
