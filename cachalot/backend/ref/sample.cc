#include <algorithm>
#include <numeric>
#include <vector>

#include "backend/ops/check.h"
#include "backend/ref/number.h"
#include "backend/ref/ref_backend.h"
#include "base/rng.h"

namespace cachalot {

void RefBackend::sample(const Sample& a) {
  check(a);
  const Reader logits(a.logits), positions(a.positions);
  const Writer tokens(a.tokens);
  const int64_t vocabulary = a.logits.cols;
  for (int64_t t = 0; t < a.logits.rows; ++t) {
    // Ids by descending logit, ties to the lower id; NaN counts as -inf, and -inf is never drawn.
    std::vector<double> x(static_cast<size_t>(vocabulary));
    for (size_t v = 0; v < x.size(); ++v)
      x[v] = std::isnan(logits(t, int64_t(v))) ? -INFINITY : logits(t, int64_t(v));
    std::vector<size_t> ids(x.size());
    std::iota(ids.begin(), ids.end(), size_t{0});
    std::stable_sort(ids.begin(), ids.end(), [&](size_t v, size_t w) { return x[v] > x[w]; });
    const double top = x[ids[0]];
    if (top == -INFINITY || a.temperature == 0) {
      tokens.set(t, top == -INFINITY ? 0 : double(ids[0]));
      continue;
    }
    if (a.top_k > 0 && a.top_k < vocabulary) ids.resize(size_t(a.top_k));

    // p without its denominator: the largest is 1 (also when it is +inf).
    std::vector<double> p;
    for (const size_t v : ids) p.push_back(x[v] == top ? 1 : std::exp((x[v] - top) / a.temperature));
    const double kept_by_k = std::accumulate(p.begin(), p.end(), 0.0);
    double kept = kept_by_k;
    if (a.top_p < 1) {
      kept = 0;
      size_t n = 0;
      while (n < p.size() && (n == 0 || kept < a.top_p * kept_by_k)) kept += p[n++];
      p.resize(n);
    }
    const double u = random_uniform(a.seed, kSampleStream, uint64_t(int64_t(positions[t]))) * kept;
    size_t n = 0;
    for (double sum = p[0]; sum <= u && n + 1 < p.size(); sum += p[n]) ++n;
    tokens.set(t, double(ids[n]));
  }
}

}  // namespace cachalot
