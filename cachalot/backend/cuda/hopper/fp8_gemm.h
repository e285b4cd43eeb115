// FP8 products on Hopper's tensor cores, as DeepSeek-V3 computes with them (arXiv:2412.19437, section 3.3.2):
// E4M3 operands with FP32 scales, sums promoted to FP32 every 128 of K. Definition and layouts:
// backend/ops/gemm.h, tensor/tensor.h. FLOPs 2 M N K; bytes: each operand once.
//
// Each function queues one kernel and returns nullptr, or says why it cannot take the operands (and does
// nothing): codes on 16 bytes, rows of a multiple of 16 bytes, N and K multiples of 16, scale_ld of row
// tiles a multiple of 4, D's rows on 16 bytes. No allocation, no wait: fine inside graph capture. Sums have
// a fixed order: the same shapes give the same bits.
#pragma once

#include <cuda_runtime.h>

#include "backend/cuda/faults.cuh"
#include "tensor/tensor.h"

namespace cachalot::cuda::hopper {

constexpr int64_t kMaxExperts = 1023;  // a note has 1,024 numbers for them: one says that there are no more

struct Card {
  int major = 0, multiprocessors = 0;
};

// D [M, N] bf16 or f32 = A B^T, or D += with `add`: A [M, K] row tiles; B [N, K] blocks, or row tiles (D
// f32). Every number of a bf16 D is rounded once.
struct Fp8Gemm {
  Tensor a, b, d;
  bool add = false;
  // B was there before the previous kernel of the stream began (a weight in inference): its first tiles are
  // asked for while that kernel ends.
  bool b_is_constant = false;
};
const char* fp8_gemm(const Fp8Gemm& g, const Card& card, cudaStream_t stream);

// D [R, N] bf16 or f32: rows of expert e (offsets i32 [experts + 1] on the device, ascending from 0) times
// its part of B [experts * N, K] blocks. Rows at and after offsets[experts] are neither read nor written.
struct Fp8GroupedGemm {
  Tensor a, b, d;
  const int32_t* offsets = nullptr;
  int64_t experts = 0;
  Faults faults = {};  // told of wrong offsets
};
const char* fp8_grouped_gemm(const Fp8GroupedGemm& g, const Card& card, cudaStream_t stream);

// The same for rows that stand apart (decode): expert e has the first counts[e] of its `max_rows` rows of A
// and D [experts * max_rows, ...]; counts i32 [experts] on the device. The other rows are not written.
struct Fp8MaskedGemm {
  Tensor a, b, d;
  const int32_t* counts = nullptr;
  int64_t experts = 0, max_rows = 0;
  int64_t expected_rows = 0;  // of an expert, if the host has an idea: decides on the tile, not on the result
};
const char* fp8_masked_gemm(const Fp8MaskedGemm& g, const Card& card, cudaStream_t stream);

// dW_e [O, I] f32 = or += dY_e^T X_e: dy [O, R] and x [I, R] transposed with row tiles along R, dw [experts
// * O, I]; expert e owns columns offsets[e] ... offsets[e+1]-1 (multiples of 128, on the device).
// Overwriting writes zeros for an expert without columns.
struct Fp8WeightGrad {
  Tensor dy, x, dw;
  const int32_t* offsets = nullptr;
  int64_t experts = 0;
  bool add = false;
  Faults faults = {};
};
const char* fp8_weight_grad(const Fp8WeightGrad& g, const Card& card, cudaStream_t stream);

}  // namespace cachalot::cuda::hopper
