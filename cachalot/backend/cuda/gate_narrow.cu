// Contracts: backend/ops/gate.h. Many tokens, up to 64 experts: a thread takes a token, since of a warp a token
// (gate.cu) 32 lanes would compute each of its sums and divisions. A block's scores stand in shared memory, which
// all its threads fill and empty a line at a time; rows are of odd length, so that tokens lie in other banks.
#include "backend/cuda/gate_narrow.h"

#include "backend/cuda/cuda_backend.h"

namespace cachalot::cuda {

namespace {

constexpr int kThreads = 256, kTokens = 64;  // of a block
constexpr int kMostExperts = 64, kMostGroups = 8;
constexpr int kRow = kMostExperts + 1;
constexpr int64_t kFewestTokens = 1024;  // for fewer, a warp a token is done sooner

bool narrow(int64_t tokens, int experts) { return experts <= kMostExperts && tokens >= kFewestTokens; }
unsigned blocks_for(int64_t tokens) { return unsigned((tokens + kTokens - 1) / kTokens); }

// The tokens of this block, and body(i, at) for each of their numbers: number i of theirs in memory, [at] of the
// rows in shared memory.
struct Here {
  int64_t first;
  int tokens;
  __device__ explicit Here(int64_t all)
      : first(int64_t(blockIdx.x) * kTokens), tokens(int(min(int64_t(kTokens), all - first))) {}
  template <class Body> __device__ void for_numbers(int experts, const Body& body) const {
#pragma unroll 4
    for (int i = int(threadIdx.x); i < tokens * experts; i += kThreads) body(i, i / experts, i % experts);
  }
};

// Closes the largest of keys[0, n), the lowest among equals, and returns which it was.
__device__ int take_best(uint32_t* keys, int n) {
  uint32_t best = kClosed;
  int at = 0;
#pragma unroll 8
  for (int e = 0; e < n; ++e)
    if (keys[e] > best) best = keys[e], at = e;
  keys[at] = kClosed;
  return at;
}

// Closes the experts of all groups but the best.
__device__ void close_groups(const GateArgs& a, uint32_t* keys) {
  const int in_group = a.experts / a.groups;
  uint32_t best[kMostGroups] = {};  // in falling order, the lower group first among equals
  int group[kMostGroups] = {};
  for (int g = 0; g < a.groups; ++g) {
    uint32_t first = kClosed, second = kClosed;
    for (int e = g * in_group; e < (g + 1) * in_group; ++e) {
      second = max(second, min(first, keys[e]));
      first = max(first, keys[e]);
    }
    uint32_t key = key_of(in_group > 1 ? number_of(first) + number_of(second) : number_of(first));
    int of = g;
    bool placed = false;  // and those behind it move on
#pragma unroll
    for (int i = 0; i < kMostGroups; ++i) {
      const uint32_t other = best[i];
      const int of_other = group[i];
      placed = placed || key > other;
      if (placed) best[i] = key, group[i] = of, key = other, of = of_other;
    }
  }
  uint64_t open = 0;
#pragma unroll
  for (int i = 0; i < kMostGroups; ++i)
    if (i < a.topk_groups) open |= uint64_t(1) << group[i];
  for (int e = 0; e < a.experts; ++e)
    if (!(open >> e / in_group & 1)) keys[e] = kClosed;
}

__global__ void __launch_bounds__(kThreads) forward_kernel(GateArgs a) {
  __shared__ float scores[kTokens][kRow];
  __shared__ uint32_t keys[kTokens][kRow];
  __shared__ int32_t counts[kMostExperts];
  start();
  const Here here(a.tokens);
  if (threadIdx.x < kMostExperts) counts[threadIdx.x] = 0;
  const int64_t begin = here.first * a.experts;
  here.for_numbers(a.experts, [&](int i, int t, int e) {
    const float s = float(1 / (1 + exp(-double(a.logits[begin + i]))));
    a.scores[begin + i] = scores[t][e] = s;
    keys[t][e] = key_of(s + a.bias[e]);
  });
  __syncthreads();
  if (const int t = int(threadIdx.x); t < here.tokens) {
    if (a.groups > a.topk_groups) close_groups(a, keys[t]);
    uint64_t chosen = 0;
    for (int round = 0; round < a.chosen; ++round) chosen |= uint64_t(1) << take_best(keys[t], a.experts);
    double sum = 0;
    for (uint64_t left = chosen; left; left &= left - 1) sum += double(scores[t][__ffsll(int64_t(left)) - 1]);
    const double factor = a.normalise ? a.scale / (sum + 1e-20) : a.scale;
    int64_t to = (here.first + t) * a.chosen;
    for (uint64_t left = chosen; left; left &= left - 1, ++to) {
      const int e = __ffsll(int64_t(left)) - 1;
      a.indices[to] = e;
      a.weights[to] = float(double(scores[t][e]) * factor);
      if (a.counts) atomicAdd(counts + e, 1);
    }
  }
  __syncthreads();
  if (const int e = int(threadIdx.x); a.counts && e < a.experts && counts[e] != 0)
    atomicAdd(a.counts + e, counts[e]);
}

__global__ void __launch_bounds__(kThreads) balance_kernel(const float* from, int64_t tokens, int experts,
                                                           int top_k, uint32_t* chosen, double* inverse) {
  __shared__ uint32_t keys[kTokens][kRow];
  start();
  const Here here(tokens);
  here.for_numbers(experts,
                   [&](int i, int t, int e) { keys[t][e] = key_of(from[here.first * experts + i]); });
  __syncthreads();
  const int t = int(threadIdx.x), words = (experts + 31) / 32;
  if (t >= here.tokens) return;
  double sum = 0;
  for (int e = 0; e < experts; ++e) sum += double(number_of(keys[t][e]));
  uint64_t bits = 0;
  for (int round = 0; round < top_k; ++round) bits |= uint64_t(1) << take_best(keys[t], experts);
  for (int w = 0; w < words; ++w) chosen[(here.first + t) * words + w] = uint32_t(bits >> 32 * w);
  inverse[here.first + t] = 1 / sum;
}

__global__ void __launch_bounds__(kThreads) backward_kernel(GateBackwardArgs a) {
  __shared__ float rows[kTokens][kRow];  // scores, then what becomes of them
  start();
  const Here here(a.tokens);
  const int64_t begin = here.first * a.experts;
  here.for_numbers(a.experts, [&](int i, int t, int e) { rows[t][e] = a.scores[begin + i]; });
  __syncthreads();
  if (threadIdx.x < here.tokens) {
    float* s = rows[threadIdx.x];
    const int64_t t = here.first + threadIdx.x;
    const int32_t* indices = a.indices + t * a.chosen;
    const float* dw = a.dweights + t * a.chosen;
    uint64_t chosen = 0;  // ascending, as they are: its bits are choices 0, 1, ...
    double sum = 1e-20, weighted = 0;
    for (int j = 0; j < a.chosen; ++j) {
      if (!a.faults.fine(FaultOf::gate_backward, indices[j], a.experts)) continue;
      const double score = s[indices[j]];
      sum += score;
      weighted += double(dw[j]) * score;
      chosen |= uint64_t(1) << indices[j];
    }
    const double factor = a.normalise ? a.scale / sum : a.scale, mean_dw = a.normalise ? weighted / sum : 0;
    const BalanceOfToken of = balance_of(a, t);
    double balance = 0, mean_f = 0;
    if (of.fractions) {
      double z = 0;
#pragma unroll 8
      for (int e = 0; e < a.experts; ++e) {
        z += double(s[e]);
        mean_f += double(of.fractions[e]) * double(s[e]);
      }
      mean_f /= z;
      balance = a.balance_factor / (of.length * z);
    }
#pragma unroll 8
    for (int e = 0; e < a.experts; ++e) {
      double ds = of.fractions ? balance * (double(of.fractions[e]) - mean_f) : 0;
      if (chosen >> e & 1) ds += factor * (double(*dw++) - mean_dw);
      const double score = s[e];
      s[e] = float(ds * score * (1 - score));
    }
  }
  __syncthreads();
  here.for_numbers(a.experts, [&](int i, int t, int e) { a.dlogits[begin + i] = rows[t][e]; });
}

}  // namespace

bool gate_forward_narrow(const Queue& queue, const GateArgs& args) {
  if (!narrow(args.tokens, args.experts) || args.replay || args.topk_groups > kMostGroups) return false;
  if (args.counts)
    must(cudaMemsetAsync(args.counts, 0, size_t(args.experts) * sizeof(int32_t), queue.stream),
         "gate_forward");
  launch(queue, forward_kernel, blocks_for(args.tokens), kThreads, 0, args);
  return true;
}

bool gate_backward_narrow(const Queue& queue, const GateBackwardArgs& args) {
  if (!narrow(args.tokens, args.experts)) return false;
  launch(queue, backward_kernel, blocks_for(args.tokens), kThreads, 0, args);
  return true;
}

bool balance_tokens_narrow(const Queue& queue, const float* scores, int64_t tokens, int experts, int top_k,
                           uint32_t* chosen, double* inverse) {
  if (!narrow(tokens, experts)) return false;
  launch(queue, balance_kernel, blocks_for(tokens), kThreads, 0, scores, tokens, experts, top_k, chosen,
         inverse);
  return true;
}

}  // namespace cachalot::cuda
