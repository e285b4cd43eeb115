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
    Saved saved{x, arena.take_vector(gain.dtype, x.rows)};
    on(s).rmsnorm_forward({.x = x,
                           .gain = gain,
                           .y = y,
                           .r = saved.r,
                           .eps = eps,
                           .quantized = codes,
                           .power_of_two = power_of_two});
    return saved;
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
