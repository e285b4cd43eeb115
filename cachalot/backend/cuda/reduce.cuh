// Sums and maxima over warps and blocks, in an order that only the shape of the block decides.
#pragma once

#include <cstdint>

namespace cachalot::cuda {

constexpr unsigned kAll = 0xFFFFFFFFu;

template <class T> __device__ inline T warp_sum(T x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, step));
  return x;
}

// The sum over all threads of x (blockDim.x a multiple of 32) that share threadIdx.y; every one gets it. All
// threads of the block take part. `scratch`: shared memory for a number a warp; may be used again after the
// next __syncthreads().
template <class T> __device__ inline T row_sum(T x, T* scratch) {
  x = warp_sum(x);
  const int warps = int(blockDim.x) / 32;
  if (warps == 1) return x;
  T* mine = scratch + threadIdx.y * warps;
  if (threadIdx.x % 32 == 0) mine[threadIdx.x / 32] = x;
  __syncthreads();
  T sum = 0;
  for (int w = 0; w < warps; ++w) sum += mine[w];
  return sum;
}

}  // namespace cachalot::cuda
