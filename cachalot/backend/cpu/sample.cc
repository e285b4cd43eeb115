// Contract: backend/ops/sample.h. Double throughout: a token is a discrete thing, and one that differs from
// ref's by rounding would be a different text. A row is one thread's.
#include <algorithm>
#include <cmath>

#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/ops/check.h"
#include "base/rng.h"

namespace cachalot::cpu {

namespace {

struct Candidate {
  float logit;
  int32_t id;
  // Likelier first, ties to the lower id.
  bool operator<(const Candidate& o) const { return logit != o.logit ? logit > o.logit : id < o.id; }
};

int32_t largest_of(const float* x, int64_t n) {
  int64_t best = -1;
  for (int64_t i = 0; i < n; ++i)
    if (x[i] > -INFINITY && (best < 0 || x[i] > x[best])) best = i;  // false for NaN
  return int32_t(std::max<int64_t>(best, 0));
}

int32_t draw(const Sample& s, const float* x, int64_t n, int64_t position, Scratch& scratch) {
  if (s.temperature == 0) return largest_of(x, n);
  Candidate* best = scratch.take<Candidate>(n);
  int64_t kept = 0;
  for (int64_t i = 0; i < n; ++i)
    if (x[i] > -INFINITY) best[kept++] = {x[i], int32_t(i)};
  if (kept == 0) return 0;
  const int64_t all = kept;
  if (s.top_k > 0) kept = std::min<int64_t>(kept, s.top_k);
  std::partial_sort(best, best + kept, best + all);
  // p without its denominator: the largest is 1, also when its logit is +inf.
  double* p = scratch.take<double>(kept);
  double sum = 0;
  for (int64_t i = 0; i < kept; ++i) {
    p[i] = best[i].logit == best[0].logit ? 1
                                          : std::exp((double(best[i].logit) - best[0].logit) / s.temperature);
    sum += p[i];
  }
  if (s.top_p < 1) {
    const double enough = s.top_p * sum;
    int64_t i = 0;
    for (sum = 0; i < kept && (i == 0 || sum < enough); ++i) sum += p[i];
    kept = i;
  }
  const double u = random_uniform(s.seed, kSampleStream, uint64_t(position)) * sum;
  double reached = p[0];
  int64_t i = 0;
  for (; reached <= u && i + 1 < kept; reached += p[i]) ++i;
  return best[i].id;
}

}  // namespace

void CpuBackend::sample(const Sample& s) {
  check(s);
  require_no_f64("sample", {&s.logits});
  const auto logits = s.logits.matrix<const float>();
  const auto positions = s.positions.vector<const int32_t>();
  const auto tokens = s.tokens.vector<int32_t>();
  const double nanoseconds = (s.temperature == 0 ? 1.0 : 20.0) * double(s.logits.size());
  context_->parallel(logits.rows, nanoseconds, [&](int64_t t) {
    Scratch scratch;
    tokens[t] = draw(s, logits.row(t), logits.cols, positions[t], scratch);
  });
}

}  // namespace cachalot::cpu
