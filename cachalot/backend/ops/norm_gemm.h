// A normalisation and the one or two products that read it; of few rows a backend makes them in one pass.
//   y = rmsnorm(x), rounded to act (ops/rmsnorm.h);   c_i = y W_i^T (ops/gemm.h)
//   x, y [T, D] act | gain [1, D], r [1, T] stat | w_i [N_i, D] weight | c_i [T, N_i] act or stat
// The second product is optional. Weights are read ahead of earlier operations of the stream: none that is under way
// may write them (inference).
#pragma once

#include "backend/ops/common.h"

namespace cachalot {

struct NormGemm {
  Tensor x, gain, y, r;
  double eps = 0;
  Tensor w, c;
  Tensor w2 = {}, c2 = {};
};

}  // namespace cachalot
