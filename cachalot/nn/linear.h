// y = x W^T.   x, dx [T, I]   W, dW [O, I]   y, dy [T, O].   No bias: DeepSeek-V3 has none.
#pragma once

#include "backend/backend.h"

namespace cachalot {

struct Linear {
  Tensor w, dw;  // dw: stat format; absent in inference

  int64_t in() const { return w.cols; }
  int64_t out() const { return w.rows; }

  void forward(Stream& s, Tensor x, Tensor y) const { on(s).gemm({.a = x, .b = w, .c = y, .trans_b = true}); }
  // dx = (or +=) dy W. DualPipe's "B": the neighbouring pipeline rank waits for it.
  void backward_input(Stream& s, Tensor dy, Tensor dx, Accumulate mode = Accumulate::overwrite) const {
    on(s).gemm({.a = dy, .b = w, .c = dx, .accumulate = mode});
  }
  // dW = or += dy^T x. DualPipe's "W": fills bubbles.
  void backward_weight(Stream& s, Tensor dy, Tensor x, Accumulate mode) const {
    on(s).gemm({.a = dy, .b = x, .c = dw, .trans_a = true, .accumulate = mode});
  }
};

}  // namespace cachalot
