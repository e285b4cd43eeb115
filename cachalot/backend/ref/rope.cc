#include "backend/ops/check.h"
#include "backend/ref/number.h"
#include "backend/ref/ref_backend.h"

namespace cachalot {

void RefBackend::rope(const Rope& r) {
  check(r);
  const Writer x(r.x);
  const Reader cos(r.cos), sin(r.sin);
  const Indices positions(r.positions, r.cos.rows);
  for (int64_t t = 0; t < r.x.rows; ++t)
    for (int64_t h = 0; h < r.heads; ++h)
      for (int64_t i = 0; i < r.width / 2; ++i) {
        const int64_t col = h * r.stride + r.offset + 2 * i, p = positions[t];
        const double c = cos(p, i), s = r.inverse ? -sin(p, i) : sin(p, i), even = x(t, col),
                     odd = x(t, col + 1);
        x.set(t, col, even * c - odd * s);
        x.set(t, col + 1, even * s + odd * c);
      }
}

}  // namespace cachalot
