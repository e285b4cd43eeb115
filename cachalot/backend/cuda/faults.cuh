// What kernels found wrong with indices on the device. One word an operation, in host memory that the device
// writes to: 0, or one of the bad indices with its bound.
#pragma once

#include <cstdint>

#include "tensor/dtype.h"

namespace cachalot::cuda {

enum class FaultOf : int {
  grouped_gemm,
  grouped_weight_grad,
  attention_forward,
  attention_backward,
  latent_attention,
  latent_append,
  latent_gather,
  rope,
  gate_forward,
  gate_backward,
  balance_loss,
  permute_plan,
  permute,
  unpermute,
  unpermute_backward,
  gather_rows,
  scatter_rows,
  scatter_add_rows,
  cross_entropy,
  quantize,
  kCount
};

// Passed to kernels by value. `if (!faults.fine(FaultOf::rope, position, positions)) return;`
struct Faults {
  unsigned long long* words = nullptr;  // [FaultOf::kCount]
  // Whether 0 <= index < bound; else takes it down. One store of 8 bytes: never half an index.
  __device__ bool fine(FaultOf op, int64_t index, int64_t bound) const {
    if (0 <= index && index < bound) [[likely]]
      return true;
    words[int(op)] = 1ull << 63 | (unsigned long long)(uint32_t(bound) & 0x7FFFFFFFu) << 32 | uint32_t(index);
    return false;
  }
};

}  // namespace cachalot::cuda
