// Contracts: LatentPlan, LatentAppend and LatentGather of backend/ops/latent_attention.h; backend/ops/latent_query.h.
//
// Appending replaces five kernels of a decoding step (normalising, copying and turning the key, turning the
// queries, scattering) that would take their launches' time each: a block a token (latent_append.cuh), and beside it
// blocks that turn the token's queries.
#include <algorithm>
#include <string>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/families.h"
#include "backend/cuda/hopper/decoding.h"
#include "backend/cuda/hopper/latent_attention_hopper.h"
#include "backend/cuda/latent_append.cuh"
#include "backend/cuda/latent_row.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/number.cuh"
#include "backend/cuda/some_rows.h"
#include "backend/ops/check.h"

namespace cachalot::cuda {

namespace {

constexpr int kThreads = kAppendThreads;

// Grid: tokens, 1 + blocks of queries' pairs.
__global__ void __launch_bounds__(kThreads)
    append_kernel(const __grid_constant__ LatentAppend a, const Faults faults) {
  let_next_start();
  const int64_t t = blockIdx.x;
  if (blockIdx.y == 0) append_row(a, faults, t);
  else turn_queries(a, faults, t, int(blockIdx.y) - 1);
}

// Block: a token.
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const __grid_constant__ LatentGather g, const Faults faults) {
  start();
  const int64_t t = blockIdx.x, row = static_cast<const int32_t*>(g.rows.data)[t];
  const bool real = row >= 0 && faults.fine(FaultOf::latent_gather, row, g.cache.rows);
  const LatentRow from = latent_row(g.cache, real ? row : 0, g.latent, g.rope);
  for (int64_t c = threadIdx.x; c < g.latent + g.rope; c += kThreads)
    store_number(g.y, t, c, real ? from(c) : 0.0f);
}

}  // namespace

void CudaBackend::latent_plan(const LatentPlan& p) {
  check(p);
  select();
  if (p.rows == 0 || p.sequences == 0) return;
  if (kHopperAttention.runs_on(context_->major))
    hopper::latent_plan({.queue = queue_, .multiprocessors = context_->multiprocessors, .faults = faults_},
                        p);
}

void CudaBackend::latent_append(const LatentAppend& a) {
  check(a);
  require_no_f64("latent_append", {&a.x, &a.q});
  select();
  if (a.x.rows == 0) return;
  if (!append_fits(a))
    throw Error("latent_append on CUDA: a latent of " + std::to_string(a.latent) + " numbers and a key of " +
                std::to_string(a.rope) + "; the kernel takes up to " +
                std::to_string(4 * kMostQuads * kThreads) + " and " + std::to_string(2 * kThreads))
        .hint("use the device cpu for this model");
  const dim3 grid(unsigned(a.x.rows), unsigned(append_blocks(a)));
  launch(queue_, append_kernel, grid, kThreads, 0, a, faults_);
  launched("latent_append");
}

void CudaBackend::latent_query(const LatentQuery& q) {
  check(q);
  require_no_f64("latent_query", {&q.project.x});
  select();
  if (q.project.x.rows > 0 && !rows_fixed_ && kHopperDecoding.runs_on(context_->major) &&
      hopper::query_few(queue_, q, faults_))
    return;
  norm_gemm(q.project);
  if (absorb_rows(queue_, q.absorb, &q.append, faults_, rows_fixed_)) return;
  latent_append(q.append);
  head_gemm(q.absorb);
}

void CudaBackend::latent_gather(const LatentGather& g) {
  check(g);
  require_no_f64("latent_gather", {&g.y});
  select();
  if (g.y.rows == 0) return;
  launch(queue_, gather_kernel, unsigned(g.y.rows), kThreads, 0, g, faults_);
  launched("latent_gather");
}

}  // namespace cachalot::cuda
