// BF16 products of experts on Hopper's tensor cores, FP32 sums. Contract: backend/ops/grouped_gemm.h. Each
// queues one kernel and returns nullptr, or says why it cannot take the operands (rows on 16 bytes).
#pragma once

#include "backend/cuda/hopper/fp8_gemm.h"

namespace cachalot::cuda::hopper {

// y[r] = x[r] W_e^T, or with input_grad x[r] W_e: w [experts * O, I]; y bf16 or f32.
struct Bf16GroupedGemm {
  Tensor x, w, y;
  const int32_t* offsets = nullptr;
  int64_t experts = 0;
  bool input_grad = false;
  Faults faults = {};
};
const char* bf16_grouped_gemm(const Bf16GroupedGemm& g, const Card& card, cudaStream_t stream);

// dW_e [O, I] f32 = or += dY_e^T X_e: dy [R, O], x [R, I].
struct Bf16WeightGrad {
  Tensor dy, x, dw;
  const int32_t* offsets = nullptr;
  int64_t experts = 0;
  bool add = false;
  Faults faults = {};
};
const char* bf16_weight_grad(const Bf16WeightGrad& g, const Card& card, cudaStream_t stream);

}  // namespace cachalot::cuda::hopper
