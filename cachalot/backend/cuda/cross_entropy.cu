// Contract: backend/ops/cross_entropy.h. A block takes a row, 517 KB of it in V3: one pass finds the largest
// logit and the sum of exponentials at once, a second one, from the end, writes the gradient. Shared memory
// keeps the end of the row between the two (227 KB on Hopper), the cache most of the rest. Exponentials
// float; each thread's sum float, their sum double. What the target's probability lacks to 1 is summed from
// the others, not subtracted, so that a confident model keeps its small gradients.
#include "backend/cuda/convert.cuh"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/reduce.cuh"
#include "backend/ops/check.h"

namespace cachalot::cuda {

namespace {

constexpr int kThreads = 1024;  // one block a multiprocessor: few rows under way, more of them in the cache
constexpr int64_t kStep = int64_t(kEight) * kThreads;
constexpr int kAtOnce = 2;  // steps under way
constexpr int64_t kStepBytes = kStep * int64_t(sizeof(float));

// exp(x - shift) where the shift is the largest so far; -inf means nothing was seen.
__device__ float exp_below(float x, float shift) { return expf(x - (shift == -INFINITY ? 0.0f : shift)); }

// This thread's eight numbers of a step in shared memory, where nobody else looks: two halves, so that
// neighbours lie in different banks.
__device__ void keep_eight(float4* kept, const Eight& e) {
  kept[threadIdx.x] = {e.v[0], e.v[1], e.v[2], e.v[3]};
  kept[kThreads + threadIdx.x] = {e.v[4], e.v[5], e.v[6], e.v[7]};
}
__device__ Eight kept_eight(const float4* kept) {
  const float4 a = kept[threadIdx.x], b = kept[kThreads + threadIdx.x];
  return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
}

// What is read or written once and should not push what will be read again out of the cache.
template <bool wide> __device__ Eight load_once(const float* row, int64_t at, int64_t cols) {
  if constexpr (!wide) return load_eight<false>(row, at, cols);
  const float4 a = __ldcs(reinterpret_cast<const float4*>(row + at)),
               b = __ldcs(reinterpret_cast<const float4*>(row + at) + 1);
  return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
}
template <bool wide> __device__ void store_once(float* row, int64_t at, int64_t cols, const Eight& e) {
  if constexpr (!wide) return store_eight<false>(row, at, cols, e);
  __stcs(reinterpret_cast<float4*>(row + at), float4{e.v[0], e.v[1], e.v[2], e.v[3]});
  __stcs(reinterpret_cast<float4*>(row + at) + 1, float4{e.v[4], e.v[5], e.v[6], e.v[7]});
}

// Which of the eight numbers from column i on is the target; -1: none.
__device__ int target_in_eight(int64_t target, int64_t i) {
  return i <= target && target < i + kEight ? int(target - i) : -1;
}

// The last `steps_kept` steps of a row stay in shared memory.
template <bool wide> __global__ void __launch_bounds__(kThreads)
    cross_entropy_kernel(Matrix<float> logits, const int32_t* targets, float* loss, bool gradient,
                         double scale, int64_t steps_kept, Faults faults) {
  extern __shared__ float4 kept[];  // [steps_kept, 2, kThreads]
  __shared__ float warp_largest[kThreads / 32];
  __shared__ double scratch[kThreads / 32];
  const int64_t t = blockIdx.x, n = logits.cols;
  float* x = logits.data + t * logits.ld;
  const int64_t target = targets[t];
  if (target < 0 || !faults.fine(FaultOf::cross_entropy, target, n)) {
    if (threadIdx.x == 0) loss[t] = 0;
    if (gradient)
      for (int64_t i = kEight * int64_t(threadIdx.x); i < n; i += kStep) store_eight<wide>(x, i, n, {});
    return;
  }

  // Of this thread's logits: the largest, and the sum of exp(logit - largest) without the target's.
  const int64_t steps = (n + kStep - 1) / kStep, first_kept = steps - steps_kept;
  float largest = -INFINITY, sum = 0;
  for (int64_t first = 0; first < steps; first += kAtOnce) {
    Eight batch[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int64_t i = (first + k) * kStep + kEight * int64_t(threadIdx.x);
      if (i < n) batch[k] = first + k < first_kept ? load_eight<wide>(x, i, n) : load_once<wide>(x, i, n);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int64_t step = first + k, i = step * kStep + kEight * int64_t(threadIdx.x);
      if (i >= n) break;
      const Eight& e = batch[k];
      if (step >= first_kept) keep_eight(kept + (step - first_kept) * 2 * kThreads, e);
      float most = largest;
#pragma unroll
      for (int j = 0; j < kEight; ++j)
        if (wide || i + j < n) most = fmaxf(most, e.v[j]);
      if (most > largest) {
        sum *= exp_below(largest, most);  // exp(-inf) = 0 the first time
        largest = most;
      }
      const float shift = largest == -INFINITY ? 0.0f : largest;
      const int at = target_in_eight(target, i);
#pragma unroll
      for (int j = 0; j < kEight; ++j)
        if (j != at && (wide || i + j < n)) sum += expf(e.v[j] - shift);
    }
  }

  const float warp_most = warp_max(largest);
  if (threadIdx.x % 32 == 0) warp_largest[threadIdx.x / 32] = warp_most;
  __syncthreads();
  float most = warp_largest[0];
  for (int w = 1; w < kThreads / 32; ++w) most = fmaxf(most, warp_largest[w]);
  // A thread that saw only -inf, or nothing, adds 0; NaN stays.
  const double share = sum == 0 ? 0.0 : double(sum) * exp(double(largest) - double(most));
  const double others = row_sum(share, scratch);

  const float target_logit = x[target];
  __syncthreads();  // read by all before anyone writes
  const double distance = double(most) - double(target_logit);
  const double all = exp(-distance) + others;
  if (threadIdx.x == 0) loss[t] = float((distance == 0 ? log1p(others) : log(all)) + distance);
  if (!gradient) return;
  const float factor = float(scale / all), at_target = float(-scale * (others / all));
  const auto write = [&](Eight e, int64_t i) {
    const int at = target_in_eight(target, i);
#pragma unroll
    for (int j = 0; j < kEight; ++j) e.v[j] = j == at ? at_target : expf(e.v[j] - most) * factor;
    store_once<wide>(x, i, n, e);
  };
  for (int64_t step = steps - 1; step >= first_kept; --step) {
    const int64_t i = step * kStep + kEight * int64_t(threadIdx.x);
    if (i < n) write(kept_eight(kept + (step - first_kept) * 2 * kThreads), i);
  }
  for (int64_t last = first_kept - 1; last >= 0; last -= kAtOnce) {
    Eight batch[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int64_t i = (last - k) * kStep + kEight * int64_t(threadIdx.x);
      if (i >= 0 && i < n) batch[k] = load_eight<wide>(x, i, n);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int64_t i = (last - k) * kStep + kEight * int64_t(threadIdx.x);
      if (i >= 0 && i < n) write(batch[k], i);
    }
  }
}

}  // namespace

void CudaBackend::cross_entropy(const CrossEntropy& e) {
  check(e);
  require_no_f64("cross_entropy", {&e.logits});
  if (e.logits.rows == 0) return;
  select();
  // What a block may have of shared memory: more than 48 KB must be asked for.
  int most = 0;
  must(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, context_->device),
       "cross_entropy");
  const int64_t steps = (e.logits.cols + kStep - 1) / kStep;
  const int64_t kept = e.gradient ? std::min(steps, (most - 1024) / kStepBytes) : 0;
  with_width(is_wide(e.logits), [&](auto wide) {
    const auto kernel = cross_entropy_kernel<wide.value>;
    must(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kept * kStepBytes)),
         "cross_entropy");
    kernel<<<unsigned(e.logits.rows), kThreads, size_t(kept * kStepBytes), stream_>>>(
        e.logits.matrix<float>(), e.targets.vector<const int32_t>().data, e.loss.vector<float>().data,
        e.gradient, e.scale, kept, faults_);
  });
  launched("cross_entropy");
}

}  // namespace cachalot::cuda
