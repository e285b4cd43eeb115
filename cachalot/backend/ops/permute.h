// Rows of tokens to rows of experts and back. R = T K rows; no token is ever dropped.
#pragma once

#include "backend/ops/common.h"

namespace cachalot {

// Where each choice goes: rows sorted by expert, within an expert by token.
//   indices i32 [T, K] -> row_of i32 [T, K], a permutation of 0 ... R-1;
//     offsets i32 [1, E+1] as in grouped_gemm.h
struct PermutePlan {
  Tensor indices, row_of, offsets;
  int64_t experts = 0;
};

// y[row_of(t, j)] = x[t]   x [T, D], y [R, D]: both act, or both e4m3 with row tiles, scales travel along
struct Permute {
  Tensor x, row_of, y;
};

// y[t] = residual[t] + shared[t] + sum_j weights(t, j) x[row_of(t, j)], in that order, rounded once.
//   x [R, D] act, y [T, D] act; weights [T, K] stat, absent: 1;
//     residual, shared [T, D] act, each optional and
//   allowed to be y itself. Without weights it is the backward of permute.
struct Unpermute {
  Tensor x, row_of, weights, residual, shared, y;
};

// The backward of unpermute: dx[row_of(t, j)] = weights(t, j) dy[t]; dweights(t, j) = dy[t] . x[row_of(t, j)]
struct UnpermuteBackward {
  Tensor dy, x, row_of, weights, dx, dweights;
};

}  // namespace cachalot
