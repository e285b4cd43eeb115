// Contract: backend/ops/attention.h. Blocks of queries against blocks of kKeys keys with running maxima and
// sums (Milakov & Gimelshein, arXiv:1805.02867; Dao et al., arXiv:2205.14135): never S x S. Blocks of keys
// are counted from the sequence's first one, and a query's sums run over keys in order, so its bits do not
// depend on the queries beside it, nor on how queries are cut into blocks.
//
// The forward computes scores with a query in each lane of a vector: maxima, exponentials and sums are
// vertical, and the probabilities [keys, queries] are an operand of the second product as they lie. The
// backward, which knows the sums, has a key in each lane. No operand but the keys and values of a block is
// packed. In bf16, where an instruction multiplies pairs, the operands are words of two (vector.h).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/rows_as_stored.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

namespace {

constexpr int64_t kQueries = 128, kKeys = 128;  // of the backward; the forward cuts queries by kMostQueries
constexpr int64_t kMostQueries = 512;
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

// Columns [col, col + cols) of rows as floats, ld apart.
void load_block(const Vectors& vectors, const Tensor& t, int64_t row, int64_t rows, int64_t col, int64_t cols,
                float* out, int64_t ld) {
  const RowVectors& stored = rows_in(vectors, t.dtype);
  constexpr int64_t kAhead = 6, kLine = 64;  // rows lie pages apart: nobody else fetches them ahead
  const int64_t bytes = cols * size_of(t.dtype);
  for (int64_t i = 0; i < rows; ++i) {
    if (i + kAhead < rows) {
      const char* next = static_cast<const char*>(place(t, row + i + kAhead, col));
      for (int64_t b = 0; b < bytes; b += kLine) __builtin_prefetch(next + b);
    }
    stored.to_floats(place(t, row + i, col), 1, cols, out + i * ld);
  }
}
void load_keys(const Vectors& vectors, const AttentionShape& a, const Tensor& kv, const Tensor& k_rope,
               int64_t row, int64_t rows, int64_t h, float* out, int64_t ld) {
  load_block(vectors, kv, row, rows, h * (a.nope + a.value), a.nope, out, ld);
  load_block(vectors, k_rope, row, rows, 0, a.rope, out + a.nope, ld);
}

// The same rows as bf16, ld numbers apart.
void load_halves(const Tensor& t, int64_t row, int64_t rows, int64_t col, int64_t cols, uint16_t* out,
                 int64_t ld) {
  for (int64_t i = 0; i < rows; ++i) std::memcpy(out + i * ld, place(t, row + i, col), size_t(2 * cols));
}
void load_key_halves(const AttentionShape& a, const Tensor& kv, const Tensor& k_rope, int64_t row,
                     int64_t rows, int64_t h, uint16_t* out, int64_t ld) {
  load_halves(kv, row, rows, h * (a.nope + a.value), a.nope, out, ld);
  load_halves(k_rope, row, rows, 0, a.rope, out + a.nope, ld);
}
// Pairs along rows: out [ceil(rows / 2), ld] from halves [rows, from_ld].
void pair(const Vectors& vectors, const uint16_t* halves, int64_t from_ld, int64_t rows, int64_t cols,
          float* out, int64_t ld) {
  for (int64_t i = 0; i < rows; i += 2)
    vectors.pair_rows(halves + i * from_ld, i + 1 < rows ? halves + (i + 1) * from_ld : nullptr, cols,
                      out + i / 2 * ld);
}
// Words that lie along rows of halves.
const float* words(const uint16_t* halves) { return reinterpret_cast<const float*>(halves); }

// bf16 is multiplied in pairs where an instruction does so; pairs need even widths.
bool in_pairs(const Vectors& vectors, const AttentionShape& a, DType act) {
  return vectors.product_pairs && act == DType::bf16 && (a.nope + a.rope) % 2 == 0 && a.value % 2 == 0;
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

// Queries [first, first + n) of one head: o and lse.
void forward_block(const Context& context, const AttentionForward& a, const Sequence& s, int64_t h,
                   int64_t first, int64_t n) {
  const Vectors& vectors = context.vectors;
  const AttentionShape& shape = a.shape;
  const int64_t width = shape.nope + shape.rope, value = shape.value, lanes = vectors.lanes;
  const int64_t panel = 2 * lanes, padded = round_up(n, panel), o_ld = spread_ld(value);
  const RowVectors& stored = rows_in(vectors, a.q.dtype);
  const bool pairs = in_pairs(vectors, shape, a.q.dtype);
  const int64_t step = pairs ? 2 : 1, depth = width / step;  // numbers in a word, words in a query
  const auto product = pairs ? vectors.product_pairs : vectors.product;
  const auto soften = pairs ? vectors.soften_pairs : vectors.soften;
  Scratch scratch;
  uint16_t* halves = scratch.take<uint16_t>(std::max(padded, kKeys) * std::max(width, value));
  float* rows = scratch.take<float>(std::max(padded, kKeys) * width);
  float* q = scratch.take<float>(padded * width);  // panels [width][panel]
  float* v = scratch.take<float>(kKeys * o_ld);
  float* p = scratch.take<float>(kKeys * panel);
  float* o = scratch.take<float>(padded * o_ld);
  float* top = scratch.take<float>(padded);
  float* sum = scratch.take<float>(padded);
  float* shrink = scratch.take<float>(panel);
  int32_t* visible = scratch.take<int32_t>(panel);
  std::fill(v, v + kKeys * o_ld, 0.0f);
  std::fill(o, o + padded * o_ld, 0.0f);
  std::fill(top, top + padded, -kInfinity);
  std::fill(sum, sum + padded, 0.0f);
  if (pairs) load_halves(a.q, s.q + first, n, h * width, width, halves, width);
  else load_block(vectors, a.q, s.q + first, n, h * width, width, rows, width);
  context.kernels.pack_along(pairs ? words(halves) : rows, depth, n, depth, panel, q);
  for (int64_t key = 0; key < s.visible(first + n - 1); key += kKeys) {
    const int64_t loaded = std::min(kKeys, s.visible(first + n - 1) - key);
    if (pairs) {
      load_halves(a.kv, s.k + key, loaded, h * (shape.nope + value) + shape.nope, value, halves, value);
      pair(vectors, halves, value, loaded, value, v, o_ld);
      load_key_halves(shape, a.kv, a.k_rope, s.k + key, loaded, h, halves, width);
    } else {
      load_block(vectors, a.kv, s.k + key, loaded, h * (shape.nope + value) + shape.nope, value, v, o_ld);
      load_keys(vectors, shape, a.kv, a.k_rope, s.k + key, loaded, h, rows, width);
    }
    for (int64_t i = 0; i < n; i += panel) {
      const int64_t m = std::min(panel, n - i), across = round_up(m, lanes);
      const int64_t keys = std::min(loaded, s.visible(first + i + m - 1) - key);
      if (keys <= 0) continue;  // a query of an earlier block
      const bool all_see = s.visible(first + i) - key >= keys;
      for (int64_t lane = 0; lane < across; ++lane)
        visible[lane] =
            int32_t(std::clamp<int64_t>(s.visible(first + i + std::min(lane, m - 1)) - key, 0, keys));
      product({.left = pairs ? words(halves) : rows,
               .row = depth,
               .step = 1,
               .right = q + i * depth,
               .ldr = panel,
               .m = keys,
               .n = across,
               .k = depth,
               .c = p,
               .ldc = panel,
               .add = false});
      soften(p, panel, keys, across, float(shape.scale), all_see ? nullptr : visible, top + i, sum + i,
             shrink);
      for (int64_t j = 0; j < m; ++j)
        if (shrink[j] != 1) vectors.scale(o + (i + j) * o_ld, shrink[j], value);
      product({.left = p,
               .row = 1,
               .step = panel,
               .right = v,
               .ldr = o_ld,
               .m = m,
               .n = value,
               .k = (keys + step - 1) / step,
               .c = o + i * o_ld,
               .ldc = o_ld,
               .add = true});
    }
  }
  const auto lse = a.lse.matrix<float>();
  for (int64_t i = 0; i < n; ++i) {
    stored.from_floats(o + i * o_ld, 1 / sum[i], value, place(a.o, s.q + first + i, h * value));
    lse(s.q + first + i, h) = float(top[i] + std::log(double(sum[i])));
  }
}

// dq, dkv of one head of one sequence; adds the head's share of dk_rope to shared_key [keys, rope].
void backward_head(const Context& context, const AttentionBackward& a, const Sequence& s, int64_t h,
                   float* shared_key) {
  const Vectors& vectors = context.vectors;
  const AttentionShape& shape = a.shape;
  const int64_t width = shape.nope + shape.rope, value = shape.value;
  constexpr int64_t kKeysLd = kKeys + 16;  // as spread_ld()
  const int64_t q_ld = spread_ld(width), v_ld = spread_ld(value);
  const RowVectors& stored = rows_in(vectors, a.q.dtype);
  const float scale = float(shape.scale);
  const bool pairs = in_pairs(vectors, shape, a.q.dtype);
  const int64_t step = pairs ? 2 : 1;  // numbers in a word
  const auto product = pairs ? vectors.product_pairs : vectors.product;
  Scratch scratch;
  float* d_sum = scratch.take<float>(s.queries);  // D_i
  float* lse = scratch.take<float>(s.queries);
  // Of the whole head: rows of floats, or halves as they lie and words along queries.
  const int64_t in_words = (s.queries + step - 1) / step;
  uint16_t* q_halves = scratch.take<uint16_t>(pairs ? s.queries * width : 0);
  uint16_t* d_o_halves = scratch.take<uint16_t>(pairs ? s.queries * value : 0);
  float* q = scratch.take<float>(in_words * q_ld);
  float* d_o = scratch.take<float>(in_words * v_ld);
  float* dq = scratch.take<float>(s.queries * q_ld);  // sums over keys, without the scale
  // Of a block of keys: rows (of words along keys), and columns.
  uint16_t* halves = scratch.take<uint16_t>(kKeys * std::max(width, value));
  float* k = scratch.take<float>(kKeys * q_ld);
  float* v = scratch.take<float>(kKeys * v_ld);
  float* k_across = scratch.take<float>(width * kKeysLd);
  float* v_across = scratch.take<float>(value * kKeysLd);
  float* p = scratch.take<float>(kQueries * kKeysLd);
  float* ds = scratch.take<float>(kQueries * kKeysLd);
  uint16_t* ds_halves = scratch.take<uint16_t>(kQueries * kKeysLd);
  float* dk = scratch.take<float>(kKeys * q_ld);
  float* dv = scratch.take<float>(kKeys * v_ld);

  std::fill(q, q + in_words * q_ld, 0.0f);
  std::fill(d_o, d_o + in_words * v_ld, 0.0f);
  std::fill(dq, dq + s.queries * q_ld, 0.0f);
  std::fill(k, k + kKeys * q_ld, 0.0f);
  if (pairs) {
    load_halves(a.q, s.q, s.queries, h * width, width, q_halves, width);
    load_halves(a.d_o, s.q, s.queries, h * value, value, d_o_halves, value);
    pair(vectors, q_halves, width, s.queries, width, q, q_ld);
    pair(vectors, d_o_halves, value, s.queries, value, d_o, v_ld);
  } else {
    load_block(vectors, a.q, s.q, s.queries, h * width, width, q, q_ld);
    load_block(vectors, a.d_o, s.q, s.queries, h * value, value, d_o, v_ld);
  }
  // What lies along a query: words of halves, or the rows of floats themselves.
  const float *q_along = pairs ? words(q_halves) : q, *d_o_along = pairs ? words(d_o_halves) : d_o;
  const int64_t q_row = pairs ? width / 2 : q_ld, d_o_row = pairs ? value / 2 : v_ld;
  for (int64_t i = 0; i < s.queries; ++i) {
    lse[i] = a.lse.matrix<const float>()(s.q + i, h);
    d_sum[i] = stored.dot(place(a.o, s.q + i, h * value), place(a.d_o, s.q + i, h * value), value);
  }

  for (int64_t key = 0; key < s.keys; key += kKeys) {
    const int64_t keys = std::min(kKeys, s.keys - key), value_col = h * (shape.nope + value) + shape.nope;
    if (pairs) {
      load_halves(a.kv, s.k + key, keys, value_col, value, halves, value);
      context.kernels.pack_along(words(halves), value / 2, keys, value / 2, kKeysLd, v_across);
      load_key_halves(shape, a.kv, a.k_rope, s.k + key, keys, h, halves, width);
      context.kernels.pack_along(words(halves), width / 2, keys, width / 2, kKeysLd, k_across);
      pair(vectors, halves, width, keys, width, k, q_ld);
    } else {
      load_block(vectors, a.kv, s.k + key, keys, value_col, value, v, v_ld);
      context.kernels.pack_along(v, v_ld, keys, value, kKeysLd, v_across);
      load_keys(vectors, shape, a.kv, a.k_rope, s.k + key, keys, h, k, q_ld);
      context.kernels.pack_along(k, q_ld, keys, width, kKeysLd, k_across);
    }
    std::fill(dk, dk + keys * q_ld, 0.0f);
    std::fill(dv, dv + keys * v_ld, 0.0f);
    // From the first query that sees a key of this block (in words: the first of its word). Where not all
    // keys are seen, few queries at a time: what none of them sees is left out.
    const int64_t begin = std::max<int64_t>(0, key - (s.keys - s.queries)) / step * step;
    for (int64_t first = begin, n; first < s.queries; first += n) {
      n = std::min(s.visible(first) - key >= keys ? kQueries : kQueries / 4, s.queries - first);
      const int64_t seen = std::min(keys, s.visible(first + n - 1) - key);
      const float *q_rows = q + first / step * q_ld, *d_o_rows = d_o + first / step * v_ld;
      product({.left = q_along + first * q_row,
               .row = q_row,
               .step = 1,
               .right = k_across,
               .ldr = kKeysLd,
               .m = n,
               .n = seen,
               .k = width / step,
               .c = p,
               .ldc = kKeysLd,
               .add = false});
      product({.left = d_o_along + first * d_o_row,
               .row = d_o_row,
               .step = 1,
               .right = v_across,
               .ldr = kKeysLd,
               .m = n,
               .n = seen,
               .k = value / step,
               .c = ds,
               .ldc = kKeysLd,
               .add = false});
      if (pairs)
        vectors.soften_backward_pairs(p, ds, kKeysLd, n, s.visible(first) - key, seen, scale, lse + first,
                                      d_sum + first, ds_halves, kKeysLd);
      else
        vectors.soften_backward(p, ds, kKeysLd, n, s.visible(first) - key, seen, scale, lse + first,
                                d_sum + first);
      // out [seen, cols] += left^T right, summed over the queries.
      const auto add_over_queries = [&](const float* left, const float* right, int64_t cols, int64_t ld,
                                        float* out) {
        product({.left = left,
                 .row = 1,
                 .step = kKeysLd,
                 .right = right,
                 .ldr = ld,
                 .m = seen,
                 .n = cols,
                 .k = (n + step - 1) / step,
                 .c = out,
                 .ldc = ld,
                 .add = true});
      };
      add_over_queries(p, d_o_rows, value, v_ld, dv);
      add_over_queries(ds, q_rows, width, q_ld, dk);
      product({.left = pairs ? words(ds_halves) : ds,
               .row = kKeysLd / step,
               .step = 1,
               .right = k,
               .ldr = q_ld,
               .m = n,
               .n = width,
               .k = (seen + step - 1) / step,
               .c = dq + first * q_ld,
               .ldc = q_ld,
               .add = true});
    }
    for (int64_t j = 0; j < keys; ++j) {
      const int64_t row = s.k + key + j, col = h * (shape.nope + value);
      stored.from_floats(dk + j * q_ld, scale, shape.nope, place(a.dkv, row, col));
      stored.from_floats(dv + j * v_ld, 1, value, place(a.dkv, row, col + shape.nope));
      float* shared = shared_key + (key + j) * shape.rope;
      for (int64_t c = 0; c < shape.rope; ++c) shared[c] += scale * dk[j * q_ld + shape.nope + c];
    }
  }
  for (int64_t i = 0; i < s.queries; ++i)
    stored.from_floats(dq + i * q_ld, scale, width, place(a.dq, s.q + i, h * width));
}

}  // namespace

// A work item: one block of queries of one head. Large blocks load and convert keys and values less often;
// small ones are for many threads. The longest work, at the end of sequences, comes first.
void CpuBackend::attention_forward(const AttentionForward& a) {
  check(a);
  require_no_f64("attention_forward", {&a.q, &a.o});
  CHECK(a.shape.scale >= 0, "attention_forward: scale");  // a maximum is taken before it
  const AttentionShape& shape = a.shape;
  Scratch scratch;
  int64_t* first_block = scratch.take<int64_t>(shape.sequences + 1);  // of each sequence, one head
  first_block[0] = 0;
  int64_t size = kMostQueries;
  const auto count_blocks = [&] {
    for (int64_t s = 0; s < shape.sequences; ++s) {
      const Sequence q = sequence_of("attention_forward", shape, s, a.q.rows, a.kv.rows);
      first_block[s + 1] = first_block[s] + (q.queries + size - 1) / size;
    }
    return first_block[shape.sequences] * shape.heads;
  };
  while (count_blocks() < 8 * context_->pool.threads() && size > 2 * context_->vectors.lanes) size /= 2;
  const double cost = double(shape.nope + shape.rope + shape.value) / 45 + 0.7;
  const int64_t items = first_block[shape.sequences] * shape.heads;
  context_->parallel(items, pairs_of(shape) * cost, [&](int64_t item) {
    const int64_t block = (items - 1 - item) / shape.heads, h = item % shape.heads;
    const int64_t s =
        std::upper_bound(first_block, first_block + shape.sequences + 1, block) - first_block - 1;
    const Sequence sequence = sequence_of("attention_forward", shape, s, a.q.rows, a.kv.rows);
    const int64_t first = (block - first_block[s]) * size;
    forward_block(*context_, a, sequence, h, first, std::min(size, sequence.queries - first));
  });
}

// A work item: one group of heads of one sequence. dk_rope sums over all heads: each group sums its own in
// order, then groups are added in order. Groups depend on the number of heads only.
void CpuBackend::attention_backward(const AttentionBackward& a) {
  check(a);
  require_no_f64("attention_backward", {&a.q, &a.dq});
  const AttentionShape& shape = a.shape;
  constexpr int64_t kMostGroups = 64;
  const int64_t in_group = (shape.heads + kMostGroups - 1) / kMostGroups;
  const int64_t groups = (shape.heads + in_group - 1) / in_group, size = a.kv.rows * shape.rope;
  Scratch scratch;
  float* sums = scratch.take<float>(groups * size);
  const double cost = double(shape.nope + shape.rope + shape.value) / 18 + 1.5;
  context_->parallel(groups * shape.sequences, pairs_of(shape) * cost, [&](int64_t item) {
    const int64_t s = item / groups, group = item % groups;
    const Sequence sequence = sequence_of("attention_backward", shape, s, a.q.rows, a.kv.rows);
    float* sum = sums + group * size + sequence.k * shape.rope;
    std::fill(sum, sum + sequence.keys * shape.rope, 0.0f);
    for (int64_t h = group * in_group; h < std::min(shape.heads, (group + 1) * in_group); ++h)
      backward_head(*context_, a, sequence, h, sum);
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
        float* total = sums + row * shape.rope;  // of the first group
        for (int64_t group = 1; group < groups; ++group)
          for (int64_t c = 0; c < shape.rope; ++c) total[c] += total[group * size + c];
        store_row(a.dk_rope, row, 0, shape.rope, total);
      }
    });
  }
}

}  // namespace cachalot::cpu
