// Contract: backend/ops/adamw.h. Float arithmetic; the factors of a step are made in double.
#include <algorithm>
#include <cmath>

#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

namespace {

struct Factors {
  float clip, beta1, beta2, fresh1, fresh2;  // fresh = 1 - beta
  float unbias1, unbias2;                    // 1 / (1 - beta^step)
  float lr, eps, decay;
};

// By value and restrict: nothing that is written can be what is read, and the loop vectorises.
void update(const Factors f, int64_t n, const float* __restrict grad, float* __restrict m,
            float* __restrict v, float* __restrict master) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = grad[i] * f.clip;
    m[i] = f.beta1 * m[i] + f.fresh1 * g;
    v[i] = f.beta2 * v[i] + f.fresh2 * (g * g);
    master[i] -= f.lr * (m[i] * f.unbias1 / (std::sqrt(v[i] * f.unbias2) + f.eps) + f.decay * master[i]);
  }
}

}  // namespace

void CpuBackend::adamw(const AdamW& a) {
  check(a);
  require_no_f64("adamw", {&a.master, &a.grad, &a.m, &a.v, &a.weight});
  const double norm_squared = *a.grad_norm_squared.matrix<const double>().data;
  if (!std::isfinite(norm_squared)) return;
  const double norm = std::sqrt(norm_squared);
  const Factors factors{.clip = a.max_norm > 0 && norm > a.max_norm ? float(a.max_norm / norm) : 1.0f,
                        .beta1 = float(a.beta1),
                        .beta2 = float(a.beta2),
                        .fresh1 = float(1 - a.beta1),
                        .fresh2 = float(1 - a.beta2),
                        .unbias1 = float(1 / (1 - std::pow(a.beta1, double(a.step)))),
                        .unbias2 = float(1 / (1 - std::pow(a.beta2, double(a.step)))),
                        .lr = float(a.lr),
                        .eps = float(a.eps),
                        .decay = float(a.weight_decay)};
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
    update(factors, n, grad.row(r) + first, m, v, w);
    store_row(a.m, r, first, n, m);
    store_row(a.v, r, first, n, v);
    if (a.weight) store_row(a.weight, r, first, n, w);
  });
}

}  // namespace cachalot::cpu
