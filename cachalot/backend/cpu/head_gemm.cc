// Contract: backend/ops/head_gemm.h. One product a head over slices. Order of summation: product.cc.
#include "backend/cpu/convert.h"
#include "backend/cpu/product.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

void CpuBackend::head_gemm(const HeadGemm& g) {
  check(g);
  require_no_f64("head_gemm", {&g.x, &g.w, &g.y});
  const int64_t x_width = g.trans_w ? g.w.cols : g.w_rows, y_width = g.trans_w ? g.w_rows : g.w.cols;
  products_.clear();
  for (int64_t h = 0; h < g.heads; ++h)
    products_.push_back({.a = g.x.slice_cols(h * g.x_stride, x_width),
                         .b = g.w.slice_rows(g.w_first + h * g.w_stride, g.w_rows),
                         .c = g.y.slice_cols(h * g.y_stride, y_width),
                         .trans_b = g.trans_w});
  run_products(*context_, products_);
}

}  // namespace cachalot::cpu
