// What the kernels of decoding.h share.
#pragma once

#include <cuda_runtime.h>

#include "backend/cuda/hopper/barrier.cuh"
#include "backend/cuda/hopper/launched.h"
#include "backend/cuda/launch.cuh"

namespace cachalot::cuda::hopper {

constexpr int kDecodingCluster = 8;

// A write to another block's shared memory that counts on a barrier there; addresses by address_in().
__device__ __forceinline__ void push(uint32_t to, uint32_t barrier, float x) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to),
               "r"(__float_as_uint(x)), "r"(barrier)
               : "memory");
}

// kernel<<<grid, threads>>>(args...) in clusters along x, overlapping with the kernel before.
template <class... Parameters, class... Args> void launch_clusters(const Queue& queue, const char* op,
                                                                   void (*kernel)(Parameters...), dim3 grid,
                                                                   int threads, const Args&... args) {
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {kDecodingCluster, 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(unsigned(threads));
  config.stream = queue.stream;
  config.attrs = attributes;
  config.numAttrs = queue.overlap ? 2 : 1;
  launched(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(args)...), op);
}

}  // namespace cachalot::cuda::hopper
