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

  // Linear layers multiply codes: activations and gradients with a scale for 1 x 128 numbers, weights for
  // 128 x 128, in forward and both products of the backward; they are quantised from act (ops/quantize.h).
  bool fp8 = false;
  bool power_of_two = false;  // all scales are powers of two: checkpoints with scale_fmt ue8m0

  static Recipe of(Precision p) {
    switch (p) {
      case Precision::f32: return {DType::f32, DType::f32, DType::f32, DType::bf16};
      case Precision::bf16: return {DType::bf16, DType::bf16, DType::f32, DType::bf16};
      case Precision::fp8: {
        Recipe r = of(Precision::bf16);
        r.fp8 = true;
        return r;
      }
      case Precision::f64: return {DType::f64, DType::f64, DType::f64, DType::f64};
    }
    CHECK(false);
  }
};

// What a forward keeps in memory: nothing (inference), everything that the backward needs, or only what the
// backward computes the rest from again, to the same bits (V3 report, section 3.2.3: RMSNorms, MLA's
// up-projections, SwiGLU).
enum class Keep : uint8_t { nothing, for_backward, for_recompute };

}  // namespace cachalot
