// Contract: backend/ops/expert_mlp.h. Few rows: two kernels that go by the choices themselves. In the first a
// warp makes one hidden number of one choice (or of the shared expert) from a row of the gate and one of the
// up projection; in the second a warp makes one number of the output from a row of every chosen expert's down
// projection, all of them in flight together. More rows: expert_tiles.cu.
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/expert_mlp.h"
#include "backend/cuda/few_rows.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/number.cuh"
#include "backend/ops/check.h"
#include "backend/ops/compose.h"

namespace cachalot::cuda {

namespace {

constexpr int kWarps = 8, kMostChosen = 8, kMostRows = 8, kFewest = 2;  // rows that tiles are no better for

struct FewArgs {
  ExpertMlp e;
  Faults faults;
  int64_t hidden, shared_hidden;  // I, I'
};

// Expert number j of token t; -1, and told, when there is none of that number.
__device__ inline int64_t expert_of(const FewArgs& a, int64_t t, int64_t j) {
  const int64_t expert = static_cast<const int32_t*>(a.e.indices.data)[t * a.e.indices.ld + j];
  return a.faults.fine(FaultOf::permute_plan, expert, a.e.experts) ? expert : -1;
}

// Grid: hidden numbers of all choices and behind them of the shared expert; tokens.
template <class A, int pieces> __global__ void __launch_bounds__(32 * kWarps)
    few_up(const __grid_constant__ FewArgs a) {
  const int t = int(blockIdx.y), chosen = int(a.e.indices.cols), d = int(a.e.x.cols), hidden = int(a.hidden);
  int i = int(blockIdx.x) * kWarps + int(threadIdx.x) / 32;
  const bool shared = i >= chosen * hidden;
  const int j = shared ? 0 : i / hidden;
  i -= (shared ? chosen : j) * hidden;
  if (shared && i >= a.shared_hidden) return;  // which lets the next start too
  const int64_t half = shared ? a.shared_hidden : hidden;
  Packed<A> gate[pieces], up[pieces], x[pieces];
  const A* w = static_cast<const A*>(shared ? a.e.shared_gate_up.data : a.e.gate_up.data);
  const int64_t ld = shared ? a.e.shared_gate_up.ld : a.e.gate_up.ld;
  if (shared) load_pieces(w + i * ld, d, gate), load_pieces(w + (half + i) * ld, d, up);
  wait_for_earlier();
  let_next_start();  // not before: few_down may count on the choices
  load_pieces(static_cast<const A*>(a.e.x.data) + t * a.e.x.ld, d, x);
  if (!shared) {
    const int64_t expert = expert_of(a, t, j);
    if (expert < 0) return;
    w += expert * 2 * half * ld;
    load_pieces(w + i * ld, d, gate), load_pieces(w + (half + i) * ld, d, up);
  }
  const float g = float(A(warp_sum(dot(x, gate)))), u = float(A(warp_sum(dot(x, up))));
  if (threadIdx.x % 32 != 0) return;
  const Tensor& to = shared ? a.e.shared_activated : a.e.activated;
  store_number(to, shared ? t : t * chosen + j, i, __fdividef(g, 1.0f + expf(-g)) * u);
}

// Grid: columns of the output, tokens. It starts when all of few_up have seen the choices: what was chosen may be
// read, and those experts' weights called, while few_up still multiplies.
template <class A, int pieces> __global__ void __launch_bounds__(32 * kWarps)
    few_down(const __grid_constant__ FewArgs a) {
  let_next_start();
  const int lane = threadIdx.x % 32;
  const int64_t t = blockIdx.y, chosen = a.e.indices.cols, d = a.e.x.cols,
                column = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (column >= d) return;
  const bool shared = a.shared_hidden > 0;
  Packed<A> of_shared[pieces], w[kMostChosen][pieces], x[pieces];
  int expert = 0;  // lane j: of choice j
  float weight = 0;
  if (lane < chosen) {
    expert = __ldcg(static_cast<const int32_t*>(a.e.indices.data) + t * a.e.indices.ld + lane);
    weight = __ldcg(static_cast<const float*>(a.e.weights.data) + t * a.e.weights.ld + lane);
    if (!a.faults.fine(FaultOf::permute_plan, expert, a.e.experts)) expert = -1;
  }
  const A* down = static_cast<const A*>(a.e.down.data) + column * a.e.down.ld;
#pragma unroll
  for (int j = 0; j < kMostChosen; ++j) {
    if (j >= chosen) break;
    const int64_t of = max(__shfl_sync(~0u, expert, j), 0);
    load_pieces(down + of * d * a.e.down.ld, a.hidden, w[j]);
  }
  if (shared)
    load_pieces(static_cast<const A*>(a.e.shared_down.data) + column * a.e.shared_down.ld, a.shared_hidden,
                of_shared);
  wait_for_earlier();
  float sums[kMostChosen] = {}, total = load_number(a.e.residual, t, column);
  if (shared) {
    load_pieces(static_cast<const A*>(a.e.shared_activated.data) + t * a.e.shared_activated.ld,
                a.shared_hidden, x);
    total += float(A(warp_sum(dot(x, of_shared))));
  }
#pragma unroll
  for (int j = 0; j < kMostChosen; ++j) {
    if (j >= chosen) break;
    load_pieces(static_cast<const A*>(a.e.activated.data) + (t * chosen + j) * a.e.activated.ld, a.hidden, x);
    sums[j] = dot(x, w[j]);
  }
#pragma unroll
  for (int j = 0; j < kMostChosen; ++j) sums[j] = warp_sum(sums[j]);
#pragma unroll
  for (int j = 0; j < kMostChosen; ++j) {
    if (j >= chosen) break;
    const float by = __shfl_sync(~0u, weight, j);
    if (__shfl_sync(~0u, expert, j) >= 0) total = fmaf(by, float(A(sums[j])), total);
  }
  if (lane == 0) store_number(a.e.y, t, column, total);
}

template <class A> bool few_rows(const Queue& queue, const FewArgs& a) {
  const ExpertMlp& e = a.e;
  const int64_t chosen = e.indices.cols, width = e.x.cols, tokens = e.x.rows,
                widest = std::max(a.hidden, a.shared_hidden);
  if (width > 8 * kPieceStep || widest > (sizeof(A) == 2 ? 4 : 2) * kPieceStep) return false;  // registers
  const dim3 up(unsigned((chosen * a.hidden + a.shared_hidden + kWarps - 1) / kWarps), unsigned(tokens)),
      down(unsigned((width + kWarps - 1) / kWarps), unsigned(tokens));
  if (width <= 2 * kPieceStep) launch(queue, few_up<A, 2>, up, 32 * kWarps, 0, a);
  else if (width <= 4 * kPieceStep) launch(queue, few_up<A, 4>, up, 32 * kWarps, 0, a);
  else launch(queue, few_up<A, 8>, up, 32 * kWarps, 0, a);
  launched("expert_mlp: up");
  if (widest <= 2 * kPieceStep) launch(queue, few_down<A, 2>, down, 32 * kWarps, 0, a);
  else if constexpr (sizeof(A) == 2) launch(queue, few_down<A, 4>, down, 32 * kWarps, 0, a);
  launched("expert_mlp: down");
  return true;
}

bool takes_few(const ExpertMlp& e, bool any_rows) {
  const DType act = e.x.dtype;
  const auto fits = [&](const Tensor& t) { return !t || (t.dtype == act && is_wide(t)); };
  return (e.x.rows <= kMostRows || (any_rows && e.x.rows <= 65535)) && e.indices.cols <= kMostChosen &&
         fits(e.x) && fits(e.gate_up) && fits(e.down) && fits(e.shared_gate_up) && fits(e.shared_down) &&
         fits(e.activated) && fits(e.shared_activated);
}

}  // namespace

void CudaBackend::expert_mlp(const ExpertMlp& e) {
  check(e);
  require_no_f64("expert_mlp", {&e.x});
  select();
  const FewArgs a{.e = e,
                  .faults = faults_,
                  .hidden = e.down.cols,
                  .shared_hidden = e.shared_down ? e.shared_down.cols : 0};
  if (e.x.rows == 0) return;
  // With fixed rows one kernel takes few and many alike.
  if ((rows_fixed_ || e.x.rows > kFewest) && expert_tiles(queue_, e, faults_, rows_fixed_)) return;
  if (takes_few(e, rows_fixed_) &&
      (e.x.dtype == DType::bf16 ? few_rows<bf16>(queue_, a) : few_rows<float>(queue_, a)))
    return;
  compose(*this, e);
}

}  // namespace cachalot::cuda
