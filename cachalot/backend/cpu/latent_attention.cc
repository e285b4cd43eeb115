// Contract: backend/ops/latent_attention.h. A group of heads shares the tokens, so that scores and sums are
// matrix products and a token is read once. Tokens come in blocks of kTokens with running maxima and sums, as
// in attention.cc; blocks make pieces of kPiece tokens, each from its own start, and a row's pieces are
// joined in order. Where rows are few, threads share the pieces of one row: the bits are the same. Tokens of
// a cache in e4m3 become numbers of the queries' format first, exactly.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "backend/cpu/convert.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/latent_cache.h"
#include "backend/cpu/rows_as_stored.h"
#include "backend/ops/check.h"

namespace cachalot::cpu {

namespace {

constexpr int64_t kTokens = 64, kPiece = 256, kHeads = 64;

// The sums of some heads over some tokens: o = sum_j e^(s_j - top) latent_j and sum = sum_j e^(s_j - top).
struct Partial {
  float *o, *top, *sum;  // [heads, ld], [heads], [heads]; heads rounded up to whole vectors
};

struct Group {
  const Vectors& vectors;
  const LatentAttention& a;
  int64_t row, head, heads;
  const int32_t* pages;
  int64_t seen;  // tokens that the row sees

  // bf16 is multiplied in pairs where an instruction does so (vector.h); pairs need an even width.
  bool pairs() const {
    return vectors.product_pairs && a.q_latent.dtype == DType::bf16 && (a.latent + a.rope) % 2 == 0;
  }
  bool codes() const { return a.cache.dtype == DType::e4m3; }
  int64_t panel() const { return 2 * vectors.lanes; }  // heads side by side in two vectors
  int64_t padded() const { return round_up(heads, panel()); }
  int64_t latent_ld() const { return spread_ld(a.latent); }
  int64_t token_ld() const { return spread_ld(a.latent + a.rope); }
  int64_t pieces() const { return (seen + kPiece - 1) / kPiece; }
  int64_t partial_size() const { return padded() * (latent_ld() + 2); }
  Partial partial(float* memory) const {
    return {memory, memory + padded() * latent_ld(), memory + padded() * (latent_ld() + 1)};
  }
};

void clear(const Group& g, const Partial& p) {
  std::fill(p.o, p.o + g.padded() * g.latent_ld(), 0.0f);
  std::fill(p.top, p.top + g.padded(), -std::numeric_limits<float>::infinity());
  std::fill(p.sum, p.sum + g.padded(), 0.0f);
}

// The queries of the group: panels [latent + rope][panel] of floats, or half as many of words.
void load_queries(const Kernels& kernels, const Group& g, float* panels) {
  const LatentAttention& a = g.a;
  const int64_t width = a.latent + a.rope;
  Scratch scratch;
  float* rows = scratch.take<float>(g.heads * width);
  if (g.pairs()) {
    uint16_t* halves = reinterpret_cast<uint16_t*>(rows);
    for (int64_t h = 0; h < g.heads; ++h) {
      std::memcpy(halves + h * width, place(a.q_latent, g.row, (g.head + h) * a.latent),
                  size_t(2 * a.latent));
      std::memcpy(halves + h * width + a.latent, place(a.q_rope, g.row, (g.head + h) * a.q_rope_stride),
                  size_t(2 * a.rope));
    }
    return kernels.pack_along(rows, width / 2, g.heads, width / 2, g.panel(), panels);
  }
  const RowVectors& stored = rows_in(g.vectors, a.q_latent.dtype);
  for (int64_t h = 0; h < g.heads; ++h) {
    stored.to_floats(place(a.q_latent, g.row, (g.head + h) * a.latent), 1, a.latent, rows + h * width);
    stored.to_floats(place(a.q_rope, g.row, (g.head + h) * a.q_rope_stride), 1, a.rope,
                     rows + h * width + a.latent);
  }
  kernels.pack_along(rows, width, g.heads, width, g.panel(), panels);
}

// The cache rows of some tokens. Pages lie anywhere; the rows of a page follow each other.
class Tokens {
 public:
  explicit Tokens(const Group& g) : a_(g.a), pages_(g.pages) {}

  int64_t slot(int64_t token) const {
    const int64_t slot = pages_[token / a_.page_size] * a_.page_size + token % a_.page_size;
    CHECK(0 <= slot && slot < a_.cache.rows,
          "latent_attention: cache row " + std::to_string(slot) + " of " + std::to_string(a_.cache.rows));
    return slot;
  }
  const uint8_t* row(int64_t token) const {
    return static_cast<const uint8_t*>(place(a_.cache, slot(token)));
  }
  int64_t stride() const {
    return a_.cache.ld * size_of(a_.cache.dtype);
  }  // bytes between the rows of a page
  // Calls visit(j, row) for the first of every run of rows, which ends where the next begins.
  template <class Visit> void each_run(int64_t first, int64_t count, const Visit& visit) const {
    for (int64_t j = 0; j < count; j += a_.page_size - (first + j) % a_.page_size) visit(j, row(first + j));
  }
  // The rows as they lie where they are one run, else nullptr.
  const uint8_t* one_run(int64_t first, int64_t count) const {
    const uint8_t* begin = row(first);
    bool one = true;
    each_run(first, count, [&](int64_t j, const uint8_t* r) { one = one && r == begin + j * stride(); });
    return one ? begin : nullptr;
  }

 private:
  const LatentAttention& a_;
  const int32_t* pages_;
};

constexpr int64_t kLine = 64;

// Reads a byte of every line: rows of some hundred bytes, each read when it is needed, come at a quarter of
// the speed at which memory delivers lines in a row.
void touch(const uint8_t* data, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += kLine) (void)*static_cast<const volatile uint8_t*>(data + b);
}

// Piece number `piece` into p.
void attend(const Group& g, const float* queries, int64_t piece, const Partial& p) {
  const LatentAttention& a = g.a;
  const int64_t width = a.latent + a.rope, ld = g.token_ld(), panel = g.panel(),
                last = std::min(g.seen, (piece + 1) * kPiece);
  const RowVectors& stored = rows_in(g.vectors, a.q_latent.dtype);
  const bool pairs = g.pairs(), codes = g.codes();
  const int64_t step = pairs ? 2 : 1, depth = width / step;  // numbers in a word, words in a token
  const auto product = pairs ? g.vectors.product_pairs : g.vectors.product;
  const auto soften = pairs ? g.vectors.soften_pairs : g.vectors.soften;
  const Tokens cache(g);
  Scratch scratch;
  float* tokens = scratch.take<float>(kTokens * ld);  // rows of floats, or of words along tokens
  uint16_t* copies = scratch.take<uint16_t>(kTokens * width);
  float* decoded = scratch.take<float>(width);
  float* scores = scratch.take<float>(kTokens * panel);
  float* shrink = scratch.take<float>(panel);
  if (a.latent % g.vectors.lanes != 0) std::fill(tokens, tokens + kTokens * ld, 0.0f);
  clear(g, p);
  for (int64_t first = piece * kPiece; first < last; first += kTokens) {
    const int64_t count = std::min(kTokens, last - first), after = std::min(count, last - first - count);
    const uint8_t* run = cache.one_run(first, count);
    const uint8_t* next = after > 0 ? cache.one_run(first + count, after) : nullptr;
    if (run) touch(run, count * cache.stride());
    // bf16: where the rows lie, or copies of them.
    const bool in_place = pairs && run && !codes && a.cache.ld % 2 == 0;
    const uint8_t* halves = in_place ? run : reinterpret_cast<uint8_t*>(copies);
    const int64_t halves_ld = in_place ? cache.stride() : 2 * width;
    for (int64_t j = 0; !in_place && j < count; ++j) {
      if (codes) {
        float* numbers = pairs ? decoded : tokens + j * ld;
        decode_latent_row(a.cache, cache.slot(first + j), a.latent, a.rope, numbers);
        if (pairs) stored.from_floats(numbers, 1, width, copies + j * width);
      } else if (pairs) std::memcpy(copies + j * width, cache.row(first + j), size_t(2 * width));
      else stored.to_floats(cache.row(first + j), 1, width, tokens + j * ld);
    }
    for (int64_t j = 0; pairs && j < count; j += 2) {
      const uint8_t* row = halves + j * halves_ld;
      g.vectors.pair_rows(reinterpret_cast<const uint16_t*>(row),
                          reinterpret_cast<const uint16_t*>(j + 1 < count ? row + halves_ld : nullptr),
                          a.latent, tokens + j / 2 * ld);
    }
    for (int64_t h = 0; h < g.heads; h += panel) {
      const int64_t n = std::min(panel, g.heads - h), across = round_up(n, g.vectors.lanes);
      product({.left = pairs ? reinterpret_cast<const float*>(halves) : tokens,
               .row = pairs ? halves_ld / 4 : ld,
               .step = 1,
               .right = queries + h * depth,
               .ldr = panel,
               .m = count,
               .n = across,
               .k = depth,
               .c = scores,
               .ldc = panel,
               .add = false,
               .left_ahead = reinterpret_cast<const float*>(codes ? nullptr : next)});
      soften(scores, panel, count, across, float(a.scale), nullptr, p.top + h, p.sum + h, shrink);
      for (int64_t i = 0; i < n; ++i)
        if (shrink[i] != 1) g.vectors.scale(p.o + (h + i) * g.latent_ld(), shrink[i], a.latent);
      product({.left = scores,
               .row = 1,
               .step = panel,
               .right = tokens,
               .ldr = ld,
               .m = n,
               .n = a.latent,
               .k = (count + step - 1) / step,
               .c = p.o + h * g.latent_ld(),
               .ldc = g.latent_ld(),
               .add = true});
    }
  }
}

// total = total and p together.
void join(const Group& g, const Partial& total, const Partial& p) {
  for (int64_t h = 0; h < g.heads; ++h) {
    const float top = std::max(total.top[h], p.top[h]);
    if (!(top > -std::numeric_limits<float>::infinity())) continue;  // neither has seen a number
    const float ours = std::exp(total.top[h] - top), theirs = std::exp(p.top[h] - top);
    const void* rows[2] = {total.o + h * g.latent_ld(), p.o + h * g.latent_ld()};
    const float factors[2] = {ours, theirs};
    g.vectors.f32.combine(rows, factors, 2, g.a.latent, total.o + h * g.latent_ld());
    total.sum[h] = total.sum[h] * ours + p.sum[h] * theirs;
    total.top[h] = top;
  }
}

void store(const Group& g, const Partial& total) {
  const RowVectors& stored = rows_in(g.vectors, g.a.o_latent.dtype);
  for (int64_t h = 0; h < g.heads; ++h)
    stored.from_floats(total.o + h * g.latent_ld(), 1 / total.sum[h], g.a.latent,
                       place(g.a.o_latent, g.row, (g.head + h) * g.a.latent));
}

}  // namespace

void CpuBackend::latent_attention(const LatentAttention& a) {
  check(a);
  require_no_f64("latent_attention", {&a.q_latent, &a.o_latent});
  CHECK(a.scale >= 0, "latent_attention: scale");  // a maximum is taken before it
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
  const double cost =
      double(a.heads) * double(2 * a.latent + a.rope) / 45 + 0.1 * double(a.latent);  // a token
  const auto group_of = [&](int64_t item) {
    const int64_t row = first + item / groups, head = item % groups * kHeads;
    const int64_t s =
        std::upper_bound(starts.data, starts.data + a.sequences + 1, int32_t(row)) - starts.data - 1;
    return Group{.vectors = context_->vectors,
                 .a = a,
                 .row = row,
                 .head = head,
                 .heads = std::min(kHeads, a.heads - head),
                 .pages = pages.row(s),
                 .seen = lens[s] - starts[s + 1] + row + 1};
  };
  if (rows * groups < 2 * context_->pool.threads() && context_->shares(pairs * cost)) {
    for (int64_t item = 0; item < rows * groups; ++item) {  // one after the other, all threads on its pieces
      const Group g = group_of(item);
      Scratch scratch;
      float* queries = scratch.take<float>(g.padded() * (a.latent + a.rope));
      float* partials = scratch.take<float>((g.pieces() + 1) * g.partial_size());
      load_queries(context_->kernels, g, queries);
      context_->parallel(g.pieces(), double(g.seen) * cost, [&](int64_t piece) {
        attend(g, queries, piece, g.partial(partials + (piece + 1) * g.partial_size()));
      });
      const Partial total = g.partial(partials);
      clear(g, total);
      for (int64_t piece = 0; piece < g.pieces(); ++piece)
        join(g, total, g.partial(partials + (piece + 1) * g.partial_size()));
      store(g, total);
    }
    return;
  }
  context_->parallel(rows * groups, pairs * cost, [&](int64_t item) {
    const Group g = group_of(item);
    Scratch scratch;
    float* queries = scratch.take<float>(g.padded() * (a.latent + a.rope));
    const Partial total = g.partial(scratch.take<float>(g.partial_size()));
    const Partial one = g.partial(scratch.take<float>(g.partial_size()));
    load_queries(context_->kernels, g, queries);
    clear(g, total);
    for (int64_t piece = 0; piece < g.pieces(); ++piece) {
      attend(g, queries, piece, one);
      join(g, total, one);
    }
    store(g, total);
  });
}

}  // namespace cachalot::cpu
