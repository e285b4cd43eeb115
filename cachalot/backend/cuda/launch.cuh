// Launches that overlap. On Hopper and later cards the blocks of a kernel are put in place while the kernel
// before it still runs (CUDA's programmatic dependent launch), also in graphs: between kernels of a
// microsecond or two, as decoding is made of, the pause of a launch would cost as much as they do.
//
// A kernel that launch() starts begins with start(), in every thread and before it touches what another
// kernel may have written or still reads. The order of the stream holds as always: when start() returns,
// everything queued before has ended and can be seen. A kernel that lets the next start only behind its own wait
// passes that on: the next one may read, past the first-level cache (__ldcg), what was written before this one.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace cachalot::cuda {

struct Queue {
  cudaStream_t stream = nullptr;
  bool overlap = false;  // this card can
};

// kernel<<<grid, block, shared, q.stream>>>(args...); as after that, cudaGetLastError() tells.
template <class... Parameters, class... Args> void launch(const Queue& q, void (*kernel)(Parameters...),
                                                          dim3 grid, dim3 block, size_t shared,
                                                          const Args&... args) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = q.stream;
  config.attrs = &overlap;
  config.numAttrs = q.overlap ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(args)...);
}

// The next kernel may be put in place; it waits for the end of this one in its own wait_for_earlier().
__device__ inline void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ inline void wait_for_earlier() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ inline void start() {
  let_next_start();
  wait_for_earlier();
}

// Calls a line of memory into the second-level cache. Only a hint, which never sees a number: allowed before
// wait_for_earlier().
__device__ inline void call_in(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

}  // namespace cachalot::cuda
