// The routed experts: E SwiGLU MLPs, each over its own rows (sorted by expert, offsets on the device).
//   rows, drows [R, D];  gate_up [E 2I, D], down [E D, I] stacked
//
// fp8: as in nn/swiglu.h and nn/linear.h; `rows` may be codes, as the dispatch moves them.
#pragma once

#include "backend/backend.h"
#include "nn/operand.h"
#include "nn/recipe.h"

namespace cachalot {

struct Experts {
  int64_t experts = 0;
  Tensor gate_up, d_gate_up, down, d_down;
  Tensor gate_up_transposed{}, down_transposed{};  // [E D, 2I], [E I, D], fp8 with gradients only
  Recipe recipe;

  struct Saved {
    Tensor rows, offsets, hidden;  // [R, D], i32 [1, E+1], [R, 2I]; fp8: codes
    Tensor activated;              // [R, I]; fp8: by backward_input
    Tensor padded;                 // fp8: offsets of whole tiles, i32 [1, E+1]
    // Written by backward_input for backward_weight; in fp8 these and `activated` are codes of the transpose.
    Tensor dy, dhidden;
  };
  Saved forward(Stream& s, Arena& arena, Tensor rows, Tensor offsets, Tensor y,
                Keep keep = Keep::for_backward) const;
  void backward_input(Stream& s, Arena& arena, Saved& saved, Tensor dy, Tensor drows) const;
  void backward_weight(Stream& s, Arena& arena, const Saved& saved, Accumulate mode) const;

 private:
  void multiply(Stream& s, Tensor x, Tensor w, Tensor y, Tensor offsets) const;  // y = x W^T
  void multiply_back(Stream& s, Tensor dy, Tensor w, Tensor w_transposed, Tensor dx,
                     Tensor offsets) const;  // dx = dy W
};

}  // namespace cachalot
