// The dense MLP (also the shared experts): y = (silu(x W_gate) * (x W_up)) W_down.   x, y [T, D], width F.
//
// In fp8 the forward keeps the input of SwiGLU as codes and the backward computes its output again from them
// (V3 report, section 3.3.3); x may come as codes too.
#pragma once

#include "nn/linear.h"
#include "nn/operand.h"
#include "nn/recipe.h"

namespace cachalot {

struct SwigluMlp {
  Linear gate_up;  // [2F, D]: gate rows above up rows, one product
  Linear down;     // [D, F]
  Recipe recipe;

  struct Saved {
    // [T, D], [T, 2F], [T, F]; fp8: codes. `activated` by backward_input in fp8 and under Keep::for_recompute.
    Tensor x, hidden, activated;
    // Written by backward_input for backward_weight; in fp8 these and `activated` are codes of the transpose.
    Tensor dy, dhidden;
  };
  Saved forward(Stream& s, Arena& arena, Tensor x, Tensor y, Keep keep = Keep::for_backward) const;
  // dx = (or +=) the gradient.
  void backward_input(Stream& s, Arena& arena, Saved& saved, Tensor dy, Tensor dx, Accumulate dx_mode) const;
  void backward_weight(Stream& s, Arena& arena, const Saved& saved, Accumulate mode) const;
};

}  // namespace cachalot
