// Small change: fill, convert, add.
#pragma once

#include "backend/ops/common.h"

namespace cachalot {

struct Fill {  // y = value; any format but e4m3 (i32 truncates)
  Tensor y;
  double value = 0;
};

// y = x, converted with one rounding; x any format (e4m3 with its scales), y f64, f32, bf16 or i32 = i32
struct Cast {
  Tensor x, y;
};

struct Add {  // y = a + b; all act, all stat or all i32; y may be a or b
  Tensor a, b, y;
};

// out += sum of squares, in double, in an order that does not depend on threads. x: f32 or f64; out f64 [1,
// 1]
struct SumSquares {
  Tensor x, out;
};

}  // namespace cachalot
