// Contract: backend/ops/adamw.h. Float arithmetic; the factors of a step are made in double.
#include <algorithm>
#include <cmath>

#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

void CpuBackend::adamw(const AdamW& a) {
  check(a);
  require_no_f64("adamw", {&a.master, &a.grad, &a.m, &a.v, &a.weight});
  const double norm_squared = *a.grad_norm_squared.matrix<const double>().data;
  if (!std::isfinite(norm_squared)) return;
  const double norm = std::sqrt(norm_squared);
  const float clip = a.max_norm > 0 && norm > a.max_norm ? float(a.max_norm / norm) : 1.0f;
  const float beta1 = float(a.beta1), beta2 = float(a.beta2);
  const float fresh1 = float(1 - a.beta1), fresh2 = float(1 - a.beta2);
  const float unbias1 = float(1 / (1 - std::pow(a.beta1, double(a.step))));
  const float unbias2 = float(1 / (1 - std::pow(a.beta2, double(a.step))));
  const float lr = float(a.lr), eps = float(a.eps), decay = float(a.weight_decay);
  const int64_t cols = a.master.cols;
  const auto master = a.master.matrix<float>();
  const auto grad = a.grad.matrix<const float>();
  // Columns are cut too: a matrix may be one long row.
  constexpr int64_t kCols = 4096;
  const int64_t across = (cols + kCols - 1) / kCols;
  context_->parallel(a.master.rows * across, 4.0 * double(a.master.size()), [&](int64_t item) {
    const int64_t r = item / across, first = item % across * kCols, n = std::min(kCols, cols - first);
    Scratch scratch;
    float* m = scratch.take<float>(n);
    float* v = scratch.take<float>(n);
    load_row(a.m, r, first, n, m);
    load_row(a.v, r, first, n, v);
    float* w = master.row(r) + first;
    const float* g = grad.row(r) + first;
    for (int64_t i = 0; i < n; ++i) {
      const float clipped = g[i] * clip;
      m[i] = beta1 * m[i] + fresh1 * clipped;
      v[i] = beta2 * v[i] + fresh2 * (clipped * clipped);
      w[i] -= lr * (m[i] * unbias1 / (std::sqrt(v[i] * unbias2) + eps) + decay * w[i]);
    }
    store_row(a.m, r, first, n, m);
    store_row(a.v, r, first, n, v);
    if (a.weight) store_row(a.weight, r, first, n, w);
  });
}

}  // namespace cachalot::cpu
