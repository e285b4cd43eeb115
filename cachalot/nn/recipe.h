// The formats of a precision recipe, as layers use them (docs/numerics.md lists every rounding point).
#pragma once

#include "config/precision.h"
#include "tensor/dtype.h"

namespace cachalot {

struct Recipe {
  DType act;     // activations, their gradients, the residual stream, the latent cache
  DType weight;  // matrices in products (a checkpoint's E4M3 may stay E4M3 instead)
  DType stat;    // norm gains, router, softmax statistics, logits, losses, all weight gradients and masters
  DType moment;  // AdamW's moments

  static Recipe of(Precision p) {
    switch (p) {
      case Precision::f32: return {DType::f32, DType::f32, DType::f32, DType::bf16};
      case Precision::bf16: return {DType::bf16, DType::bf16, DType::f32, DType::bf16};
      case Precision::f64: return {DType::f64, DType::f64, DType::f64, DType::f64};
    }
    CHECK(false);
  }
};

}  // namespace cachalot
