// y = silu(gate) up,  silu(a) = a / (1 + exp(-a))       Shazeer, arXiv:2002.05202
//   x [T, 2I] act: gate in the first I columns, up in the last; y [T, I] act. dx like x, dy like y.
//   dgate = dy up s (1 + gate (1 - s)),  dup = dy gate s,  s = sigmoid(gate)
#pragma once

#include "backend/ops/common.h"

namespace cachalot {

struct SwigluForward {
  Tensor x, y;
};

struct SwigluBackward {
  Tensor dy, x, dx;
};

}  // namespace cachalot
