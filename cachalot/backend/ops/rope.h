// Rotary positions on interleaved pairs, in place (Su et al., arXiv:2104.09864; V3's inference/model.py):
//   (x[2i], x[2i+1]) -> (x[2i] cos - x[2i+1] sin, x[2i] sin + x[2i+1] cos),  angle = position * frequency_i
// applied to columns [h stride + offset, + width) of x for h < heads. `inverse` turns back: the backward.
//   x [T, *] act | positions i32 [1, T] |
//     cos, sin [positions, width / 2] stat, scaled by YaRN's attention factor
// With a factor m in the tables, forward multiplies by m and inverse by m too: it is the transpose.
#pragma once

#include "backend/ops/common.h"

namespace cachalot {

struct Rope {
  Tensor x, positions, cos, sin;
  int64_t heads = 1, stride = 0, offset = 0, width = 0;
  bool inverse = false;
};

}  // namespace cachalot
