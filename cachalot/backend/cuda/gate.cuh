// Choosing experts (backend/ops/gate.h): a warp a token, up to 256 experts in its registers.
#pragma once

#include <cstdint>

#include "backend/cuda/faults.cuh"
#include "backend/cuda/reduce.cuh"

namespace cachalot::cuda {

constexpr uint32_t kClosed = 0;  // the key of what cannot be chosen (any more)

// Keys order like numbers: NaN below every number and equal to NaN, -0 equal to 0, all above kClosed.
__device__ inline uint32_t key_of(float x) {
  if (isnan(x)) return 1;
  const uint32_t u = __float_as_uint(x == 0 ? 0.0f : x);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}

__device__ inline float number_of(uint32_t key) {
  if (key == 1) return NAN;
  return __uint_as_float(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key);
}

struct GateArgs {
  const float *logits, *bias;
  float *scores, *weights;
  int32_t *indices, *counts;  // counts: or null
  int64_t tokens;
  int experts, groups, topk_groups, chosen;
  bool normalise, replay;
  bool count;  // at once, for few tokens; one block zeroes the counts itself, several find them zero
  double scale;
  Faults faults;
};

struct GateBackwardArgs {
  const float *dweights, *scores, *fractions;
  const int32_t *indices, *starts;
  float* dlogits;
  int64_t tokens, sequences;
  int experts, chosen;
  bool normalise;
  double scale, balance_factor;
  Faults faults;
};

// The sequence of row t: the last q with starts[q] <= t; -1 before the first.
__device__ inline int64_t sequence_of(const int32_t* starts, int64_t sequences, int64_t t) {
  int64_t low = 0, high = sequences + 1;  // starts[low - 1] <= t < starts[high]
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (starts[middle] <= t) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

// The sequence-wise balance loss as it concerns token t: its sequence's fractions [experts], or none, and length.
struct BalanceOfToken {
  const float* fractions;
  double length;
};
__device__ inline BalanceOfToken balance_of(const GateBackwardArgs& a, int64_t t) {
  if (a.balance_factor == 0) return {};
  const int64_t q = sequence_of(a.starts, a.sequences, t);
  if (q < 0 || q >= a.sequences) return {};
  return {a.fractions + q * a.experts, double(a.starts[q + 1] - a.starts[q])};
}

// Up to 32 * kEach experts in groups of a power of two (V3: 256 in 8): lane l holds experts kEach * l ..., so
// that a group is a part of a lane or some neighbouring lanes, and of equals the lowest lane's lowest is first.
template <int kEach>
__device__ void choose(const uint32_t (&biased)[kEach], const GateArgs& a, uint32_t& chosen) {
  const int lane = int(threadIdx.x) % 32, in_group = a.experts / a.groups;
  uint32_t keys[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) keys[i] = biased[i];
  if (a.groups > a.topk_groups) {
    // The two largest of the group, in each of its lanes.
    uint32_t first[kEach], second[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) first[i] = keys[i], second[i] = kClosed;
    const auto merge = [](uint32_t& f, uint32_t& s, uint32_t f2, uint32_t s2) {
      s = max(min(f, f2), max(s, s2));
      f = max(f, f2);
    };
#pragma unroll
    for (int step = 1; step < kEach; step *= 2)
      if (step < in_group) {
#pragma unroll
        for (int i = 0; i < kEach; i += 2 * step) {
          merge(first[i], second[i], first[i + step], second[i + step]);
#pragma unroll
          for (int j = i + 1; j < i + 2 * step; ++j) first[j] = first[i], second[j] = second[i];
        }
      }
    for (int step = 1; step * kEach < in_group; step *= 2) {
      const uint32_t f = __shfl_xor_sync(kAll, first[0], step), s = __shfl_xor_sync(kAll, second[0], step);
      merge(first[0], second[0], f, s);
#pragma unroll
      for (int j = 1; j < kEach; ++j) first[j] = first[0], second[j] = second[0];
    }
    uint32_t group[kEach];  // the group's key, of each expert; kClosed once it stays
    uint32_t open = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      group[i] =
          kEach * lane + i >= a.experts
              ? kClosed
              : key_of(in_group > 1 ? number_of(first[i]) + number_of(second[i]) : number_of(first[i]));
    for (int round = 0; round < a.topk_groups; ++round) {
      uint32_t most = group[0];
#pragma unroll
      for (int i = 1; i < kEach; ++i) most = max(most, group[i]);
      const uint32_t best = __reduce_max_sync(kAll, most);
      const int owner = __ffs(int(__ballot_sync(kAll, most == best))) - 1;
      int at = 0;
#pragma unroll
      for (int i = kEach - 1; i >= 0; --i)
        if (group[i] == best) at = i;
      const int g = (kEach * owner + __shfl_sync(kAll, at, owner)) / in_group;
#pragma unroll
      for (int i = 0; i < kEach; ++i)
        if ((kEach * lane + i) / in_group == g) group[i] = kClosed, open |= 1u << i;
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (!(open >> i & 1)) keys[i] = kClosed;
  }
  chosen = 0;
  uint32_t most = keys[0];
#pragma unroll
  for (int i = 1; i < kEach; ++i) most = max(most, keys[i]);
  for (int round = 0; round < a.chosen; ++round) {
    const uint32_t best = __reduce_max_sync(kAll, most);
    if (lane != __ffs(int(__ballot_sync(kAll, most == best))) - 1) continue;
    bool taken = false;
    most = kClosed;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (!taken && keys[i] == best) taken = true, keys[i] = kClosed, chosen |= 1u << i;
      most = max(most, keys[i]);
    }
  }
}

// to = from[at, at + kEach), 0 beyond n; four at a time where they lie so.
template <int kEach> __device__ void load_few(const float* from, int at, int n, float (&to)[kEach]) {
  if (kEach % 4 == 0 && at + kEach <= n && reinterpret_cast<uintptr_t>(from + at) % 16 == 0) {
#pragma unroll
    for (int i = 0; i < kEach / 4; ++i) {
      const float4 four = reinterpret_cast<const float4*>(from + at)[i];
      to[4 * i] = four.x, to[4 * i + 1] = four.y, to[4 * i + 2] = four.z, to[4 * i + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kEach; ++i) to[i] = at + i < n ? from[at + i] : 0.0f;
  }
}

template <int kEach> struct GateMemory {  // shared, of a warp
  int32_t chosen[32 * kEach];
  float scores[32 * kEach];
};

// Token t, whose logits and biases the lanes hold, kEach neighbours each.
template <int kEach> __device__ void gate_token(const GateArgs& a, int64_t t, float (&score)[kEach],
                                                const float (&bias)[kEach], GateMemory<kEach>& memory) {
  const int lane = int(threadIdx.x) % 32;
  uint32_t keys[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int e = kEach * lane + i;
    score[i] = float(1 / (1 + exp(-double(score[i]))));
    keys[i] = e < a.experts ? key_of(score[i] + bias[i]) : kClosed;
    memory.scores[e] = score[i];
  }
  __syncwarp();
  if (a.scores)
    for (int e = lane; e < a.experts; e += 32) a.scores[t * a.experts + e] = memory.scores[e];
  int32_t* indices = a.indices + t * a.chosen;
  uint32_t mine = 0;
  if (a.replay) {
    for (int j = lane; j < a.chosen; j += 32) memory.chosen[j] = indices[j];
  } else {
    choose<kEach>(keys, a, mine);
    // Ascending: how many the lanes below chose, then one's own.
    int before = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) before += __popc(__ballot_sync(kAll, mine >> i & 1) & ((1u << lane) - 1));
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (mine >> i & 1) memory.chosen[before] = indices[before] = kEach * lane + i, ++before;
  }
  __syncwarp();
  double sum = 0;
  for (int j = 0; j < a.chosen; ++j)
    if (a.faults.fine(FaultOf::gate_forward, memory.chosen[j], a.experts))
      sum += double(memory.scores[memory.chosen[j]]);
  const double factor = a.normalise ? a.scale / (sum + 1e-20) : a.scale;
  for (int j = lane; j < a.chosen; j += 32) {
    const int e = memory.chosen[j];
    const bool fine = 0 <= e && e < a.experts;
    a.weights[t * a.chosen + j] = fine ? float(double(memory.scores[e]) * factor) : 0.0f;
    if (a.counts && a.count && fine) atomicAdd(a.counts + e, 1);
  }
}

}  // namespace cachalot::cuda
