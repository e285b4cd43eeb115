#include <vector>

#include "backend/ops/check.h"
#include "backend/ref/number.h"
#include "backend/ref/ref_backend.h"

namespace cachalot {

void RefBackend::gather_rows(const GatherRows& g) {
  check(g);
  const Reader x(g.x);
  const Indices rows(g.rows, g.x.rows, kAnyNegative);
  const Writer y(g.y);
  for (int64_t t = 0; t < g.y.rows; ++t)
    for (int64_t d = 0; d < g.y.cols; ++d) y.set(t, d, rows[t] < 0 ? 0 : x(rows[t], d));
}

void RefBackend::scatter_rows(const ScatterRows& s) {
  check(s);
  const Reader x(s.x);
  const Indices rows(s.rows, s.y.rows, kAnyNegative);
  const Writer y(s.y);
  std::vector<bool> written(size_t(s.y.rows));
  for (int64_t t = 0; t < s.x.rows; ++t) {
    if (rows[t] < 0) continue;
    CHECK(!written[size_t(rows[t])], "row " + std::to_string(rows[t]) + " is written twice");
    written[size_t(rows[t])] = true;
    for (int64_t d = 0; d < s.x.cols; ++d) y.set(rows[t], d, x(t, d));
  }
}

void RefBackend::scatter_add_rows(const ScatterAddRows& s) {
  check(s);
  const Reader x(s.x);
  const Indices rows(s.rows, s.y.rows, kAnyNegative);
  const Writer y(s.y);
  for (int64_t n = 0; n < s.y.rows; ++n)
    for (int64_t d = 0; d < s.y.cols; ++d) {
      double sum = s.accumulate == Accumulate::add ? y(n, d) : 0;
      for (int64_t t = 0; t < s.x.rows; ++t)
        if (rows[t] == n) sum += x(t, d);
      y.set(n, d, sum);
    }
}

}  // namespace cachalot
