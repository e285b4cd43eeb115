// x[t] = E[token t].   E, dE [V, D];  x, dx [T, D]
#pragma once

#include "backend/backend.h"

namespace cachalot {

struct Embedding {
  Tensor w, dw;
  void forward(Stream& s, Tensor tokens, Tensor x) const {
    on(s).gather_rows({.x = w, .rows = tokens, .y = x});
  }
  void backward_weight(Stream& s, Tensor tokens, Tensor dx, Accumulate mode) const {
    on(s).scatter_add_rows({.x = dx, .rows = tokens, .y = dw, .accumulate = mode});
  }
};

}  // namespace cachalot
