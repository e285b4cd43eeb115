// The dense MLP (also the shared experts): y = (silu(x W_gate) * (x W_up)) W_down.   x, y [T, D], width F.
#pragma once

#include "nn/linear.h"
#include "nn/recipe.h"
#include "backend/buffer.h"

namespace cachalot {

struct SwigluMlp {
  Linear gate_up;  // [2F, D]: gate rows above up rows, one product
  Linear down;     // [D, F]
  Recipe recipe;

  struct Saved {
    Tensor x, hidden, activated;  // [T, D], [T, 2F], [T, F]
    Tensor dy, dhidden;           // written by backward_input for backward_weight
  };
  Saved forward(Stream& s, Arena& arena, Tensor x, Tensor y) const;
  // dx = (or +=) the gradient.
  void backward_input(Stream& s, Arena& arena, Saved& saved, Tensor dy, Tensor dx, Accumulate dx_mode) const;
  void backward_weight(Stream& s, const Saved& saved, Accumulate mode) const;
};

}  // namespace cachalot
