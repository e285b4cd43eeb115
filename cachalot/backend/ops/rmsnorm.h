// y[t,d] = g[d] x[t,d] r[t], r[t] = (mean_d x[t,d]^2 + eps)^(-1/2) Zhang & Sennrich, arXiv:1910.07467
//   x, y [T, D] act | g [1, D] stat (f32 even beside bf16) | r stat [1, T], kept for the backward
//   quantized e4m3 [T, D], row tiles, optional: what Quantize (ops/quantize.h) makes of y as rounded to act,
//   byte for byte; then y is optional
#pragma once

#include "backend/ops/common.h"

namespace cachalot {

struct RmsNormForward {
  Tensor x, gain, y, r;
  double eps = 0;
  Tensor quantized = {};
  bool power_of_two = false;
};

// n = x r:   dx = r (g dy - n mean_d(g dy n)) (+ residual),   dg (=, +=) sum_t dy n
//   dy, x, dx, residual [T, D] act; residual is optional and may be dx itself; dgain [1, D] stat
struct RmsNormBackward {
  Tensor dy, x, gain, r, residual, dx, dgain;
  Accumulate accumulate_gain = Accumulate::overwrite;
};

}  // namespace cachalot
