// The routed experts: E SwiGLU MLPs, each over its own rows (sorted by expert, offsets on the device).
//   rows, drows [R, D];  gate_up [E 2I, D], down [E D, I] stacked
//
// fp8: as in nn/swiglu.h and nn/linear.h; `rows` may be codes, as the dispatch moves them.
#pragma once

#include "backend/backend.h"
#include "nn/operand.h"
#include "nn/recipe.h"
#include "nn/swiglu.h"

namespace cachalot {

struct Experts {
  int64_t experts = 0;
  Tensor gate_up, d_gate_up, down, d_down;
  Tensor gate_up_transposed{}, down_transposed{};  // [E D, 2I], [E I, D], fp8 with gradients only
  Recipe recipe;

  struct Saved {
    Tensor rows, offsets, hidden;  // [R, D], i32 [1, E+1], [R, 2I]; fp8: codes
    Tensor padded;                 // fp8: offsets of whole tiles, i32 [1, E+1]
    // For backward_weight: dy as backward_input got it; dhidden and, times the rows' weights, the output of SwiGLU
    // as it wrote them (fp8: codes of the transposes).
    Tensor dy, dhidden, weighted;
  };
  Saved forward(Stream& s, Arena& arena, Tensor rows, Tensor offsets, Tensor y,
                Keep keep = Keep::for_backward) const;
  // residual += shared(x) + the weighted experts of x [T, D], where nothing is kept for a backward (not fp8; one
  // rank). `shared` may be nullptr.
  void decode(Stream& s, Arena& arena, Tensor x, Tensor indices, Tensor weights, const SwigluMlp* shared,
              Tensor residual) const;
  // `weights` [1, R] stat: what the combination multiplies a row of y by. dy (fp8: codes) is the gradient behind
  // that product; the weights' own gradients are a by-product. In V3, too, dy is quantised before the dispatch
  // (report, section 3.3.3).
  void backward_input(Stream& s, Arena& arena, Saved& saved, Tensor dy, Tensor weights, Tensor drows,
                      Tensor dweights) const;
  void backward_weight(Stream& s, Arena& arena, const Saved& saved, Accumulate mode) const;

 private:
  void multiply(Stream& s, Tensor x, Tensor w, Tensor y, Tensor offsets) const;  // y = x W^T
  void multiply_back(Stream& s, Tensor dy, Tensor w, Tensor w_transposed, Tensor dx,
                     Tensor offsets) const;  // dx = dy W
};

}  // namespace cachalot
