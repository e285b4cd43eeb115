// Contract: backend/ops/sample.h. Double throughout: a token is a discrete thing, and one that differs from
// ref's by rounding would be a different text. A row is one thread's; candidates leave a heap one by one, so
// that the usual draw among the few likely tokens does not sort the vocabulary.
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
  bool operator<(const Candidate& o) const { return logit != o.logit ? logit < o.logit : id > o.id; }
};

int32_t largest_of(const float* x, int64_t n) {
  int64_t best = -1;
  for (int64_t i = 0; i < n; ++i)
    if (x[i] > -INFINITY && (best < 0 || x[i] > x[best])) best = i;  // false for NaN
  return int32_t(std::max<int64_t>(best, 0));
}

int32_t draw(const Sample& s, const float* x, int64_t n, int64_t position, Scratch& scratch) {
  if (s.temperature == 0) return largest_of(x, n);
  Candidate* heap = scratch.take<Candidate>(n);
  int64_t size = 0;
  for (int64_t i = 0; i < n; ++i)
    if (x[i] > -INFINITY) heap[size++] = {x[i], int32_t(i)};
  if (size == 0) return 0;
  std::make_heap(heap, heap + size);
  const float top = heap[0].logit;  // its weight is 1, also when it is +inf
  const auto weight = [&](const Candidate& c) {
    return c.logit == top ? 1 : std::exp((double(c.logit) - top) / s.temperature);
  };
  // Candidates that are sorted lie at the end of the array, the best last.
  int64_t sorted = 0, kept = size;
  const auto next = [&]() -> const Candidate& {
    std::pop_heap(heap, heap + size - sorted);
    return heap[size - ++sorted];
  };
  double sum = 0;
  if (s.top_k > 0 && s.top_k < size) {
    kept = s.top_k;
    while (sorted < kept) sum += weight(next());
  } else {
    for (int64_t i = 0; i < size; ++i) sum += weight(heap[i]);
  }
  if (s.top_p < 1) {
    const double enough = s.top_p * sum;
    int64_t n = 0;
    for (sum = 0; n < kept && (n == 0 || sum < enough); ++n)
      sum += weight(n < sorted ? heap[size - 1 - n] : next());
    kept = n;
  }
  const double u = random_uniform(s.seed, kSampleStream, uint64_t(position)) * sum;
  double reached = 0;
  int32_t last = 0;
  for (int64_t n = 0; n < kept; ++n) {
    const Candidate& c = n < sorted ? heap[size - 1 - n] : next();
    last = c.id;
    reached += weight(c);
    if (u < reached) break;
  }
  return last;
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
