// What a step adds to a layer's cache (backend/ops/latent_attention.h, LatentAppend): a block a token, a warp a tile
// of 128 numbers. A thread owns four neighbours of the latent out of every 1024; all that a block reads is on its way
// before anything is waited for.
#pragma once

#include "backend/cuda/faults.cuh"
#include "backend/cuda/few_rows.cuh"
#include "backend/cuda/latent_row.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/number.cuh"
#include "backend/cuda/quantize.cuh"
#include "backend/cuda/reduce.cuh"
#include "backend/ops/latent_attention.h"

namespace cachalot::cuda {

constexpr int kAppendThreads = 256;
constexpr int kMostQuads = 4;  // latents up to 4096

// The rotation of a pair of numbers.
struct Turn {
  float cos, sin;
  __device__ Turn(const LatentAppend& a, int64_t position, int64_t pair)
      : cos(static_cast<const float*>(a.cos.data)[position * (a.rope / 2) + pair]),
        sin(static_cast<const float*>(a.sin.data)[position * (a.rope / 2) + pair]) {}
  __device__ void operator()(float& even, float& odd) const {
    const float x = even * cos - odd * sin;
    odd = even * sin + odd * cos;
    even = x;
  }
};

// x as the activations' format holds it.
__device__ inline float rounded(DType act, float x) { return act == DType::bf16 ? float(bf16(x)) : x; }

// Token t's row of the cache. All threads of a block of kAppendThreads; waits for earlier kernels itself.
__device__ inline void append_row(const LatentAppend& a, const Faults& faults, int64_t t) {
  constexpr float kMostScale = 128;
  constexpr int kThreads = kAppendThreads;
  __shared__ float sums[kThreads / 32];
  const int64_t half = a.rope / 2;
  const auto* gains = static_cast<const float*>(a.gain.data);
  float gain[kMostQuads][4] = {};
#pragma unroll
  for (int q = 0; q < kMostQuads; ++q)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (const int64_t c = 4 * (int64_t(q) * kThreads + threadIdx.x) + i; c < a.latent)
        gain[q][i] = gains[c];
  wait_for_earlier();
  const int64_t position = static_cast<const int32_t*>(a.positions.data)[t];
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
  const float r = inverse_root(double(sum) / double(a.latent) + a.eps);
  const DType act = a.x.dtype;
  const bool codes = a.cache.dtype == DType::e4m3;
  const LatentRow to = latent_row(a.cache, slot, a.latent, a.rope);
  if (pair < half) {
    Turn(a, position, pair)(even, odd);
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

}  // namespace cachalot::cuda
