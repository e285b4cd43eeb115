// The experts of a layer and its shared expert, from normalised input to residual stream, where nothing is kept for
// a backward: decoding. Of few rows a backend goes by the choices directly and sorts nothing.
//   y[t] = residual[t] + S(x[t]) + sum_j weights(t, j) E_indices(t, j)(x[t])
//   E(x) = swiglu(x G^T) D^T,  G [2 I, D] (gate above up), D [D, I]   (ops/swiglu.h)
// Weights are read ahead of earlier operations of the stream: none that is under way may write them (inference).
// Rounded to act: the hidden numbers, those behind swiglu, every expert's output and y.
//   x, residual, y [T, D] act (y may be residual itself) | indices i32 [T, K], weights [T, K] stat
//   gate_up [E 2 I, D], down [E D, I] weight; shared_gate_up [2 I', D], shared_down [D, I'] weight, both or none
// Working memory, R = T K; contents afterwards unspecified:
//   row_of i32 [T, K], offsets i32 [1, E + 1], rows and outputs [R, D], hidden [R, 2 I], activated [R, I],
//   shared_hidden [T, 2 I'], shared_activated [T, I'], shared_output [T, D] act
#pragma once

#include "backend/ops/common.h"

namespace cachalot {

struct ExpertMlp {
  Tensor x, residual, indices, weights, gate_up, down, y;
  int64_t experts = 0;  // E
  Tensor row_of, offsets, rows, hidden, activated, outputs;
  Tensor shared_gate_up = {}, shared_down = {}, shared_hidden = {}, shared_activated = {}, shared_output = {};
};

}  // namespace cachalot
