// Rows by index: embedding, cache appends, MTP's shifted rows. Index tensors i32 [1, T].
#pragma once

#include "backend/ops/common.h"

namespace cachalot {

// y[t] = x[rows[t]], converted to y's format; a negative index gives a row of zeros.
//   x [n, D], y [T, D]: any of f64, f32, bf16
struct GatherRows {
  Tensor x, rows, y;
};

// y[rows[t]] = x[t], converted; a negative index is skipped; other rows of y keep their values. Indices are
// unique.
struct ScatterRows {
  Tensor x, rows, y;
};

// y[rows[t]] += x[t], in the order of t for each row (deterministic); a negative index is skipped.
// Overwriting zeroes all of y first.    x [T, D] act, y [n, D] stat: the embedding's gradient
struct ScatterAddRows {
  Tensor x, rows, y;
  Accumulate accumulate = Accumulate::overwrite;
};

}  // namespace cachalot
