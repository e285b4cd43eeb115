// Contract: backend/ops/cross_entropy.h. Exponentials float, their sum double. What the target's probability
// lacks to 1 is summed from the others, not subtracted, so that a confident model keeps its small gradients.
#include <algorithm>
#include <cmath>

#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

namespace {

constexpr int64_t kBlock = 512;

// Sum of exp(x - shift), kept in y when it is given.
double sum_exp(const Vectors& vectors, const float* x, float shift, int64_t n, float* y) {
  double sum = 0;
  for (int64_t i = 0; i < n; i += kBlock)
    sum += vectors.exp_shifted(x + i, shift, std::min(kBlock, n - i), y ? y + i : nullptr);
  return sum;
}

}  // namespace

void CpuBackend::cross_entropy(const CrossEntropy& e) {
  check(e);
  require_no_f64("cross_entropy", {&e.logits, &e.dlogits});
  const auto logits = e.logits.matrix<float>();
  const auto targets = e.targets.vector<const int32_t>();
  const auto loss = e.loss.vector<float>();
  const int64_t v = logits.cols;
  const double nanoseconds = 0.6 * double(e.logits.size());
  context_->parallel_ranges(logits.rows, rows_per_item(v), nanoseconds, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* x = logits.row(t);
      const int64_t target = targets[t];
      if (target < 0) {
        loss[t] = 0;
        if (e.gradient) std::fill(x, x + v, 0.0f);
        if (e.dlogits) store_row(e.dlogits, t, 0, v, x);
        continue;
      }
      CHECK(target < v, "cross_entropy: target " + std::to_string(target) + " of " + std::to_string(v));
      const float largest = context_->vectors.largest(x, v, x[0]);
      const double mine = std::exp(double(x[target]) - largest), distance = double(largest) - x[target];
      float* kept = e.gradient ? x : nullptr;
      const double others = sum_exp(context_->vectors, x, largest, target, kept) +
                            sum_exp(context_->vectors, x + target + 1, largest, v - target - 1,
                                    kept ? kept + target + 1 : nullptr);
      const double sum = mine + others;
      // largest == x[target]: log(1 + others) without rounding the sum
      loss[t] = float((distance == 0 ? std::log1p(others) : std::log(sum)) + distance);
      if (!e.gradient) continue;
      const float factor = float(e.scale / sum);
      context_->vectors.scale(x, factor, v);
      x[target] = float(-e.scale * (others / sum));
      if (e.dlogits) store_row(e.dlogits, t, 0, v, x);
    }
  });
}

}  // namespace cachalot::cpu
