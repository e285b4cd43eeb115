// C = op(A) op(B), or C += op(A) op(B).
//   op(A) [M, K], op(B) [K, N], C [M, N]; A and B of act, stat or weight format in any mixture, C act or stat
//   FLOPs 2 M N K; bytes: each operand once. f32 accumulation, any order that does not depend on threads.
//   K = 0 gives zeros (or leaves C as it is when accumulating).
#pragma once

#include "backend/ops/common.h"

namespace cachalot {

struct Gemm {
  Tensor a, b, c;
  bool trans_a = false;  // a is [K, M]
  bool trans_b = false;  // b is [N, K]: y = x W^T with W [N, K] as checkpoints hold it
  Accumulate accumulate = Accumulate::overwrite;
};

}  // namespace cachalot
