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
  Turn() = default;
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
  const int64_t position = __ldcg(static_cast<const int32_t*>(a.positions.data) + t);
  const int64_t slot = __ldcg(static_cast<const int32_t*>(a.slots.data) + t);
  const int64_t pair = threadIdx.x;
  const bool placed = a.rope == 0 || faults.fine(FaultOf::rope, position, a.cos.rows);
  Turn turn{};
  if (placed && pair < half) turn = Turn(a, position, pair);
  wait_for_earlier();
  float x[kMostQuads][4], even = 0, odd = 0, sum = 0;
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
  if (!placed) return;
  if (slot < 0 || !faults.fine(FaultOf::latent_append, slot, a.cache.rows)) return;
  const float r = inverse_root(double(sum) / double(a.latent) + a.eps);
  const DType act = a.x.dtype;
  const bool codes = a.cache.dtype == DType::e4m3;
  const LatentRow to = latent_row(a.cache, slot, a.latent, a.rope);
  if (pair < half) {
    turn(even, odd);
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

// Blocks of a token: its row, and its queries' pairs, two a thread.
constexpr int kPairsABlock = 2 * kAppendThreads;
inline int64_t append_blocks(const LatentAppend& a) {
  const int64_t pairs = a.q ? a.heads * (a.rope / 2) : 0;
  return 1 + (pairs + kPairsABlock - 1) / kPairsABlock;
}
inline bool append_fits(const LatentAppend& a) {
  return a.latent <= 4 * kMostQuads * kAppendThreads && a.rope <= 2 * kAppendThreads;
}

// Turns block `part`'s share of the rotary numbers of token t's queries; waits for earlier kernels itself.
__device__ inline void turn_queries(const LatentAppend& a, const Faults& faults, int64_t t, int part) {
  const int64_t half = a.rope / 2, position = __ldcg(static_cast<const int32_t*>(a.positions.data) + t);
  const bool placed = faults.fine(FaultOf::rope, position, a.cos.rows);
  const int64_t first = int64_t(part) * kPairsABlock + threadIdx.x;
  Turn turns[2] = {};
#pragma unroll
  for (int k = 0; k < 2; ++k)
    if (placed) turns[k] = Turn(a, position, (first + k * kAppendThreads) % half);
  wait_for_earlier();
  float even[2], odd[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const int64_t i = min(first + k * kAppendThreads, a.heads * half - 1),
                  c = i / half * a.q_stride + a.q_offset + 2 * (i % half);
    even[k] = load_number(a.q, t, c), odd[k] = load_number(a.q, t, c + 1);
  }
  if (!placed) return;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const int64_t i = first + k * kAppendThreads, c = i / half * a.q_stride + a.q_offset + 2 * (i % half);
    if (i >= a.heads * half) break;
    turns[k](even[k], odd[k]);
    store_number(a.q, t, c, even[k]);
    store_number(a.q, t, c + 1, odd[k]);
  }
}

}  // namespace cachalot::cuda
