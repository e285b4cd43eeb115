// C = op(A) op(B), or C += op(A) op(B).
//   op(A) [M, K], op(B) [K, N], C [M, N]; A and B of act, stat or weight format in any mixture, C act or stat
//   FLOPs 2 M N K; bytes: each operand once. f32 accumulation, any order that does not depend on threads.
//   K = 0 gives zeros (or leaves C as it is when accumulating).
//
// FP8 (A e4m3 with row tiles): B is e4m3 [N, K] too, with blocks (a weight) or row tiles (weight gradients),
// and trans_b. The products of each 128 of K are summed exactly or in f32, multiplied by both scales, and
// added in f32 in the order of K:
//   C(m, n) = sum_b  scale_a(m, b) scale_b(n, b)  sum_{k in b} code_a(m, k) code_b(n, k)
// Judged on the quantised operands against the exact product: error metric <= 1e-6 for K up to 18432, which
// sums kept by Hopper's tensor cores over the whole of K (14 bits) do not reach (DeepSeek-V3 report, section
// 3.3.2).
#pragma once

#include "backend/ops/common.h"

namespace cachalot {

struct Gemm {
  Tensor a, b, c;
  bool trans_a = false;  // a is [K, M]
  bool trans_b = false;  // b is [N, K]: y = x W^T with W [N, K] as checkpoints hold it
  Accumulate accumulate = Accumulate::overwrite;
  // B may be read ahead of earlier operations of the stream: none that is under way writes it (inference).
  bool read_ahead = false;
};

}  // namespace cachalot
