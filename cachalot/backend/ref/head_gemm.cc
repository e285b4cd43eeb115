#include "backend/ops/check.h"
#include "backend/ref/number.h"
#include "backend/ref/ref_backend.h"

namespace cachalot {

void RefBackend::head_gemm(const HeadGemm& g) {
  check(g);
  const Reader x(g.x), w(g.w);
  const Writer y(g.y);
  const int64_t depth = g.trans_w ? g.w.cols : g.w_rows, width = g.trans_w ? g.w_rows : g.w.cols;
  for (int64_t t = 0; t < g.x.rows; ++t)
    for (int64_t h = 0; h < g.heads; ++h) {
      const int64_t first = g.w_first + h * g.w_stride;
      for (int64_t n = 0; n < width; ++n) {
        double sum = 0;
        for (int64_t k = 0; k < depth; ++k)
          sum += x(t, h * g.x_stride + k) * (g.trans_w ? w(first + n, k) : w(first + k, n));
        y.set(t, h * g.y_stride + n, sum);
      }
    }
}

}  // namespace cachalot
