// Contracts: backend/ops/gate.h, backend/ops/route.h. A warp takes a token; up to 256 experts stay in its registers
// (gate.cuh). Scores in double, rounded once, so that the choices are ref's. Counts are integers, whose sums need no
// order; everything else is summed in order. Many tokens of up to 64 experts: gate_narrow.cu.
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/families.h"
#include "backend/cuda/gate.cuh"
#include "backend/cuda/gate_narrow.h"
#include "backend/cuda/hopper/decoding.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/limits.h"
#include "backend/cuda/reduce.cuh"
#include "backend/ops/check.h"
#include "backend/ops/compose.h"

namespace cachalot::cuda {

namespace {

constexpr int64_t kSharedBytes = 48 << 10;  // what every card gives without being asked

// Closes the largest of keys[0, n), the lowest index among equals, and returns its index; -1: all closed. In
// `best_key` its key.
__device__ int take_best(uint32_t* keys, int n, uint32_t* best_key = nullptr) {
  const int lane = int(threadIdx.x) % 32;
  uint32_t best = kClosed;
  int at = n;
  for (int i = lane; i < n; i += 32)
    if (keys[i] > best) best = keys[i], at = i;
  const uint32_t most = __reduce_max_sync(kAll, best);
  if (best_key) *best_key = most;
  if (most == kClosed) return -1;
  const int chosen = int(__reduce_min_sync(kAll, unsigned(best == most ? at : n)));
  if (chosen % 32 == lane) keys[chosen] = kClosed;
  __syncwarp();
  return chosen;
}

// The sum of the two largest of a group's keys (closed on the way), or its only one, as a key. `wide`: all
// lanes look at one group together; else one lane looks at it.
__device__ uint32_t group_key(uint32_t* keys, int in_group, bool wide) {
  uint32_t first = kClosed, second = kClosed;
  if (wide && in_group <= 32) {
    const int lane = int(threadIdx.x) % 32;
    uint32_t key = lane < in_group ? keys[lane] : kClosed;
    first = __reduce_max_sync(kAll, key);
    if (lane == __ffs(int(__ballot_sync(kAll, key == first))) - 1) key = kClosed;
    second = __reduce_max_sync(kAll, key);
  } else if (wide) {
    take_best(keys, in_group, &first);
    take_best(keys, in_group, &second);
  } else {
    for (int i = 0; i < in_group; ++i) {
      const uint32_t key = keys[i];
      if (key > first) second = first, first = key;
      else if (key > second) second = key;
    }
  }
  return key_of(in_group > 1 ? number_of(first) + number_of(second) : number_of(first));
}

// Shared memory of a warp: scores [experts], keys [experts], group keys [groups], chosen [chosen].
__global__ void gate_forward_kernel(GateArgs a) {
  start();
  extern __shared__ uint32_t memory[];
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int64_t t = int64_t(blockIdx.x) * (blockDim.x / 32) + warp;
  if (a.counts && a.count && gridDim.x == 1) {
    for (int e = int(threadIdx.x); e < a.experts; e += int(blockDim.x)) a.counts[e] = 0;
    __syncthreads();
  }
  if (t >= a.tokens) return;
  uint32_t* mine = memory + int64_t(warp) * (2 * a.experts + a.groups + a.chosen);
  float* scores = reinterpret_cast<float*>(mine);
  uint32_t *keys = mine + a.experts, *group_keys = keys + a.experts;
  int32_t *chosen = reinterpret_cast<int32_t*>(group_keys + a.groups), *indices = a.indices + t * a.chosen;

  for (int e = lane; e < a.experts; e += 32) {
    const float s = float(1 / (1 + exp(-double(a.logits[t * a.experts + e]))));
    scores[e] = s;
    keys[e] = key_of(s + a.bias[e]);
    a.scores[t * a.experts + e] = s;
  }
  __syncwarp();
  if (a.replay) {
    for (int j = lane; j < a.chosen; j += 32) chosen[j] = indices[j];
  } else {
    const int in_group = a.experts / a.groups;
    if (in_group >= 16) {
      for (int g = 0; g < a.groups; ++g) {
        const uint32_t key = group_key(keys + g * in_group, in_group, true);
        if (lane == 0) group_keys[g] = key;
      }
    } else {
      for (int g = lane; g < a.groups; g += 32)
        group_keys[g] = group_key(keys + g * in_group, in_group, false);
    }
    __syncwarp();
    for (int e = lane; e < a.experts; e += 32) keys[e] = kClosed;
    __syncwarp();
    for (int round = 0; round < a.topk_groups; ++round) {  // opens the experts of the best groups
      const int g = take_best(group_keys, a.groups);
      for (int e = g * in_group + lane; e < (g + 1) * in_group; e += 32)
        keys[e] = key_of(scores[e] + a.bias[e]);
    }
    __syncwarp();
    for (int round = 0; round < a.chosen; ++round) {
      const int e = take_best(keys, a.experts);
      if (lane == 0) chosen[round] = e;
    }
    __syncwarp();
    // Ascending: mark them (chosen ones are closed, so no other has this key), then number the marks.
    constexpr uint32_t kChosen = 0xFFFFFFFFu;
    for (int j = lane; j < a.chosen; j += 32) keys[chosen[j]] = kChosen;
    __syncwarp();
    int before = 0;
    for (int first = 0; first < a.experts; first += 32) {
      const int e = first + lane;
      const bool marked = e < a.experts && keys[e] == kChosen;
      const unsigned votes = __ballot_sync(kAll, marked);
      if (marked) chosen[before + __popc(votes & ((1u << lane) - 1))] = e;
      before += __popc(votes);
    }
    __syncwarp();
    for (int j = lane; j < a.chosen; j += 32) indices[j] = chosen[j];
  }
  __syncwarp();
  double sum = 0;
  for (int j = 0; j < a.chosen; ++j)
    if (a.faults.fine(FaultOf::gate_forward, chosen[j], a.experts)) sum += double(scores[chosen[j]]);
  const double factor = a.normalise ? a.scale / (sum + 1e-20) : a.scale;
  for (int j = lane; j < a.chosen; j += 32) {
    const int e = chosen[j];
    const bool fine = 0 <= e && e < a.experts;
    a.weights[t * a.chosen + j] = fine ? float(double(scores[e]) * factor) : 0.0f;
    if (a.counts && a.count && fine) atomicAdd(a.counts + e, 1);
  }
}

// How many tokens share a block, so that one block does all of a decoding step's.
constexpr int kGateWarps = 4;

template <int kEach> __global__ void __launch_bounds__(32 * kGateWarps) gate_in_registers(GateArgs a) {
  __shared__ GateMemory<kEach> memory[kGateWarps];
  start();
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int64_t t = int64_t(blockIdx.x) * kGateWarps + warp;
  const bool real = t < a.tokens;
  float score[kEach], bias[kEach];
  load_few(a.logits + (real ? t : 0) * a.experts, kEach * lane, a.experts, score);
  load_few(a.bias, kEach * lane, a.experts, bias);
  if (a.counts && a.count && gridDim.x == 1) {
    for (int e = int(threadIdx.x); e < a.experts; e += int(blockDim.x)) a.counts[e] = 0;
    __syncthreads();
  }
  if (real) gate_token<kEach>(a, t, score, bias, memory[warp]);
}

// counts[e] = or += how many of indices[blockIdx.x * span, + span) are e. Many tokens are
// counted apart from the choosing: all at once would queue for the same few lines of memory.
constexpr int kCountThreads = 1024;
__global__ void count_kernel(const int32_t* indices, int64_t n, int64_t span, int experts, int32_t* counts) {
  start();
  extern __shared__ int32_t mine[];
  for (int e = int(threadIdx.x); e < experts; e += kCountThreads) mine[e] = 0;
  __syncthreads();
  const int64_t begin = blockIdx.x * span, end = min(begin + span, n);
#pragma unroll 8
  for (int64_t i = begin + threadIdx.x; i < end; i += kCountThreads) {
    const int32_t e = indices[i];
    if (0 <= e && e < experts) atomicAdd(mine + e, 1);
  }
  __syncthreads();
  for (int e = int(threadIdx.x); e < experts; e += kCountThreads) {
    if (gridDim.x == 1) counts[e] = mine[e];
    else if (mine[e] != 0) atomicAdd(counts + e, mine[e]);
  }
}

__global__ void gate_backward_kernel(GateBackwardArgs a) {
  start();
  const int lane = int(threadIdx.x) % 32;
  const int64_t t = int64_t(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (t >= a.tokens) return;
  const float *s = a.scores + t * a.experts, *dw = a.dweights + t * a.chosen;
  const int32_t* indices = a.indices + t * a.chosen;
  // w_j = scale s_j / S, S = sum_k s_k + 1e-20:  ds_j = scale / S (dw_j - sum_k dw_k s_k / S)
  double sum = 1e-20, weighted = 0;
  for (int j = 0; j < a.chosen; ++j) {
    if (!a.faults.fine(FaultOf::gate_backward, indices[j], a.experts)) continue;
    const double score = s[indices[j]];
    sum += score;
    weighted += double(dw[j]) * score;
  }
  const double factor = a.normalise ? a.scale / sum : a.scale, mean_dw = a.normalise ? weighted / sum : 0;

  // loss = sum_i f_i / T sum_t s_ti / Z_t,  Z_t = sum_j s_tj:
  // d loss / d s_ti = (f_i - sum_j f_j s_tj / Z_t) / (T Z_t)
  const BalanceOfToken of = balance_of(a, t);
  const float* f = of.fractions;
  double balance = 0, mean_f = 0;
  if (f) {
    double z = 0;
    for (int e = lane; e < a.experts; e += 32) {
      z += double(s[e]);
      mean_f += double(f[e]) * double(s[e]);
    }
    z = warp_sum(z);
    mean_f = warp_sum(mean_f) / z;
    balance = a.balance_factor / (of.length * z);
  }
  for (int e = lane; e < a.experts; e += 32) {
    double ds = 0;
    for (int j = 0; j < a.chosen; ++j)
      if (indices[j] == e) ds += factor * (double(dw[j]) - mean_dw);
    if (f) ds += balance * (double(f[e]) - mean_f);
    const double score = s[e];
    a.dlogits[t * a.experts + e] = float(ds * score * (1 - score));
  }
}

// For every token: which experts the unbiased scores choose, a bit each, and 1 / sum of its scores.
__global__ void balance_tokens(const float* scores, int64_t tokens, int experts, int top_k, uint32_t* chosen,
                               double* inverse) {
  start();
  extern __shared__ uint32_t memory[];
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, words = (experts + 31) / 32;
  const int64_t t = int64_t(blockIdx.x) * (blockDim.x / 32) + warp;
  if (t >= tokens) return;
  uint32_t *keys = memory + int64_t(warp) * (experts + words), *bits = keys + experts;
  double sum = 0;
  for (int e = lane; e < experts; e += 32) {
    const float s = scores[t * experts + e];
    keys[e] = key_of(s);
    sum += double(s);
  }
  for (int w = lane; w < words; w += 32) bits[w] = 0;
  __syncwarp();
  sum = warp_sum(sum);
  for (int round = 0; round < top_k; ++round) {
    const int e = take_best(keys, experts);
    if (lane == 0) bits[e / 32] |= 1u << e % 32;
  }
  __syncwarp();
  for (int w = lane; w < words; w += 32) chosen[t * words + w] = bits[w];
  if (lane == 0) inverse[t] = 1 / sum;
}

// Of 32 experts, in one of gridDim.z parts of a sequence: how many of its tokens chose them, and the sum of
// their shares. Block (32 experts, 32 interleaved ranges of tokens).
struct BalanceParts {
  double* shares;   // [sequences, parts, experts]
  int32_t* counts;  // the same
};
__global__ void balance_sums(const float* scores, const uint32_t* chosen, const double* inverse,
                             const int32_t* starts, int64_t tokens, int experts, BalanceParts to,
                             Faults faults) {
  start();
  __shared__ double shares[32][33];
  __shared__ int counts[32][33];
  const int64_t q = blockIdx.y, part = blockIdx.z, parts = gridDim.z;
  const int e = int(blockIdx.x * 32 + threadIdx.x), words = (experts + 31) / 32;
  const int64_t begin = starts[q], end = starts[q + 1];
  double share = 0;
  int count = 0;
  if (faults.fine(FaultOf::balance_loss, begin, tokens + 1) &&
      faults.fine(FaultOf::balance_loss, end - begin, tokens + 1 - begin) && e < experts) {
    const int64_t last = begin + (end - begin) * (part + 1) / parts;
#pragma unroll 4
    for (int64_t t = begin + (end - begin) * part / parts + threadIdx.y; t < last; t += 32) {
      share += double(scores[t * experts + e]) * inverse[t];
      count += int(chosen[t * words + blockIdx.x] >> threadIdx.x & 1);
    }
  }
  shares[threadIdx.y][threadIdx.x] = share;
  counts[threadIdx.y][threadIdx.x] = count;
  __syncthreads();
  if (threadIdx.y > 0 || e >= experts) return;
  share = 0, count = 0;
  for (int y = 0; y < 32; ++y) share += shares[y][threadIdx.x], count += counts[y][threadIdx.x];
  to.shares[(q * parts + part) * experts + e] = share;
  to.counts[(q * parts + part) * experts + e] = count;
}

// A block takes a sequence: its fractions, and its loss.
constexpr int kLossThreads = 256;
__global__ void balance_losses(BalanceParts from, int64_t parts, const int32_t* starts, int experts,
                               int top_k, float* fractions, float* loss) {
  start();
  __shared__ double scratch[kLossThreads / 32];
  const int64_t q = blockIdx.x;
  const double length = double(starts[q + 1] - starts[q]);
  double total = 0;
  for (int e = int(threadIdx.x); e < experts; e += kLossThreads) {
    double share = 0;
    int64_t count = 0;
#pragma unroll 8
    for (int64_t part = 0; part < parts; ++part) {
      share += from.shares[(q * parts + part) * experts + e];
      count += from.counts[(q * parts + part) * experts + e];
    }
    const double fraction = length > 0 ? double(experts) / (double(top_k) * length) * double(count) : 0;
    fractions[q * experts + e] = float(fraction);
    if (length > 0) total += fraction * share / length;
  }
  total = row_sum(total, scratch);
  if (threadIdx.x == 0) loss[q] = float(total);
}

// visits[0] += how many of a token's choices are the first in their group: rows are ascending.
constexpr int kVisitThreads = 256;
__global__ void count_groups_kernel(const int32_t* indices, int64_t tokens, int chosen, int in_group,
                                    int32_t* visits) {
  start();
  __shared__ int scratch[kVisitThreads / 32];
  int mine = 0;
  const int64_t stride = int64_t(gridDim.x) * kVisitThreads;
  for (int64_t t = int64_t(blockIdx.x) * kVisitThreads + threadIdx.x; t < tokens; t += stride) {
    int before = -1;
    for (int j = 0; j < chosen; ++j) {
      const int group = indices[t * chosen + j] / in_group;
      mine += group != before;
      before = group;
    }
  }
  mine = row_sum(mine, scratch);
  if (threadIdx.x == 0) atomicAdd(visits, mine);
}

__global__ void bias_kernel(const int32_t* counts, float* bias, int experts, double gamma) {
  start();
  __shared__ long long scratch[1024 / 32];
  long long total = 0;
  for (int e = int(threadIdx.x); e < experts; e += int(blockDim.x)) total += counts[e];
  total = row_sum(total, scratch);
  for (int e = int(threadIdx.x); e < experts; e += int(blockDim.x)) {
    const long long mine = (long long)counts[e] * experts;  // mean against count, both times E: no rounding
    if (mine != total) bias[e] = float(double(bias[e]) + (mine < total ? gamma : -gamma));
  }
}

// Warps a block, so that `bytes` of shared memory for each fit.
unsigned warps_a_block(const char* op, int64_t bytes) {
  require_at_most(op, bytes, kSharedBytes, "bytes of shared memory for the experts of a token");
  return unsigned(std::min<int64_t>(4, kSharedBytes / bytes));
}

}  // namespace

void CudaBackend::gate_forward(const GateForward& g) {
  check(g);
  require_no_f64("gate_forward", {&g.logits});
  select();
  const int64_t tokens = g.logits.rows, experts = g.logits.cols, choices = g.indices.size();
  const int64_t bytes = 4 * (2 * experts + g.groups + g.indices.cols);
  const unsigned warps = warps_a_block("gate_forward", bytes);
  const auto blocks = unsigned((tokens + warps - 1) / warps);
  // Few choices are counted where they are made, the others after that by one block or, adding, by several.
  constexpr int64_t kSpan = 1 << 16;
  const int64_t counters = (choices + kSpan - 1) / kSpan;
  const bool count_at_once = choices <= 4096;
  if (g.counts && (tokens == 0 || (count_at_once ? blocks > 1 : counters > 1)))
    must(cudaMemsetAsync(g.counts.data, 0, size_t(experts) * sizeof(int32_t), stream_), "gate_forward");
  if (tokens == 0) return;
  const GateArgs args{.logits = g.logits.vector<const float>().data,
                      .bias = g.bias.vector<const float>().data,
                      .scores = g.scores.vector<float>().data,
                      .weights = g.weights.vector<float>().data,
                      .indices = g.indices.vector<int32_t>().data,
                      .counts = g.counts ? g.counts.vector<int32_t>().data : nullptr,
                      .tokens = tokens,
                      .experts = int(experts),
                      .groups = int(g.groups),
                      .topk_groups = int(g.topk_groups),
                      .chosen = int(g.indices.cols),
                      .normalise = g.normalise,
                      .replay = g.replay,
                      .count = count_at_once,
                      .scale = g.scale,
                      .faults = faults_};
  if (gate_forward_narrow(queue_, args)) return launched("gate_forward");
  const int64_t in_group = experts / g.groups;
  if (experts <= 256 && (in_group & (in_group - 1)) == 0 && g.indices.cols <= experts) {
    const auto all = unsigned((tokens + kGateWarps - 1) / kGateWarps);
    const auto run = [&](auto kernel) { launch(queue_, kernel, all, 32 * kGateWarps, 0, args); };
    if (experts <= 32) run(gate_in_registers<1>);
    else if (experts <= 64) run(gate_in_registers<2>);
    else if (experts <= 128) run(gate_in_registers<4>);
    else run(gate_in_registers<8>);
  } else {
    launch(queue_, gate_forward_kernel, blocks, 32 * warps, size_t(warps * bytes), args);
  }
  if (g.counts && !count_at_once)
    launch(queue_, count_kernel, unsigned(counters), kCountThreads, size_t(4 * experts), args.indices,
           choices, kSpan, int(experts), args.counts);
  launched("gate_forward");
}

void CudaBackend::route(const Route& r) {
  check(r);
  require_no_f64("route", {&r.project.x});
  select();
  if (r.project.x.rows > 0 && kHopperDecoding.runs_on(context_->major) &&
      hopper::route_few(queue_, r, faults_))
    return;
  compose(*this, r);
}

void CudaBackend::gate_backward(const GateBackward& g) {
  check(g);
  require_no_f64("gate_backward", {&g.scores});
  if (g.scores.rows == 0) return;
  select();
  const bool balance = g.balance_factor != 0;
  const GateBackwardArgs args{.dweights = g.dweights.vector<const float>().data,
                              .scores = g.scores.vector<const float>().data,
                              .fractions = balance ? g.fractions.vector<const float>().data : nullptr,
                              .indices = g.indices.vector<const int32_t>().data,
                              .starts = balance ? g.starts.vector<const int32_t>().data : nullptr,
                              .dlogits = g.dlogits.vector<float>().data,
                              .tokens = g.scores.rows,
                              .sequences = g.sequences,
                              .experts = int(g.scores.cols),
                              .chosen = int(g.indices.cols),
                              .normalise = g.normalise,
                              .scale = g.scale,
                              .balance_factor = g.balance_factor,
                              .faults = faults_};
  if (!gate_backward_narrow(queue_, args))
    launch(queue_, gate_backward_kernel, unsigned((g.scores.rows + 3) / 4), 128, 0, args);
  launched("gate_backward");
}

void CudaBackend::balance_loss(const BalanceLoss& b) {
  check(b);
  require_no_f64("balance_loss", {&b.scores});
  if (b.sequences == 0) return;
  select();
  const int64_t tokens = b.scores.rows, experts = b.scores.cols, words = (experts + 31) / 32;
  constexpr const char* kFewer = "fewer sequences at once: --train.micro_batch";
  require_at_most("balance_loss", b.sequences, 65535, "sequences", kFewer);
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(32, 256 / b.sequences));
  const int64_t sums = b.sequences * parts * experts;
  // Workspace: shares [S, parts, E] f64 | inverse [T] f64 | counts [S, parts, E] i32 | chosen [T, words] u32
  require_at_most("balance_loss", 12 * sums + 8 * tokens + 4 * tokens * words, kWorkspace,
                  "bytes for sums by sequence and expert", kFewer);
  auto* shares = static_cast<double*>(workspace_);
  double* inverse = shares + sums;
  auto* counts = reinterpret_cast<int32_t*>(inverse + tokens);
  auto* chosen = reinterpret_cast<uint32_t*>(counts + sums);
  const float* scores = b.scores.vector<const float>().data;
  const int32_t* starts = b.starts.vector<const int32_t>().data;
  if (tokens > 0 &&
      !balance_tokens_narrow(queue_, scores, tokens, int(experts), int(b.top_k), chosen, inverse)) {
    const int64_t bytes = 4 * (experts + words);
    const unsigned warps = warps_a_block("balance_loss", bytes);
    launch(queue_, balance_tokens, unsigned((tokens + warps - 1) / warps), 32 * warps, size_t(warps * bytes),
           scores, tokens, int(experts), int(b.top_k), chosen, inverse);
  }
  launch(queue_, balance_sums, dim3(unsigned(words), unsigned(b.sequences), unsigned(parts)), dim3(32, 32), 0,
         scores, chosen, inverse, starts, tokens, int(experts), BalanceParts{shares, counts}, faults_);
  launch(queue_, balance_losses, unsigned(b.sequences), kLossThreads, 0, BalanceParts{shares, counts}, parts,
         starts, int(experts), int(b.top_k), b.fractions.vector<float>().data, b.loss.vector<float>().data);
  launched("balance_loss");
}

void CudaBackend::count_groups(const CountGroups& g) {
  check(g);
  select();
  int32_t* visits = g.visits.vector<int32_t>().data;
  if (g.accumulate == Accumulate::overwrite)
    must(cudaMemsetAsync(visits, 0, sizeof(int32_t), stream_), "count_groups");
  const int64_t tokens = g.indices.rows;
  if (g.indices.size() == 0) return;
  constexpr int64_t kMostBlocks = 128;  // each adds to the same number
  const auto blocks = unsigned(std::min<int64_t>(kMostBlocks, (tokens + kVisitThreads - 1) / kVisitThreads));
  launch(queue_, count_groups_kernel, blocks, kVisitThreads, 0, g.indices.vector<const int32_t>().data,
         tokens, int(g.indices.cols), int(g.experts / g.groups), visits);
  launched("count_groups");
}

void CudaBackend::update_gate_bias(const UpdateGateBias& u) {
  check(u);
  if (u.bias.cols == 0) return;
  select();
  launch(queue_, bias_kernel, 1, 256, 0, u.counts.vector<const int32_t>().data, u.bias.vector<float>().data,
         int(u.bias.cols), u.gamma);
  launched("update_gate_bias");
}

}  // namespace cachalot::cuda
