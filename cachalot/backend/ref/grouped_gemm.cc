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
  const bool transposed = g.dy.dtype == DType::e4m3;
  const int64_t outputs = transposed ? g.dy.rows : g.dy.cols, inputs = transposed ? g.x.rows : g.x.cols;
  const Starts offsets(g.offsets, transposed ? g.x.cols : g.x.rows);
  CHECK(offsets[0] == 0);
  for (int64_t e = 0; e < g.experts; ++e)
    for (int64_t o = 0; o < outputs; ++o)
      for (int64_t i = 0; i < inputs; ++i) {
        const int64_t row = e * outputs + o;
        double sum = g.accumulate == Accumulate::add ? dw(row, i) : 0;
        for (int64_t r = offsets[e]; r < offsets[e + 1]; ++r)
          sum += transposed ? dy(o, r) * x(i, r) : dy(r, o) * x(r, i);
        dw.set(row, i, sum);
      }
}

}  // namespace cachalot
