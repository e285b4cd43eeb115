// What the two implementations of ops/attention.h share: the plain kernels (attention.cu) and those on the
// tensor cores (attention_mma.cu).
#pragma once

#include <cuda_runtime.h>

#include "backend/cuda/faults.cuh"
#include "backend/ops/attention.h"

namespace cachalot::cuda {

// Memory of the backward: D [T, H], then for a group of heads their shares of dk_rope [heads, R, P] f32.
struct BackwardMemory {
  float* d = nullptr;
  float* shares = nullptr;
};

struct AttentionCall {
  cudaStream_t stream;
  Faults faults;
};

// Whether the tensor cores take it: bf16, head sizes of a multiple of 8 up to 192 and 128, rows and heads
// that start on 16 bytes.
bool mma_takes(const AttentionForward& a);
bool mma_takes(const AttentionBackward& a);

void mma_forward(const AttentionCall& call, const AttentionForward& a);
// dq of all heads; then dkv of heads [first, first + count), whose shares of dk_rope go to memory.shares.
void mma_backward_queries(const AttentionCall& call, const AttentionBackward& a,
                          const BackwardMemory& memory);
void mma_backward_keys(const AttentionCall& call, const AttentionBackward& a, const BackwardMemory& memory,
                       int64_t first, int64_t count);

}  // namespace cachalot::cuda
