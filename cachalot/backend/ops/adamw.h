// AdamW (Loshchilov & Hutter, arXiv:1711.05101) with V3's formats (report section 3.3.3): FP32 master weights
// and gradients, BF16 moments (rounded to nearest even; sound for beta2 < 0.998, see docs/numerics.md).
//   g = grad * clip,  clip = min(1, max_norm / sqrt(grad_norm_squared))   (max_norm 0: no clipping)
//   m = beta1 m + (1 - beta1) g;   v = beta2 v + (1 - beta2) g^2
//     (the update uses m, v before rounding)
//   master -= lr (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay master)
//   weight = master, converted to its format (absent: nobody wants a copy)
//   master, grad [n, k] f32 (f64 on ref) | m, v bf16 (f64 beside f64) | weight f64, f32 or bf16
//   grad_norm_squared f64 [1, 1] on the device: the host has not seen it
// When grad_norm_squared is not finite nothing changes: the trainer sees the norm, reports and counts it.
#pragma once

#include "backend/ops/common.h"

namespace cachalot {

struct AdamW {
  Tensor master, grad, m, v, weight, grad_norm_squared;
  double lr = 0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0;
  double max_norm = 0;
  int64_t step = 1;  // 1 for the first update
};

}  // namespace cachalot
