#include <algorithm>

#include "backend/ops/check.h"
#include "backend/ref/number.h"
#include "backend/ref/ref_backend.h"

namespace cachalot {

void RefBackend::cross_entropy(const CrossEntropy& e) {
  check(e);
  const Writer logits(e.logits), loss(e.loss), gradient(e.dlogits ? e.dlogits : e.logits);
  const int64_t vocabulary = e.logits.cols;
  const Indices targets(e.targets, vocabulary, kAnyNegative);
  for (int64_t t = 0; t < e.logits.rows; ++t) {
    const int64_t target = targets[t];
    if (target < 0) {
      loss.set(t, 0);
      if (e.gradient)
        for (int64_t v = 0; v < vocabulary; ++v) gradient.set(t, v, 0);
      continue;
    }
    double top = logits(t, 0), sum = 0;
    for (int64_t v = 1; v < vocabulary; ++v) top = std::max(top, logits(t, v));
    for (int64_t v = 0; v < vocabulary; ++v) sum += std::exp(logits(t, v) - top);
    loss.set(t, top + std::log(sum) - logits(t, target));
    if (e.gradient)
      for (int64_t v = 0; v < vocabulary; ++v)
        gradient.set(t, v, e.scale * (std::exp(logits(t, v) - top) / sum - (v == target ? 1 : 0)));
  }
}

}  // namespace cachalot
