// Contract: backend/ops/latent_attention.h. A work item is a group of heads of one query row: all heads of a
// group share the tokens, so that scores and sums are matrix products. Tokens come in blocks of kTokens with
// running maxima and sums, as in attention.cc; nothing depends on the rows beside.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

namespace {

constexpr int64_t kTokens = 64, kHeads = 32;

// One query row, heads [head, head + n), tokens [0, seen) of the sequence with these pages.
void attend(const Kernels& kernels, const LatentAttention& a, int64_t row, int64_t head, int64_t n,
            const int32_t* pages, int64_t seen) {
  const int64_t width = a.latent + a.rope;
  const int64_t mr = kernels.mr, nr = kernels.nr, o_ld = round_up(a.latent, nr), p_ld = round_up(kTokens, nr);
  Scratch scratch;
  float* q_rows = scratch.take<float>(n * width);
  float* q = scratch.take<float>(round_up(n, mr) * width);
  float* tokens = scratch.take<float>(kTokens * width);
  float* keys = scratch.take<float>(p_ld * width);
  float* values = scratch.take<float>(o_ld * kTokens);
  float* p = scratch.take<float>(n * p_ld);
  float* p_panels = scratch.take<float>(round_up(n, mr) * kTokens);
  float* o = scratch.take<float>(n * o_ld);
  float* largest = scratch.take<float>(n);
  float* sum = scratch.take<float>(n);
  std::fill(o, o + n * o_ld, 0.0f);
  std::fill(largest, largest + n, -std::numeric_limits<float>::infinity());
  std::fill(sum, sum + n, 0.0f);
  for (int64_t h = 0; h < n; ++h) {
    float* out = q_rows + h * width;
    load_row(a.q_latent, row, (head + h) * a.latent, a.latent, out);
    load_row(a.q_rope, row, (head + h) * a.q_rope_stride, a.rope, out + a.latent);
    for (int64_t c = 0; c < width; ++c) out[c] *= float(a.scale);
  }
  kernels.pack_along(q_rows, width, n, width, mr, q);
  for (int64_t first = 0; first < seen; first += kTokens) {
    const int64_t count = std::min(kTokens, seen - first);
    for (int64_t j = 0; j < count; ++j) {
      const int64_t token = first + j, slot = pages[token / a.page_size] * a.page_size + token % a.page_size;
      CHECK(0 <= slot && slot < a.cache.rows,
            "latent_attention: cache row " + std::to_string(slot) + " of " + std::to_string(a.cache.rows));
      load_row(a.cache, slot, 0, width, tokens + j * width);
    }
    kernels.pack_along(tokens, width, count, width, nr, keys);
    kernels.pack_across(tokens, width, a.latent, count, nr, values);
    kernels.multiply(q, keys, n, count, width, p, p_ld, false);
    for (int64_t h = 0; h < n; ++h) {
      float* scores = p + h * p_ld;
      const float top = kernels.largest(scores, count, largest[h]);
      const float shrink = std::exp(largest[h] - top);
      sum[h] = sum[h] * shrink + kernels.exp_shifted(scores, top, count, scores);
      if (shrink != 1)
        for (int64_t c = 0; c < a.latent; ++c) o[h * o_ld + c] *= shrink;
      largest[h] = top;
    }
    kernels.pack_along(p, p_ld, n, count, mr, p_panels);
    kernels.multiply(p_panels, values, n, a.latent, count, o, o_ld, true);
  }
  for (int64_t h = 0; h < n; ++h) {
    for (int64_t c = 0; c < a.latent; ++c) o[h * o_ld + c] /= sum[h];
    store_row(a.o_latent, row, (head + h) * a.latent, a.latent, o + h * o_ld);
  }
}

}  // namespace

void CpuBackend::latent_attention(const LatentAttention& a) {
  check(a);
  require_no_f64("latent_attention", {&a.q_latent, &a.o_latent});
  const auto starts = a.q_starts.vector<const int32_t>(), lens = a.kv_lens.vector<const int32_t>();
  const auto pages = a.page_table.matrix<const int32_t>();
  double pairs = 0;
  for (int64_t s = 0; s < a.sequences; ++s) {
    const int64_t n = starts[s + 1] - starts[s];
    CHECK(0 <= starts[s] && 0 <= n && starts[s + 1] <= a.q_latent.rows && n <= lens[s] &&
              lens[s] <= pages.cols * a.page_size,
          "latent_attention: sequence " + std::to_string(s) + " has " + std::to_string(n) + " queries, " +
              std::to_string(lens[s]) + " tokens");
    pairs += double(n) * lens[s];
  }
  const int64_t first = a.sequences > 0 ? starts[0] : 0,
                rows = a.sequences > 0 ? starts[a.sequences] - first : 0;
  const int64_t groups = (a.heads + kHeads - 1) / kHeads;
  const double cost = double(a.heads) * double(2 * a.latent + a.rope) / 15 + double(a.latent);
  context_->parallel(rows * groups, pairs * cost, [&](int64_t item) {
    const int64_t row = first + item / groups, head = item % groups * kHeads;
    const int64_t s =
        std::upper_bound(starts.data, starts.data + a.sequences + 1, int32_t(row)) - starts.data - 1;
    attend(context_->kernels, a, row, head, std::min(kHeads, a.heads - head), pages.row(s),
           lens[s] - starts[s + 1] + row + 1);
  });
}

}  // namespace cachalot::cpu
