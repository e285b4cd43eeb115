#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "backend/ops/check.h"
#include "backend/ops/latent_row.h"
#include "backend/ref/number.h"
#include "backend/ref/quantize.h"
#include "backend/ref/ref_backend.h"

namespace cachalot {

namespace {

// Numbers of a cache of either format.
class Cache {
 public:
  Cache(const Tensor& cache, int64_t latent, int64_t rope)
      : cache_(cache), numbers_(cache), latent_(latent), rope_(rope) {}
  double operator()(int64_t slot, int64_t c) const {
    if (cache_.dtype != DType::e4m3) return numbers_(slot, c);
    CHECK(0 <= slot && slot < cache_.rows && 0 <= c && c < latent_ + rope_);
    return latent_row(cache_, slot, latent_, rope_)(c);
  }

 private:
  Tensor cache_;
  Reader numbers_;
  int64_t latent_, rope_;
};

}  // namespace

// Every sequence is walked from its first token on.
void RefBackend::latent_plan(const LatentPlan& p) { check(p); }

void RefBackend::latent_append(const LatentAppend& a) {
  check(a);
  const Reader x(a.x), gain(a.gain), cos(a.cos), sin(a.sin);
  const Indices positions(a.positions, a.cos.rows), slots(a.slots, a.cache.rows, kAnyNegative);
  const DType act = a.x.dtype;
  for (int64_t t = 0; t < a.x.rows; ++t) {
    std::vector<double> row;
    double squares = 0;
    for (int64_t c = 0; c < a.latent; ++c) squares += x(t, c) * x(t, c);
    const double r = 1 / std::sqrt(squares / double(a.latent) + a.eps);
    for (int64_t c = 0; c < a.latent; ++c) row.push_back(round_to(act, gain[c] * x(t, c) * r));
    const int64_t position = a.rope > 0 ? positions[t] : 0;
    const auto turned = [&](double even, double odd, int64_t pair) {
      const double c = cos(position, pair), s = sin(position, pair);
      return std::pair(even * c - odd * s, even * s + odd * c);
    };
    for (int64_t p = 0; p < a.rope; p += 2) {
      const auto [even, odd] = turned(x(t, a.latent + p), x(t, a.latent + p + 1), p / 2);
      row.push_back(round_to(act, even)), row.push_back(round_to(act, odd));
    }
    for (int64_t h = 0; a.q && h < a.heads; ++h) {
      const Writer q(a.q);
      for (int64_t p = 0; p < a.rope; p += 2) {
        const int64_t c = h * a.q_stride + a.q_offset + p;
        const auto [even, odd] = turned(q(t, c), q(t, c + 1), p / 2);
        q.set(t, c, even), q.set(t, c + 1, odd);
      }
    }
    const int64_t slot = slots[t];
    if (slot < 0) continue;
    if (a.cache.dtype != DType::e4m3) {
      const Writer cache(a.cache);
      for (size_t c = 0; c < row.size(); ++c) cache.set(slot, int64_t(c), row[c]);
      continue;
    }
    const LatentRow to = latent_row(a.cache, slot, a.latent, a.rope);
    for (int64_t tile = 0; tile < to.tiles(); ++tile) {
      const int64_t first = tile * kScaleBlock, end = std::min(a.latent, first + kScaleBlock);
      const std::vector<float> numbers(row.begin() + first, row.begin() + end);
      const float scale =
          std::min(scale_of_tile(numbers, e4m3::kMax, /*power_of_two=*/true), kMostLatentScale);
      to.set_scale(tile, scale);
      for (int64_t c = first; c < end; ++c) {
        const float number = numbers[size_t(c - first)];
        to.codes()[c] =
            code_of(std::isnan(number) ? number : std::clamp(number, -scale * e4m3::kMax, scale * e4m3::kMax),
                    scale)
                .bits;
      }
    }
    for (int64_t p = 0; p < a.rope; ++p) to.set_key(p, round_bf16(row[size_t(a.latent + p)]));
  }
}

void RefBackend::latent_gather(const LatentGather& g) {
  check(g);
  const Indices rows(g.rows, g.cache.rows, kAnyNegative);
  const Cache cache(g.cache, g.latent, g.rope);
  const Writer y(g.y);
  for (int64_t t = 0; t < g.y.rows; ++t)
    for (int64_t c = 0; c < g.y.cols; ++c) y.set(t, c, rows[t] < 0 ? 0 : cache(rows[t], c));
}

void RefBackend::latent_attention(const LatentAttention& a) {
  check(a);
  const Reader q_latent(a.q_latent), q_rope(a.q_rope);
  const Cache cache(a.cache, a.latent, a.rope);
  const Writer o(a.o_latent);
  const Starts starts(a.q_starts, a.q_latent.rows);
  const Indices lens(a.kv_lens, a.page_table.cols * a.page_size + 1), pages(a.page_table, a.cache.rows);
  for (int64_t s = 0; s < a.sequences; ++s) {
    const int64_t queries = starts[s + 1] - starts[s], keys = lens[s];
    CHECK(keys >= queries, "a query whose own token is not in the cache");
    const auto row_of = [&](int64_t token) {
      return pages(s, token / a.page_size) * a.page_size + token % a.page_size;
    };
    for (int64_t n = 0; n < queries; ++n)
      for (int64_t h = 0; h < a.heads; ++h) {
        const int64_t i = starts[s] + n;
        std::vector<double> p(size_t(keys - queries + n + 1));
        for (size_t j = 0; j < p.size(); ++j) {
          double sum = 0;
          for (int64_t d = 0; d < a.latent; ++d)
            sum += q_latent(i, h * a.latent + d) * cache(row_of(int64_t(j)), d);
          for (int64_t d = 0; d < a.rope; ++d)
            sum += q_rope(i, h * a.q_rope_stride + d) * cache(row_of(int64_t(j)), a.latent + d);
          p[j] = a.scale * sum;
        }
        const double top = *std::max_element(p.begin(), p.end());
        double total = 0;
        for (double& x : p) total += x = std::exp(x - top);
        for (int64_t d = 0; d < a.latent; ++d) {
          double sum = 0;
          for (size_t j = 0; j < p.size(); ++j) sum += p[j] / total * cache(row_of(int64_t(j)), d);
          o.set(i, h * a.latent + d, sum);
        }
      }
  }
}

}  // namespace cachalot
