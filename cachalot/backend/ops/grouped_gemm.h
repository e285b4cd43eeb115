// One product an expert over the rows that chose it; the row counts stay on the device.
//   offsets i32 [1, E+1], ascending from 0: expert e owns rows offsets[e] ... offsets[e+1]-1 of x, y, dy.
//   Rows at and after offsets[E] belong to nobody: not read, not written. Experts may be empty.
//   w [E * O, I] stacks W_e [O, I]
#pragma once

#include "backend/ops/common.h"

namespace cachalot {

// y[r] = x[r] W_e^T (x [R, I], y [R, O]), or, transposed, y[r] = x[r] W_e (x [R, O], y [R, I]: input
// gradient).
// FP8 (x e4m3 with row tiles): w is e4m3 with blocks, sums as in ops/gemm.h; input_grad is false, since the
// input gradient takes the transposed weight [E * I, O] (QuantizeWeight).
struct GroupedGemm {
  Tensor x, w, y, offsets;
  int64_t experts = 0;
  bool input_grad = false;
};

// dW_e = or += dy_e^T x_e dy [R, O], x [R, I], dw [E * O, I] stat. Overwriting zeroes the dW of empty
// experts.
// FP8: dy [O, R'] and x [I, R'] are e4m3 transposes with row tiles (Quantize::transposed), and offsets are
// the padded ones: expert e owns columns offsets[e] ... offsets[e+1]-1, a multiple of 128. Sums as in
// ops/gemm.h, dw f32.
struct GroupedWeightGrad {
  Tensor dy, x, dw, offsets;
  int64_t experts = 0;
  Accumulate accumulate = Accumulate::overwrite;
};

}  // namespace cachalot
