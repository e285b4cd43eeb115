// y = silu(gate) up,  silu(a) = a / (1 + exp(-a))       Shazeer, arXiv:2002.05202
//   x [T, 2I] act: gate in the first I columns, up in the last; y [T, I] act. dx like x, dy like y.
//   dgate = dy up s (1 + gate (1 - s)),  dup = dy gate s,  s = sigmoid(gate)
//
// FP8 outputs (ops/quantize.h, row tiles) are what Quantize makes of the numbers as rounded to act, byte for
// byte; those numbers need not be written.
#pragma once

#include "backend/ops/common.h"

namespace cachalot {

struct SwigluForward {
  Tensor x;
  Tensor y;               // optional where `quantized` is there
  Tensor quantized = {};  // e4m3 [T, I] of y, optional
  Tensor cached = {};     // e4m3 [T, 2I] of x, for the backward, optional
  bool power_of_two = false;
};

// With weights w the row that leaves is w silu(gate) up, as the combination of experts wants it of each: dx is the
// gradient from w dy, `y` is w times the output, and dweights[t] = sum_i dy(t, i) silu(gate) up. Nothing of this is
// rounded before it is stored.
//
// x may be what the forward cached: e4m3 with row tiles, read as f32(code * scale). Then y, as the forward
// would make it of this x, comes for free for the weight gradient of the projection behind it.
struct SwigluBackward {
  Tensor dy, x;
  Tensor dx;              // optional where `quantized` is there
  Tensor y = {};          // act [T, I], optional
  Tensor quantized = {};  // e4m3 [T, 2I] of dx, optional
  bool power_of_two = false;
  Tensor weights = {}, dweights = {};  // stat [1, T], together or not at all
  // Operands of weight gradients: what Quantize::transposed makes of dx and of y, byte for byte, together or
  // not at all. dx and y are there then, and what they hold afterwards is not said; nor is, with offsets (as
  // in Quantize), what rows of nobody become.
  Tensor transposed = {}, y_transposed = {};  // e4m3 [2I, R'], [I, R']
  Tensor offsets = {}, padded = {};
};

}  // namespace cachalot
