// Contracts: LatentPlan, LatentAppend and LatentGather of backend/ops/latent_attention.h.
//
// Appending replaces five kernels of a decoding step (normalising, copying and turning the key, turning the
// queries, scattering) that would take their launches' time each: a block a token, a warp a tile of 128
// numbers, and beside it blocks that turn the token's queries.
#include <algorithm>
#include <string>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/families.h"
#include "backend/cuda/hopper/latent_attention_hopper.h"
#include "backend/cuda/latent_row.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/number.cuh"
#include "backend/cuda/quantize.cuh"
#include "backend/cuda/reduce.cuh"
#include "backend/ops/check.h"

namespace cachalot::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kPairsABlock = 2 * kThreads;
constexpr float kMostScale = 128;

__device__ void turn(const LatentAppend& a, int64_t position, int64_t pair, float& even, float& odd) {
  const float c = static_cast<const float*>(a.cos.data)[position * (a.rope / 2) + pair],
              s = static_cast<const float*>(a.sin.data)[position * (a.rope / 2) + pair];
  const float x = even * c - odd * s;
  odd = even * s + odd * c;
  even = x;
}

// x as the activations' format holds it.
__device__ float rounded(DType act, float x) { return act == DType::bf16 ? float(bf16(x)) : x; }

// Grid: tokens, 1 + blocks of queries' pairs. A thread owns four neighbours of the latent out of every 1024,
// a warp therefore a tile; all that a block reads is on its way before anything is waited for.
constexpr int kMostQuads = 4;  // latents up to 4096
__global__ void __launch_bounds__(kThreads)
    append_kernel(const __grid_constant__ LatentAppend a, const Faults faults) {
  let_next_start();
  __shared__ float sums[kWarps];
  const int64_t t = blockIdx.x, half = a.rope / 2;
  const auto* gains = static_cast<const float*>(a.gain.data);
  const bool of_queries = blockIdx.y > 0;
  float gain[kMostQuads][4] = {};
#pragma unroll
  for (int q = 0; q < kMostQuads; ++q)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (const int64_t c = 4 * (int64_t(q) * kThreads + threadIdx.x) + i; !of_queries && c < a.latent)
        gain[q][i] = gains[c];
  wait_for_earlier();
  const int64_t position = static_cast<const int32_t*>(a.positions.data)[t];
  if (of_queries) {
    const int64_t first = int64_t(blockIdx.y - 1) * kPairsABlock + threadIdx.x;
    float even[2], odd[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int64_t i = min(first + k * kThreads, a.heads * half - 1),
                    c = i / half * a.q_stride + a.q_offset + 2 * (i % half);
      even[k] = load_number(a.q, t, c), odd[k] = load_number(a.q, t, c + 1);
    }
    if (!faults.fine(FaultOf::rope, position, a.cos.rows)) return;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int64_t i = first + k * kThreads, c = i / half * a.q_stride + a.q_offset + 2 * (i % half);
      if (i >= a.heads * half) break;
      turn(a, position, i % half, even[k], odd[k]);
      store_number(a.q, t, c, even[k]);
      store_number(a.q, t, c + 1, odd[k]);
    }
    return;
  }
  const int64_t slot = static_cast<const int32_t*>(a.slots.data)[t];
  float x[kMostQuads][4], even = 0, odd = 0, sum = 0;
  const int64_t pair = threadIdx.x;
  if (pair < half)
    even = load_number(a.x, t, a.latent + 2 * pair), odd = load_number(a.x, t, a.latent + 2 * pair + 1);
#pragma unroll
  for (int q = 0; q < kMostQuads; ++q)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t c = 4 * (int64_t(q) * kThreads + threadIdx.x) + i;
      x[q][i] = c < a.latent ? load_number(a.x, t, c) : 0.0f;
      sum = fmaf(x[q][i], x[q][i], sum);
    }
  sum = row_sum(sum, sums);
  if (a.rope > 0 && !faults.fine(FaultOf::rope, position, a.cos.rows)) return;
  if (slot < 0 || !faults.fine(FaultOf::latent_append, slot, a.cache.rows)) return;
  const float r = float(1 / sqrt(double(sum) / double(a.latent) + a.eps));
  const DType act = a.x.dtype;
  const bool codes = a.cache.dtype == DType::e4m3;
  const LatentRow to = latent_row(a.cache, slot, a.latent, a.rope);
  if (pair < half) {
    turn(a, position, pair, even, odd);
    even = rounded(act, even), odd = rounded(act, odd);
    if (codes) {
      to.set_key(2 * pair, bf16(even)), to.set_key(2 * pair + 1, bf16(odd));
    } else {
      store_number(a.cache, slot, a.latent + 2 * pair, even);
      store_number(a.cache, slot, a.latent + 2 * pair + 1, odd);
    }
  }
#pragma unroll
  for (int q = 0; q < kMostQuads; ++q) {
    const int64_t c = 4 * (int64_t(q) * kThreads + threadIdx.x);
    if (c - 4 * int64_t(threadIdx.x % 32) >= a.latent) break;  // whole warps
    float size = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[q][i] = c + i < a.latent ? rounded(act, gain[q][i] * (x[q][i] * r)) : 0.0f;
      size = fmaxf(size, fabsf(x[q][i]));
    }
    if (!codes) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (c + i < a.latent) store_number(a.cache, slot, c + i, x[q][i]);
      continue;
    }
    const float largest = warp_max(size), scale = fminf(scale_of(largest, e4m3::kMax, true), kMostScale),
                most = scale * e4m3::kMax, over = 1 / scale;  // powers of two: exact
    if (c >= a.latent) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i) x[q][i] = (x[q][i] > most ? most : x[q][i] < -most ? -most : x[q][i]) * over;
    *reinterpret_cast<uint32_t*>(to.bytes + c) = two_codes(x[q][0], x[q][1]) | two_codes(x[q][2], x[q][3])
                                                                                   << 16;
    if (threadIdx.x % 32 == 0) to.set_scale(c / kScaleBlock, scale);
  }
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
  if (a.latent > 4 * kMostQuads * kThreads || a.rope > 2 * kThreads)
    throw Error("latent_append on CUDA: a latent of " + std::to_string(a.latent) + " numbers and a key of " +
                std::to_string(a.rope) + "; the kernel takes up to " +
                std::to_string(4 * kMostQuads * kThreads) + " and " + std::to_string(2 * kThreads))
        .hint("use the device cpu for this model");
  const int64_t pairs = a.q ? a.heads * (a.rope / 2) : 0;
  const dim3 grid(unsigned(a.x.rows), unsigned(1 + (pairs + kPairsABlock - 1) / kPairsABlock));
  launch(queue_, append_kernel, grid, kThreads, 0, a, faults_);
  launched("latent_append");
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
