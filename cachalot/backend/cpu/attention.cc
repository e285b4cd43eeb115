// Contract: backend/ops/attention.h. Blocks of kQueries queries against blocks of kKeys keys with running
// maxima and sums (Milakov & Gimelshein, arXiv:1805.02867; Dao et al., arXiv:2205.14135): never S x S. Blocks
// are counted from the sequence's first key, so a query's bits do not depend on the queries beside it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

namespace {

constexpr int64_t kQueries = 128, kKeys = 128;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Sequence {
  int64_t q = 0, queries = 0, k = 0, keys = 0;  // first row and number of rows of queries and of keys
  int64_t visible(int64_t i) const { return keys - queries + i + 1; }  // keys that query i sees
};

Sequence sequence_of(const char* op, const AttentionShape& shape, int64_t s, int64_t q_rows, int64_t k_rows) {
  const auto q = shape.q_starts.vector<const int32_t>(), k = shape.k_starts.vector<const int32_t>();
  const Sequence r{q[s], q[s + 1] - q[s], k[s], k[s + 1] - k[s]};
  CHECK(0 <= r.q && 0 <= r.queries && r.q + r.queries <= q_rows && 0 <= r.k && r.queries <= r.keys &&
            r.k + r.keys <= k_rows,
        std::string(op) + ": sequence " + std::to_string(s) + " has queries from " + std::to_string(r.q) +
            " + " + std::to_string(r.queries) + " of " + std::to_string(q_rows) + ", keys from " +
            std::to_string(r.k) + " + " + std::to_string(r.keys) + " of " + std::to_string(k_rows));
  return r;
}

// Rows of head h as floats, contiguous.
void load_queries(const AttentionShape& a, const Tensor& q, int64_t row, int64_t rows, int64_t h,
                  float* out) {
  const int64_t width = a.nope + a.rope;
  const float scale = float(a.scale);
  for (int64_t i = 0; i < rows; ++i) {
    load_row(q, row + i, h * width, width, out + i * width);
    for (int64_t c = 0; c < width; ++c) out[i * width + c] *= scale;
  }
}
void load_keys(const AttentionShape& a, const Tensor& kv, const Tensor& k_rope, int64_t row, int64_t rows,
               int64_t h, float* out) {
  const int64_t width = a.nope + a.rope;
  for (int64_t j = 0; j < rows; ++j) {
    load_row(kv, row + j, h * (a.nope + a.value), a.nope, out + j * width);
    load_row(k_rope, row + j, 0, a.rope, out + j * width + a.nope);
  }
}
void load_slice(const Tensor& t, int64_t row, int64_t rows, int64_t col, int64_t cols, float* out) {
  for (int64_t i = 0; i < rows; ++i) load_row(t, row + i, col, cols, out + i * cols);
}

void clear_row(const Tensor& t, int64_t r) {
  const int64_t size = size_of(t.dtype);
  std::memset(static_cast<uint8_t*>(t.data) + r * t.ld * size, 0, size_t(t.cols * size));
}

double pairs_of(const AttentionShape& shape) {
  const auto q = shape.q_starts.vector<const int32_t>(), k = shape.k_starts.vector<const int32_t>();
  double pairs = 0;
  for (int64_t s = 0; s < shape.sequences; ++s) {
    const double n = q[s + 1] - q[s], m = k[s + 1] - k[s];
    pairs += n * (m - n / 2);
  }
  return pairs * double(shape.heads);
}

// One block of queries of one head: o and lse.
void forward_block(const Kernels& kernels, const AttentionForward& a, const Sequence& s, int64_t h,
                   int64_t first) {
  const AttentionShape& shape = a.shape;
  const int64_t width = shape.nope + shape.rope, value = shape.value,
                n = std::min(kQueries, s.queries - first);
  const int64_t mr = kernels.mr, nr = kernels.nr, o_ld = round_up(value, nr), s_ld = round_up(kKeys, nr);
  Scratch scratch;
  float* rows = scratch.take<float>(std::max(kQueries, kKeys) * std::max(width, value));
  float* q = scratch.take<float>(round_up(n, mr) * width);
  float* k = scratch.take<float>(s_ld * width);
  float* v = scratch.take<float>(o_ld * kKeys);
  float* p = scratch.take<float>(n * s_ld);
  float* p_panels = scratch.take<float>(round_up(n, mr) * kKeys);
  float* o = scratch.take<float>(n * o_ld);
  float* largest = scratch.take<float>(n);
  float* sum = scratch.take<float>(n);
  std::fill(o, o + n * o_ld, 0.0f);
  std::fill(largest, largest + n, -kInfinity);
  std::fill(sum, sum + n, 0.0f);
  load_queries(shape, a.q, s.q + first, n, h, rows);
  kernels.pack_along(rows, width, n, width, mr, q);
  for (int64_t key = 0; key < s.visible(first + n - 1); key += kKeys) {
    const int64_t keys = std::min(kKeys, s.visible(first + n - 1) - key);
    load_keys(shape, a.kv, a.k_rope, s.k + key, keys, h, rows);
    kernels.pack_along(rows, width, keys, width, nr, k);
    load_slice(a.kv, s.k + key, keys, h * (shape.nope + value) + shape.nope, value, rows);
    kernels.pack_across(rows, value, value, keys, nr, v);
    kernels.multiply(q, k, n, keys, width, p, s_ld, false);
    for (int64_t i = 0; i < n; ++i) {
      float* row = p + i * s_ld;
      const int64_t seen = std::clamp<int64_t>(s.visible(first + i) - key, 0, keys);
      if (seen > 0) {
        const float top = kernels.largest(row, seen, largest[i]);
        const float shrink = std::exp(largest[i] - top);
        sum[i] = sum[i] * shrink + kernels.exp_shifted(row, top, seen, row);
        if (shrink != 1)
          for (int64_t c = 0; c < value; ++c) o[i * o_ld + c] *= shrink;
        largest[i] = top;
      }
      std::fill(row + seen, row + keys, 0.0f);
    }
    kernels.pack_along(p, s_ld, n, keys, mr, p_panels);
    kernels.multiply(p_panels, v, n, value, keys, o, o_ld, true);
  }
  const auto lse = a.lse.matrix<float>();
  for (int64_t i = 0; i < n; ++i) {
    const float inverse = 1 / sum[i];
    for (int64_t c = 0; c < value; ++c) o[i * o_ld + c] *= inverse;
    store_row(a.o, s.q + first + i, h * value, value, o + i * o_ld);
    lse(s.q + first + i, h) = float(largest[i] + std::log(double(sum[i])));
  }
}

// dq, dkv of one head of one sequence; adds the head's share of dk_rope to shared_key [keys, rope].
void backward_head(const Kernels& kernels, const AttentionBackward& a, const Sequence& s, int64_t h,
                   float* shared_key) {
  const AttentionShape& shape = a.shape;
  const int64_t width = shape.nope + shape.rope, value = shape.value, widest = std::max(width, value);
  const int64_t mr = kernels.mr, nr = kernels.nr, key_ld = round_up(width, nr),
                value_ld = round_up(value, nr);
  const int64_t p_ld = round_up(kKeys, nr);
  Scratch scratch;
  float* d_sum = scratch.take<float>(s.queries);        // D_i
  float* dq = scratch.take<float>(s.queries * key_ld);  // sums over keys, without the scale
  float* rows = scratch.take<float>(std::max(kQueries, kKeys) * widest);
  float* k_left = scratch.take<float>(p_ld * width);     // keys as columns: scores
  float* k_right = scratch.take<float>(key_ld * kKeys);  // keys as rows: dq
  float* v_left = scratch.take<float>(p_ld * value);     // values as columns: dp
  float* q_panels = scratch.take<float>(std::max(round_up(kQueries, mr) * width, key_ld * kQueries));
  float* do_panels = scratch.take<float>(std::max(round_up(kQueries, mr) * value, value_ld * kQueries));
  float* p = scratch.take<float>(kQueries * p_ld);
  float* dp = scratch.take<float>(kQueries * p_ld);
  float* panels =
      scratch.take<float>(std::max(round_up(kQueries, mr) * kKeys, round_up(kKeys, mr) * kQueries));
  float* dk = scratch.take<float>(kKeys * key_ld);
  float* dv = scratch.take<float>(kKeys * value_ld);
  const auto lse = a.lse.matrix<const float>();

  for (int64_t i = 0; i < s.queries; ++i) {
    float *o = rows, *d_o = rows + value;
    load_row(a.o, s.q + i, h * value, value, o);
    load_row(a.d_o, s.q + i, h * value, value, d_o);
    d_sum[i] = dot(o, d_o, value);
  }
  std::fill(dq, dq + s.queries * key_ld, 0.0f);

  for (int64_t key = 0; key < s.keys; key += kKeys) {
    const int64_t keys = std::min(kKeys, s.keys - key);
    load_keys(shape, a.kv, a.k_rope, s.k + key, keys, h, rows);
    kernels.pack_along(rows, width, keys, width, nr, k_left);
    kernels.pack_across(rows, width, width, keys, nr, k_right);
    load_slice(a.kv, s.k + key, keys, h * (shape.nope + value) + shape.nope, value, rows);
    kernels.pack_along(rows, value, keys, value, nr, v_left);
    std::fill(dk, dk + keys * key_ld, 0.0f);
    std::fill(dv, dv + keys * value_ld, 0.0f);
    // The first query that sees a key of this block, rounded down to a block of queries.
    const int64_t begin = std::max<int64_t>(0, key - (s.keys - s.queries)) / kQueries * kQueries;
    for (int64_t first = begin; first < s.queries; first += kQueries) {
      const int64_t n = std::min(kQueries, s.queries - first);
      load_queries(shape, a.q, s.q + first, n, h, rows);
      kernels.pack_along(rows, width, n, width, mr, q_panels);
      kernels.multiply(q_panels, k_left, n, keys, width, p, p_ld, false);
      kernels.pack_across(rows, width, width, n, nr, q_panels);  // now as rows: dk
      load_slice(a.d_o, s.q + first, n, h * value, value, rows);
      kernels.pack_along(rows, value, n, value, mr, do_panels);
      kernels.multiply(do_panels, v_left, n, keys, value, dp, p_ld, false);
      kernels.pack_across(rows, value, value, n, nr, do_panels);  // now as rows: dv
      for (int64_t i = 0; i < n; ++i) {
        float *pi = p + i * p_ld, *dpi = dp + i * p_ld;
        const int64_t seen = std::clamp<int64_t>(s.visible(first + i) - key, 0, keys);
        kernels.exp_shifted(pi, lse(s.q + first + i, h), seen, pi);
        const float d = d_sum[first + i];
        for (int64_t j = 0; j < seen; ++j) dpi[j] = pi[j] * (dpi[j] - d);
        std::fill(pi + seen, pi + keys, 0.0f);
        std::fill(dpi + seen, dpi + keys, 0.0f);
      }
      kernels.pack_across(p, p_ld, keys, n, mr, panels);  // p^T
      kernels.multiply(panels, do_panels, keys, value, n, dv, value_ld, true);
      kernels.pack_across(dp, p_ld, keys, n, mr, panels);  // ds^T; q carries the scale
      kernels.multiply(panels, q_panels, keys, width, n, dk, key_ld, true);
      kernels.pack_along(dp, p_ld, n, keys, mr, panels);
      kernels.multiply(panels, k_right, n, width, keys, dq + first * key_ld, key_ld, true);
    }
    for (int64_t j = 0; j < keys; ++j) {
      const int64_t row = s.k + key + j, col = h * (shape.nope + value);
      store_row(a.dkv, row, col, shape.nope, dk + j * key_ld);
      store_row(a.dkv, row, col + shape.nope, value, dv + j * value_ld);
      float* shared = shared_key + (key + j) * shape.rope;
      for (int64_t c = 0; c < shape.rope; ++c) shared[c] += dk[j * key_ld + shape.nope + c];
    }
  }
  const float scale = float(shape.scale);
  for (int64_t i = 0; i < s.queries; ++i) {
    for (int64_t c = 0; c < width; ++c) dq[i * key_ld + c] *= scale;
    store_row(a.dq, s.q + i, h * width, width, dq + i * key_ld);
  }
}

}  // namespace

// A work item: one block of queries of one head.
void CpuBackend::attention_forward(const AttentionForward& a) {
  check(a);
  require_no_f64("attention_forward", {&a.q, &a.o});
  const AttentionShape& shape = a.shape;
  Scratch scratch;
  int64_t* first_block = scratch.take<int64_t>(shape.sequences + 1);  // of each sequence, one head
  first_block[0] = 0;
  for (int64_t s = 0; s < shape.sequences; ++s) {
    const Sequence q = sequence_of("attention_forward", shape, s, a.q.rows, a.kv.rows);
    first_block[s + 1] = first_block[s] + (q.queries + kQueries - 1) / kQueries;
  }
  const double cost = double(shape.nope + shape.rope + shape.value) / 15 + 2;
  context_->parallel(first_block[shape.sequences] * shape.heads, pairs_of(shape) * cost, [&](int64_t item) {
    const int64_t block = item / shape.heads, h = item % shape.heads;
    const int64_t s =
        std::upper_bound(first_block, first_block + shape.sequences + 1, block) - first_block - 1;
    forward_block(context_->kernels, a, sequence_of("attention_forward", shape, s, a.q.rows, a.kv.rows), h,
                  (block - first_block[s]) * kQueries);
  });
}

// A work item: one group of heads of one sequence. dk_rope sums over all heads: each group sums its own in
// order, then groups are added in order. Groups depend on the number of heads only.
void CpuBackend::attention_backward(const AttentionBackward& a) {
  check(a);
  require_no_f64("attention_backward", {&a.q, &a.dq});
  const AttentionShape& shape = a.shape;
  constexpr int64_t kMostGroups = 16;
  const int64_t in_group = (shape.heads + kMostGroups - 1) / kMostGroups;
  const int64_t groups = (shape.heads + in_group - 1) / in_group, size = a.kv.rows * shape.rope;
  Scratch scratch;
  float* sums = scratch.take<float>(groups * size);
  const double cost = double(shape.nope + shape.rope + shape.value) / 6 + 4;
  context_->parallel(groups * shape.sequences, pairs_of(shape) * cost, [&](int64_t item) {
    const int64_t s = item / groups, group = item % groups;
    const Sequence sequence = sequence_of("attention_backward", shape, s, a.q.rows, a.kv.rows);
    float* sum = sums + group * size + sequence.k * shape.rope;
    std::fill(sum, sum + sequence.keys * shape.rope, 0.0f);
    for (int64_t h = group * in_group; h < std::min(shape.heads, (group + 1) * in_group); ++h)
      backward_head(context_->kernels, a, sequence, h, sum);
  });
  // Rows of no sequence have no gradient.
  const auto q_starts = shape.q_starts.vector<const int32_t>(),
             k_starts = shape.k_starts.vector<const int32_t>();
  for (const Tensor* t : {&a.dq, &a.dkv, &a.dk_rope}) {
    const auto& starts = t == &a.dq ? q_starts : k_starts;
    for (int64_t r = 0; r < starts[0]; ++r) clear_row(*t, r);
    for (int64_t r = starts[shape.sequences]; r < t->rows; ++r) clear_row(*t, r);
  }
  for (int64_t s = 0; s < shape.sequences; ++s) {
    const Sequence sequence = sequence_of("attention_backward", shape, s, a.q.rows, a.kv.rows);
    const double nanoseconds = double(groups * sequence.keys * shape.rope);
    context_->parallel_ranges(sequence.keys, 64, nanoseconds, [&](int64_t begin, int64_t end) {
      for (int64_t row = sequence.k + begin; row < sequence.k + end; ++row) {
        float* total = sums + row * shape.rope;
        for (int64_t group = 1; group < groups; ++group)
          for (int64_t c = 0; c < shape.rope; ++c) total[c] += total[group * size + c];
        store_row(a.dk_rope, row, 0, shape.rope, total);
      }
    });
  }
}

}  // namespace cachalot::cpu
