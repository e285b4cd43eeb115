// The per-head products of absorbed MLA: W_UK into the query, W_UV out of the latent (V3 report section
// 2.1.1, inference/model.py "absorb"). Head h multiplies its own columns by its own rows of kv_b [H (N + U),
// C].
//   W_h = w[w_first + h w_stride, + w_rows)                          [w_rows, C]
//   trans_w: y_h = x_h W_h^T   x_h [T, C]      y_h [T, w_rows]       (values out of the latent)
//   else:    y_h = x_h W_h     x_h [T, w_rows] y_h [T, C]            (queries into the latent)
//   x_h = columns [h x_stride, + width) of x; y_h = columns [h y_stride, + width) of y. x, y act; w weight.
#pragma once

#include "backend/ops/common.h"

namespace cachalot {

struct HeadGemm {
  Tensor x, w, y;
  int64_t heads = 0;
  int64_t x_stride = 0, y_stride = 0;
  int64_t w_first = 0, w_stride = 0, w_rows = 0;
  bool trans_w = false;
  bool read_ahead = false;  // w; see Gemm
};

}  // namespace cachalot
