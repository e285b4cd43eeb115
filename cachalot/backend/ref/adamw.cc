#include <algorithm>

#include "backend/ops/check.h"
#include "backend/ref/number.h"
#include "backend/ref/ref_backend.h"

namespace cachalot {

void RefBackend::adamw(const AdamW& a) {
  check(a);
  const Reader grad(a.grad);
  const double norm_squared = Reader(a.grad_norm_squared)(0, 0);
  if (!std::isfinite(norm_squared)) return;
  const Writer master(a.master), m(a.m), v(a.v);
  const double clip =
      a.max_norm > 0 && norm_squared > 0 ? std::min(1.0, a.max_norm / std::sqrt(norm_squared)) : 1;
  const double m_correction = 1 - std::pow(a.beta1, double(a.step));
  const double v_correction = 1 - std::pow(a.beta2, double(a.step));
  for (int64_t r = 0; r < a.master.rows; ++r)
    for (int64_t c = 0; c < a.master.cols; ++c) {
      const double g = grad(r, c) * clip;
      const double m1 = a.beta1 * m(r, c) + (1 - a.beta1) * g;
      const double v1 = a.beta2 * v(r, c) + (1 - a.beta2) * g * g;
      const double step = m1 / m_correction / (std::sqrt(v1 / v_correction) + a.eps);
      m.set(r, c, m1);
      v.set(r, c, v1);
      master.add(r, c, -a.lr * (step + a.weight_decay * master(r, c)));
      if (a.weight) Writer(a.weight).set(r, c, master(r, c));
    }
}

}  // namespace cachalot
