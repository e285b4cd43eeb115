// The routed experts: E SwiGLU MLPs, each over its own rows (sorted by expert, offsets on the device).
//   rows, drows [R, D];  gate_up [E 2I, D], down [E D, I] stacked
#pragma once

#include "backend/backend.h"
#include "backend/buffer.h"
#include "nn/recipe.h"

namespace cachalot {

struct Experts {
  int64_t experts = 0;
  Tensor gate_up, d_gate_up, down, d_down;
  Recipe recipe;

  struct Saved {
    Tensor rows, offsets, hidden, activated;  // [R, D], i32 [1, E+1], [R, 2I], [R, I]
    Tensor dy, dhidden;                       // written by backward_input for backward_weight
  };
  Saved forward(Stream& s, Arena& arena, Tensor rows, Tensor offsets, Tensor y) const;
  void backward_input(Stream& s, Arena& arena, Saved& saved, Tensor dy, Tensor drows) const;
  void backward_weight(Stream& s, const Saved& saved, Accumulate mode) const;
};

}  // namespace cachalot
