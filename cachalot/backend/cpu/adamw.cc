// Contract: backend/ops/adamw.h. Float arithmetic; the factors of a step are made in double.
#include <algorithm>
#include <cmath>

#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/rows_as_stored.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

void CpuBackend::adamw(const AdamW& a) {
  check(a);
  require_no_f64("adamw", {&a.master, &a.grad, &a.m, &a.v, &a.weight});
  const double norm_squared = *a.grad_norm_squared.matrix<const double>().data;
  if (!std::isfinite(norm_squared)) return;
  const double norm = std::sqrt(norm_squared);
  const AdamFactors factors{.clip = a.max_norm > 0 && norm > a.max_norm ? float(a.max_norm / norm) : 1.0f,
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
  // Some rows an item; columns are cut too: a matrix may be one long row.
  constexpr int64_t kCols = 16384;
  const int64_t across = (cols + kCols - 1) / kCols,
                rows = std::max<int64_t>(1, kCols / std::max<int64_t>(cols, 1));
  const int64_t down = (a.master.rows + rows - 1) / rows;
  const bool rounds = a.weight && a.weight.dtype == DType::bf16;
  context_->parallel(down * across, 0.7 * double(a.master.size()), [&](int64_t item) {
    const int64_t first = item % across * kCols, n = std::min(kCols, cols - first),
                  top = item / across * rows;
    for (int64_t r = top; r < std::min(a.master.rows, top + rows); ++r) {
      float* w = master.row(r) + first;
      context_->vectors.adamw(factors, n, grad.row(r) + first, static_cast<uint16_t*>(place(a.m, r, first)),
                              static_cast<uint16_t*>(place(a.v, r, first)), w,
                              rounds ? static_cast<uint16_t*>(place(a.weight, r, first)) : nullptr);
      if (a.weight && !rounds) store_row(a.weight, r, first, n, w);
    }
  });
}

}  // namespace cachalot::cpu
