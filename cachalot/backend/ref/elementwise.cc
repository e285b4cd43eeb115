#include "backend/ops/check.h"
#include "backend/ref/number.h"
#include "backend/ref/ref_backend.h"

namespace cachalot {

void RefBackend::fill(const Fill& f) {
  check(f);
  const Writer y(f.y);
  for (int64_t r = 0; r < f.y.rows; ++r)
    for (int64_t c = 0; c < f.y.cols; ++c) y.set(r, c, f.value);
}

void RefBackend::cast(const Cast& k) {
  check(k);
  const Reader x(k.x);
  const Writer y(k.y);
  for (int64_t r = 0; r < k.y.rows; ++r)
    for (int64_t c = 0; c < k.y.cols; ++c) y.set(r, c, x(r, c));
}

void RefBackend::add(const Add& s) {
  check(s);
  const Reader a(s.a), b(s.b);
  const Writer y(s.y);
  for (int64_t r = 0; r < s.y.rows; ++r)
    for (int64_t c = 0; c < s.y.cols; ++c) y.set(r, c, a(r, c) + b(r, c));
}

void RefBackend::sum_squares(const SumSquares& s) {
  check(s);
  const Reader x(s.x);
  const Writer out(s.out);
  double sum = out(0, 0);
  for (int64_t r = 0; r < s.x.rows; ++r)
    for (int64_t c = 0; c < s.x.cols; ++c) sum += x(r, c) * x(r, c);
  out.set(0, 0, sum);
}

}  // namespace cachalot
