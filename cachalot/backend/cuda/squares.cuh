// Which rows become a square of 128 columns of a quantised transpose (ops/quantize.h): 128 rows one after the
// other, or of one expert.
#pragma once

#include "backend/cuda/faults.cuh"
#include "backend/cuda/reduce.cuh"
#include "tensor/tensor.h"

namespace cachalot::cuda {

struct RowsToTurn {
  int64_t rows, columns;  // of x, of the transpose
  const int32_t *offsets, *padded;
  int64_t experts;
  Faults faults;
};

// Rows [from, end) of x, at most 128, are columns [to, to_end) of the transpose; rows behind `end` are zeros.
struct Square {  // no initialisers: it stands in shared memory
  int64_t from, end, to, to_end;
  int64_t down;       // the transpose begins at this row of it
  int64_t scale_row;  // blocks: of y's scales
};

// What square `at` of those above each other takes; from = end = to_end = 0: nothing. A whole warp asks.
__device__ inline Square find_rows(const RowsToTurn& a, int64_t at) {
  Square s{
      .from = at * kScaleBlock, .end = 0, .to = at * kScaleBlock, .to_end = 0, .down = 0, .scale_row = 0};
  if (!a.offsets) {
    s.end = min(a.rows, s.from + kScaleBlock);
    s.to_end = min(a.columns, s.to + kScaleBlock);
    return s;
  }
  for (int64_t base = 0; base < a.experts; base += 32) {  // one warp
    const int64_t e = base + threadIdx.x % 32;
    const bool real = e < a.experts;
    const int64_t begin = real ? a.padded[e] : 0, after = real ? a.padded[e + 1] : 0;
    const unsigned found = __ballot_sync(kAll, begin <= s.to && s.to < after);
    if (!found) continue;
    const int64_t expert = base + __ffs(int(found)) - 1, first = a.offsets[expert],
                  last = a.offsets[expert + 1], pad = a.padded[expert], pad_end = a.padded[expert + 1];
    if (!a.faults.fine(FaultOf::quantize, last, a.rows + 1) ||
        !a.faults.fine(FaultOf::quantize, first, last + 1) ||
        !a.faults.fine(FaultOf::quantize, pad_end, a.columns + 1) ||
        !a.faults.fine(FaultOf::quantize, pad % kScaleBlock, 1))
      break;
    s.from = first + s.to - pad;
    s.end = min(last, s.from + kScaleBlock);
    s.to_end = min(pad_end, s.to + kScaleBlock);
    return s;
  }
  return {};
}

}  // namespace cachalot::cuda
