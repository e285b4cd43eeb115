#include "backend/ops/check.h"
#include "backend/ref/number.h"
#include "backend/ref/ref_backend.h"

namespace cachalot {

void RefBackend::gemm(const Gemm& g) {
  check(g);
  const Reader a(g.a), b(g.b);
  const Writer c(g.c);
  const int64_t depth = g.trans_a ? g.a.rows : g.a.cols;
  for (int64_t m = 0; m < g.c.rows; ++m)
    for (int64_t n = 0; n < g.c.cols; ++n) {
      double sum = g.accumulate == Accumulate::add ? c(m, n) : 0;
      for (int64_t k = 0; k < depth; ++k)
        sum += (g.trans_a ? a(k, m) : a(m, k)) * (g.trans_b ? b(n, k) : b(k, n));
      c.set(m, n, sum);
    }
}

}  // namespace cachalot
