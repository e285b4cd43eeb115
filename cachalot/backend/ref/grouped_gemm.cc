#include "backend/ops/check.h"
#include "backend/ref/number.h"
#include "backend/ref/ref_backend.h"

namespace cachalot {

void RefBackend::grouped_gemm(const GroupedGemm& g) {
  check(g);
  const Reader x(g.x), w(g.w);
  const Writer y(g.y);
  const Starts offsets(g.offsets, g.x.rows);
  CHECK(offsets[0] == 0);
  const int64_t outputs = g.w.rows / g.experts;
  for (int64_t e = 0; e < g.experts; ++e)
    for (int64_t r = offsets[e]; r < offsets[e + 1]; ++r)
      for (int64_t n = 0; n < g.y.cols; ++n) {
        double sum = 0;
        for (int64_t k = 0; k < g.x.cols; ++k)
          sum += x(r, k) * (g.input_grad ? w(e * outputs + k, n) : w(e * outputs + n, k));
        y.set(r, n, sum);
      }
}

void RefBackend::grouped_weight_grad(const GroupedWeightGrad& g) {
  check(g);
  const Reader dy(g.dy), x(g.x);
  const Writer dw(g.dw);
  const Starts offsets(g.offsets, g.x.rows);
  CHECK(offsets[0] == 0);
  for (int64_t e = 0; e < g.experts; ++e)
    for (int64_t o = 0; o < g.dy.cols; ++o)
      for (int64_t i = 0; i < g.x.cols; ++i) {
        const int64_t row = e * g.dy.cols + o;
        double sum = g.accumulate == Accumulate::add ? dw(row, i) : 0;
        for (int64_t r = offsets[e]; r < offsets[e + 1]; ++r) sum += dy(r, o) * x(r, i);
        dw.set(row, i, sum);
      }
}

}  // namespace cachalot
