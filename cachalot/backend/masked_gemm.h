// Products of experts whose rows stand apart, as decoding over expert-parallel ranks receives them: a rank has
// room for `max_rows` rows of each of its experts, and the device alone knows how many came.
//
//   y[e max_rows + i] = x[e max_rows + i] W_e^T,  i < counts[e]
//   x e4m3 [E max_rows, I] row tiles | w e4m3 [E O, I] blocks | y bf16 [E max_rows, O] | counts i32 [1, E]
//   FLOPs 2 sum(counts) O I; bytes: the rows that came and each W_e that got one, once; sums as in ops/gemm.h
//
// Rows at and after counts[e] are not written, and what x holds there does not matter. An expert whose count is
// outside [0, max_rows] is taken as empty. Not an operation of every backend: Hopper cards alone have a kernel.
#pragma once

#include "backend/backend.h"

namespace cachalot {

struct MaskedGemm {
  Tensor x, w, y, counts;
  int64_t experts = 0, max_rows = 0;
  int64_t expected_rows = 0;  // of an expert, if the host has an idea: decides on the speed, not on the bits
};

// False, and nothing is done: `backend` is no Hopper card, or cannot read the operands as they lie.
bool masked_gemm(Backend& backend, const MaskedGemm& g);

}  // namespace cachalot
