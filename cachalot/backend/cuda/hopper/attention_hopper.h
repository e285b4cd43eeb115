// Attention of backend/ops/attention.h on Hopper's warpgroup products, for V3's heads: 128 + 64 numbers of
// key, 128 of value, bf16. attention_forward.cu and attention_backward.cu say how.
//
//   FLOPs of causal attention, S queries on S keys, H heads (half of the square counts):
//     forward    2 products:  S^2 H (192 + 128)                      687 GFLOP at S = 4096, H = 128
//     backward   5 products:  S^2 H (3 * 192 + 2 * 128)              1786 GFLOP (2.6 times; 2.5 is customary)
//   Floor at the 800 TFLOP/s that an 8192^3 product reaches on an H200: 0.86 ms and 2.23 ms. Memory is read
//   and written in a tenth of that.
#pragma once

#include <cuda_runtime.h>

#include "backend/cuda/faults.cuh"
#include "backend/ops/attention.h"

namespace cachalot::cuda::hopper {

struct AttentionCall {
  cudaStream_t stream = nullptr;
  int multiprocessors = 0;
  Faults faults;
  uint32_t* ticket = nullptr;  // one counter, zero before and after the call
};

// False, and nothing is queued, when these kernels do not take the shape: other head sizes or formats, rows
// that do not start on 16 bytes.
bool attention_forward(const AttentionCall& call, const AttentionForward& a);

// `memory`: `bytes` of it, on 1,024: of as many heads as they hold something is kept between blocks. False also
// when there are too few bytes for one head.
bool attention_backward(const AttentionCall& call, const AttentionBackward& a, void* memory, int64_t bytes);

}  // namespace cachalot::cuda::hopper
