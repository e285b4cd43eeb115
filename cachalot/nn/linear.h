// y = x W^T.   x, dx [T, I]   W, dW [O, I]   y, dy [T, O].   No bias: DeepSeek-V3 has none.
//
// In fp8 (nn/recipe.h) W is E4M3 with its scales, and so is its transpose, which the input gradient
// multiplies by; both are made once a step. Products then take codes: x and dy with row tiles, and for the
// weight gradient the transposes of both (nn/operand.h). What they are given decides.
#pragma once

#include "backend/backend.h"

namespace cachalot {

struct Linear {
  Tensor w, dw;           // dw: stat format; absent in inference
  Tensor w_transposed{};  // [I, O], fp8 with gradients only

  int64_t in() const { return w.cols; }
  int64_t out() const { return w.rows; }

  void forward(Stream& s, Tensor x, Tensor y) const { on(s).gemm({.a = x, .b = w, .c = y, .trans_b = true}); }
  // dx = (or +=) dy W. DualPipe's "B": the neighbouring pipeline rank waits for it.
  void backward_input(Stream& s, Tensor dy, Tensor dx, Accumulate mode = Accumulate::overwrite) const {
    const bool codes = dy.dtype == DType::e4m3;
    on(s).gemm({.a = dy, .b = codes ? w_transposed : w, .c = dx, .trans_b = codes, .accumulate = mode});
  }
  // dW = or += dy^T x. DualPipe's "W": fills bubbles. Codes: dy [O, T], x [I, T].
  void backward_weight(Stream& s, Tensor dy, Tensor x, Accumulate mode) const {
    const bool codes = dy.dtype == DType::e4m3;
    on(s).gemm({.a = dy, .b = x, .c = dw, .trans_a = !codes, .trans_b = codes, .accumulate = mode});
  }
};

}  // namespace cachalot
