// Contract: backend/ops/sample.h. The largest logit is found by many blocks a row; a draw at a temperature
// takes one block a row (sample.cuh), on Hopper a cluster (hopper/sample_rows.h).
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/families.h"
#include "backend/cuda/hopper/sample_rows.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/reduce.cuh"
#include "backend/cuda/sample.cuh"
#include "backend/ops/check.h"

namespace cachalot::cuda {

namespace {

using namespace drawing;

// Block (part of a row, row). The last block of a row to come in looks at what all have found; which one that
// is does not matter, since a largest rank needs no order.
constexpr int kGreedyThreads = 256, kGreedyFours = 8;  // a thread
constexpr int64_t kGreedyPart = 4 * kGreedyThreads * kGreedyFours;

__global__ void __launch_bounds__(kGreedyThreads, 5)
    greedy_kernel(SampleArgs a, Rank* found, uint32_t* arrived) {
  __shared__ float largest[kGreedyThreads / 32];
  __shared__ Rank ranks[kGreedyThreads / 32];
  __shared__ bool last;
  start();
  const int64_t t = blockIdx.y, n = a.logits.cols,
                first = blockIdx.x * kGreedyPart + 4 * int64_t(threadIdx.x);
  const float* x = a.logits.data + t * a.logits.ld;
  const bool wide = reinterpret_cast<uintptr_t>(x) % 16 == 0 && n % 4 == 0;
  float4 fours[kGreedyFours];
#pragma unroll
  for (int k = 0; k < kGreedyFours; ++k) {
    const int64_t i = first + 4 * kGreedyThreads * k;
    fours[k] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    if (wide) {
      if (i < n) fours[k] = __ldcs(reinterpret_cast<const float4*>(x + i));
    } else {
      if (i < n) fours[k].x = x[i];
      if (i + 1 < n) fours[k].y = x[i + 1];
      if (i + 2 < n) fours[k].z = x[i + 2];
      if (i + 3 < n) fours[k].w = x[i + 3];
    }
  }
  float mine = -INFINITY;  // NaN is passed over
#pragma unroll
  for (int k = 0; k < kGreedyFours; ++k)
    mine = fmaxf(mine, fmaxf(fmaxf(fours[k].x, fours[k].y), fmaxf(fours[k].z, fours[k].w)));
  float most = warp_max(mine);
  if (threadIdx.x % 32 == 0) largest[threadIdx.x / 32] = most;
  __syncthreads();
  for (const float its : largest) most = fmaxf(most, its);
  Rank best = 0;
  if (mine == most && most > -INFINITY) {  // then which one, the lowest id last
    const uint32_t key = key_of(most);
#pragma unroll
    for (int k = kGreedyFours - 1; k >= 0; --k) {
      const int64_t i = first + 4 * kGreedyThreads * k;
      if (fours[k].w == most) best = rank_of(key, i + 3);
      if (fours[k].z == most) best = rank_of(key, i + 2);
      if (fours[k].y == most) best = rank_of(key, i + 1);
      if (fours[k].x == most) best = rank_of(key, i);
    }
  }
  const auto block_best = [&] {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) best = max(best, __shfl_xor_sync(kAll, best, step));
    if (threadIdx.x % 32 == 0) ranks[threadIdx.x / 32] = best;
    __syncthreads();
    best = ranks[0];
    for (int w = 1; w < kGreedyThreads / 32; ++w) best = max(best, ranks[w]);
  };
  block_best();
  if (gridDim.x > 1) {
    if (threadIdx.x == 0) {
      found[t * gridDim.x + blockIdx.x] = best;
      __threadfence();
      last = atomicInc(arrived + t, gridDim.x - 1) == gridDim.x - 1;  // back to zero with the last one
      __threadfence();
    }
    __syncthreads();
    if (!last) return;
    best = 0;
    for (unsigned i = threadIdx.x; i < gridDim.x; i += kGreedyThreads)
      best = max(best, __ldcg(found + t * gridDim.x + i));
    __syncthreads();
    block_best();
  }
  if (threadIdx.x == 0) a.tokens[t] = best == 0 ? 0 : id_in(best);
}

__global__ void __launch_bounds__(kThreads) draw_kernel(SampleArgs a) {
  __shared__ Shared s;
  __shared__ float largest[kThreads / 32];
  extern __shared__ __align__(16) uint8_t memory[];
  start();
  const int64_t row = blockIdx.x;
  const InMemory tokens{a.logits.data + row * a.logits.ld, a.logits.cols};
  if (threadIdx.x < 32) s.powers[threadIdx.x] = exp2(double(threadIdx.x) / 32);
  float most = -INFINITY;
  tokens.each([&](float x, int64_t) { most = fmaxf(most, x); });  // passes over NaN
  most = warp_max(most);
  if (threadIdx.x % 32 == 0) largest[threadIdx.x / 32] = most;
  __syncthreads();
  for (const float its : largest) most = fmaxf(most, its);
  const Odds odds{1 / a.temperature, most, s.powers};
  OneBlock<InMemory> block{tokens, odds, *reinterpret_cast<Regions*>(memory), s};
  const int32_t token = most == -INFINITY ? 0 : id_in(draw_token(block, a, row, most).rank);
  if (threadIdx.x == 0) a.tokens[row] = token;
}

}  // namespace

void CudaBackend::sample(const Sample& q) {
  check(q);
  require_no_f64("sample", {&q.logits});
  if (q.logits.rows == 0) return;
  select();
  const SampleArgs args{.logits = q.logits.matrix<const float>(),
                        .positions = q.positions.vector<const int32_t>().data,
                        .tokens = q.tokens.vector<int32_t>().data,
                        .temperature = q.temperature,
                        .top_p = q.top_p,
                        .top_k = q.top_k,
                        .seed = q.seed};
  if (q.temperature == 0) {
    for (int64_t first = 0; first < q.logits.rows; first += kCounters) {
      SampleArgs some = args;
      const int64_t rows = std::min(kCounters, q.logits.rows - first);
      some.logits.data += first * some.logits.ld;
      some.tokens += first;
      const int64_t parts = (q.logits.cols + kGreedyPart - 1) / kGreedyPart;
      CHECK(parts * rows * int64_t(sizeof(Rank)) <= kWorkspace, "sample: too many columns on cuda");
      launch(queue_, greedy_kernel, dim3(unsigned(parts), unsigned(rows)), kGreedyThreads, 0, some,
             static_cast<Rank*>(workspace_), counters_);
    }
  } else if (kHopperProducts.runs_on(context_->major) && hopper::takes_rows(q)) {
    hopper::sample_rows(queue_, q);
  } else {
    constexpr int kMemory = int(sizeof(Regions));
    must(cudaFuncSetAttribute(draw_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMemory), "sample");
    launch(queue_, draw_kernel, unsigned(q.logits.rows), kThreads, size_t(kMemory), args);
  }
  launched("sample");
}

}  // namespace cachalot::cuda
