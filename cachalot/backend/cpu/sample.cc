// Contract: backend/ops/sample.h. Double throughout: a token is a discrete thing, and one that differs from
// ref's by rounding would be a different text. A row is one thread's.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <numeric>

#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/ops/check.h"
#include "base/rng.h"

namespace cachalot::cpu {

namespace {

constexpr int64_t kWorthDigits = 2048;  // candidates: below, comparing is faster

struct Candidate {
  float logit;
  int32_t id;
  // Likelier first, ties to the lower id.
  bool operator<(const Candidate& o) const { return logit != o.logit ? logit > o.logit : id < o.id; }
};

int32_t largest_of(const Vectors& vectors, const float* x, int64_t n) {
  const float largest = vectors.largest(x, n, -INFINITY);
  return largest > -INFINITY ? int32_t(std::find(x, x + n, largest) - x) : 0;
}

// Likelier first, ties to the lower id: by the bits of the logit, eleven at a time, lowest first.
void sort_by_digits(Candidate* x, int64_t n, Candidate* other) {
  constexpr int kDigits = 3, kBits = 11;
  constexpr uint32_t kMask = (1u << kBits) - 1;
  const auto key = [](const Candidate& c) {
    const uint32_t u = std::bit_cast<uint32_t>(c.logit + 0.0f);  // -0 is 0
    return u >> 31 ? u : ~u & 0x7FFFFFFFu;                       // ascending keys: descending numbers
  };
  std::array<std::array<int64_t, kMask + 1>, kDigits> next{};
  for (int64_t i = 0; i < n; ++i)
    for (int d = 0; d < kDigits; ++d) ++next[size_t(d)][key(x[i]) >> (kBits * d) & kMask];
  for (auto& count : next) std::exclusive_scan(count.begin(), count.end(), count.begin(), int64_t(0));
  for (int d = 0; d < kDigits; ++d) {
    for (int64_t i = 0; i < n; ++i) other[next[size_t(d)][key(x[i]) >> (kBits * d) & kMask]++] = x[i];
    std::swap(x, other);
  }
  std::copy(x, x + n, other);  // an odd number of passes
}

// A probability below 2^-54 of the largest does not change a sum that the largest is in: who is so far behind
// need not be sorted.
double least_that_counts(float largest, double temperature) { return double(largest) - 38 * temperature; }

int32_t draw(const Sample& s, const Vectors& vectors, const float* x, int64_t n, int64_t position,
             Scratch& scratch) {
  if (s.temperature == 0) return largest_of(vectors, x, n);
  const float largest = vectors.largest(x, n, -INFINITY);
  const double least = least_that_counts(largest, s.temperature);
  Candidate* best = scratch.take<Candidate>(n);
  int64_t kept = 0;
  for (int64_t i = 0; i < n; ++i) {
    best[kept] = {x[i], int32_t(i)};
    kept += x[i] > -INFINITY && (x[i] >= least || x[i] == largest);
  }
  if (kept == 0) return 0;
  const int64_t all = kept;
  if (s.top_k > 0) kept = std::min<int64_t>(kept, s.top_k);
  if (kept == all && all > kWorthDigits) sort_by_digits(best, all, scratch.take<Candidate>(all));
  else std::partial_sort(best, best + kept, best + all);
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
  const double nanoseconds = (s.temperature == 0 ? 0.1 : 10.0) * double(s.logits.size());
  context_->parallel(logits.rows, nanoseconds, [&](int64_t t) {
    Scratch scratch;
    tokens[t] = draw(s, context_->vectors, logits.row(t), logits.cols, positions[t], scratch);
  });
}

}  // namespace cachalot::cpu
