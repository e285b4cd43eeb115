// RMSNorm with a gain (ops/rmsnorm.h). Its weight gradient is a by-product of the input gradient and is
// written there.
#pragma once

#include "backend/backend.h"
#include "backend/buffer.h"

namespace cachalot {

struct RmsNorm {
  Tensor gain, dgain;  // [1, D] stat
  double eps = 1e-6;

  struct Saved {
    Tensor x, r;  // the input [T, D] act, 1 / rms [1, T] stat
  };
  // `codes` (fp8): y quantised, with which y may be absent.
  Saved forward(Stream& s, Arena& arena, Tensor x, Tensor y, Tensor codes = {},
                bool power_of_two = false) const {
    const Saved saved{x, arena.take_vector(gain.dtype, x.rows)};
    compute(s, saved, y, codes, power_of_two);
    return saved;
  }
  // The outputs alone, into saved.r too: once more for a backward that did not keep them, with the same bits.
  void compute(Stream& s, const Saved& saved, Tensor y, Tensor codes = {}, bool power_of_two = false) const {
    on(s).rmsnorm_forward({.x = saved.x,
                           .gain = gain,
                           .y = y,
                           .r = saved.r,
                           .eps = eps,
                           .quantized = codes,
                           .power_of_two = power_of_two});
  }
  // y = norm(x), c = y W^T and, optionally, c2 = y W2^T: where nothing is kept for a backward.
  void multiply(Stream& s, Arena& arena, Tensor x, Tensor y, Tensor w, Tensor c, Tensor w2 = {},
                Tensor c2 = {}) const {
    Arena::Scope scratch(arena);
    on(s).norm_gemm(into(arena, x, y, w, c, w2, c2));
  }
  // The same as a part of an operation.
  NormGemm into(Arena& arena, Tensor x, Tensor y, Tensor w, Tensor c, Tensor w2 = {}, Tensor c2 = {}) const {
    return {.x = x,
            .gain = gain,
            .y = y,
            .r = arena.take_vector(gain.dtype, x.rows),
            .eps = eps,
            .w = w,
            .c = c,
            .w2 = w2,
            .c2 = c2};
  }
  // dx = residual + gradient (residual may be absent, or dx itself); dgain = or += .
  void backward(Stream& s, const Saved& saved, Tensor dy, Tensor residual, Tensor dx, Accumulate mode) const {
    on(s).rmsnorm_backward({.dy = dy,
                            .x = saved.x,
                            .gain = gain,
                            .r = saved.r,
                            .residual = residual,
                            .dx = dx,
                            .dgain = dgain,
                            .accumulate_gain = mode});
  }
};

}  // namespace cachalot
