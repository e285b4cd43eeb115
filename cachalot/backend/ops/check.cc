#include "backend/ops/check.h"

#include <fmt/format.h>

#include <initializer_list>

namespace cachalot {

namespace {

constexpr DType stat_of(DType act) { return act == DType::f64 ? DType::f64 : DType::f32; }
bool is_act(DType t) { return t == DType::f64 || t == DType::f32 || t == DType::bf16; }
bool is_stat(DType t) { return t == DType::f64 || t == DType::f32; }
bool is_weight(DType t) { return t != DType::i32; }

// Whether two views share a number. Exact for single rows and for views with the same distance between rows
// (column slices of one buffer lie between each other); others are given the benefit of the doubt.
bool overlap(const Tensor& a, const Tensor& b) {
  if (a.size() == 0 || b.size() == 0) return false;
  const auto first = [](const Tensor& t) { return reinterpret_cast<uintptr_t>(t.data); };
  const auto pitch = [](const Tensor& t) { return uintptr_t(t.ld * size_of(t.dtype)); };
  const auto width = [](const Tensor& t) { return uintptr_t(t.cols * size_of(t.dtype)); };
  const auto end = [&](const Tensor& t) { return first(t) + uintptr_t(t.rows - 1) * pitch(t) + width(t); };
  if (end(a) <= first(b) || end(b) <= first(a)) return false;
  if (a.rows == 1 && b.rows == 1) return true;
  if (pitch(a) != pitch(b)) return false;
  const uintptr_t shift = first(b) >= first(a) ? (first(b) - first(a)) % pitch(a)
                                               : (pitch(a) - (first(a) - first(b)) % pitch(a)) % pitch(a);
  return shift < width(a) || shift + width(b) > pitch(a);
}

// The scales of codes, as memory.
Tensor scales_of(const Tensor& t) {
  if (!t.scales || t.size() == 0) return {};
  const int64_t across = (t.cols + kScaleBlock - 1) / kScaleBlock;
  const bool row = t.scale_tile == ScaleTile::row;
  return {.data = t.scales,
          .dtype = DType::f32,
          .rows = row ? across : t.scale_row(t.rows - 1) + 1,
          .cols = row ? t.rows : across,
          .ld = t.scale_ld};
}

struct Named {
  const char* name;
  const Tensor& tensor;
};

bool is_row_tiled(const Tensor& t) { return t.scales && t.scale_tile == ScaleTile::row; }

// Failures read "rope: x is bf16 [4, 30], not act [4, 32]".
class OpCheck {
 public:
  explicit OpCheck(const char* op) : op_(op) {}

  void act(const char* name, const Tensor& t, int64_t rows, int64_t cols) const {
    matches(name, t, is_act(t.dtype), "act", rows, cols);
  }
  void act(const char* name, const Tensor& t, DType format, int64_t rows, int64_t cols) const {
    matches(name, t, is_act(format) && t.dtype == format, name_of(format), rows, cols);
  }
  void weight(const char* name, const Tensor& t, int64_t rows, int64_t cols) const {
    matches(name, t, is_weight(t.dtype), "weight", rows, cols);
  }
  void stat(const char* name, const Tensor& t, int64_t rows, int64_t cols) const {
    matches(name, t, is_stat(t.dtype), "stat", rows, cols);
    contiguous(name, t);
  }
  // The stat format that goes with `format` (itself act or stat).
  void stat(const char* name, const Tensor& t, DType format, int64_t rows, int64_t cols) const {
    matches(name, t, t.dtype == stat_of(format), name_of(stat_of(format)), rows, cols);
    contiguous(name, t);
  }
  void index(const char* name, const Tensor& t, int64_t rows, int64_t cols) const {
    matches(name, t, t.dtype == DType::i32, "i32", rows, cols);
    contiguous(name, t);
  }
  void of(const char* name, const Tensor& t, DType format, int64_t rows, int64_t cols) const {
    matches(name, t, t.dtype == format, name_of(format), rows, cols);
  }
  void any(const char* name, const Tensor& t, int64_t rows, int64_t cols) const {
    matches(name, t, true, "any format", rows, cols);
  }
  // FP8 with row tiles (ops/quantize.h).
  void row_tiles(const char* name, const Tensor& t, int64_t rows, int64_t cols) const {
    matches(name, t, t.dtype == DType::e4m3, "e4m3", rows, cols);
    CHECK(t.size() == 0 || (t.scales && t.scale_tile == ScaleTile::row && t.scale_ld >= t.rows),
          fmt::format("{}: {} has no scales of row tiles", op_, name));
  }
  // The same as an output.
  void new_row_tiles(const char* name, const Tensor& t, int64_t rows, int64_t cols) const {
    row_tiles(name, t, rows, cols);
    CHECK(t.size() == 0 ||
              (on_16_bytes(t.data) && t.ld % 16 == 0 && on_16_bytes(t.scales) && t.scale_ld % 4 == 0),
          fmt::format("{}: rows or scales of {} do not begin on 16 bytes", op_, name));
  }
  // FP8 with blocks, `part_rows` rows a matrix.
  void blocks(const char* name, const Tensor& t, int64_t rows, int64_t cols) const {
    matches(name, t, t.dtype == DType::e4m3, "e4m3", rows, cols);
    CHECK(t.size() == 0 || (t.scales && t.scale_tile == ScaleTile::block &&
                            t.scale_ld >= (t.cols + kScaleBlock - 1) / kScaleBlock),
          fmt::format("{}: {} has no scales of blocks", op_, name));
  }
  void act_or_row_tiles(const char* name, const Tensor& t, int64_t rows, int64_t cols) const {
    if (t.dtype == DType::e4m3) row_tiles(name, t, rows, cols);
    else act(name, t, rows, cols);
  }
  void that(bool holds, const char* what) const { CHECK(holds, fmt::format("{}: {} must hold", op_, what)); }

  // No output shares memory with an input or with another output.
  void apart(std::initializer_list<Named> outputs, std::initializer_list<Named> inputs) const {
    for (auto out = outputs.begin(); out != outputs.end(); ++out) {
      for (auto other = out + 1; other != outputs.end(); ++other) apart(*out, *other);
      for (const Named& in : inputs) apart(*out, in);
    }
  }
  // `out` may be `in` itself but not lie across it.
  void apart_or_same(Named out, Named in) const {
    if (out.tensor.data == in.tensor.data && out.tensor.ld == in.tensor.ld &&
        same_shape(out.tensor, in.tensor))
      return;
    apart(out, in);
  }

 private:
  static bool on_16_bytes(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }
  void matches(const char* name, const Tensor& t, bool format, std::string_view expected, int64_t rows,
               int64_t cols) const {
    CHECK(format && t.rows == rows && t.cols == cols,
          fmt::format("{}: {} is {}, not {} [{}, {}]", op_, name, t.describe(), expected, rows, cols));
    CHECK(t.data || t.size() == 0, fmt::format("{}: {} has no memory", op_, name));
    CHECK(t.rows >= 0 && t.cols >= 0 && (t.rows <= 1 || t.ld >= t.cols),
          fmt::format("{}: {} is {}", op_, name, t.describe()));
    CHECK(reinterpret_cast<uintptr_t>(t.data) % uintptr_t(size_of(t.dtype)) == 0,
          fmt::format("{}: {} is not aligned to its numbers", op_, name));
    CHECK(!t.scales || t.dtype == DType::e4m3, fmt::format("{}: {} has scales", op_, name));
  }
  void contiguous(const char* name, const Tensor& t) const {
    CHECK(t.rows <= 1 || t.ld == t.cols,
          fmt::format("{}: {} is {}, not contiguous", op_, name, t.describe()));
  }
  void apart(const Named& a, const Named& b) const {
    const Tensor a_scales = scales_of(a.tensor), b_scales = scales_of(b.tensor);
    CHECK(!overlap(a.tensor, b.tensor) && !overlap(a_scales, b.tensor) && !overlap(a.tensor, b_scales) &&
              !overlap(a_scales, b_scales),
          fmt::format("{}: {} and {} overlap", op_, a.name, b.name));
  }

  const char* op_;
};

void check_shape(const OpCheck& c, const AttentionShape& shape, const Tensor& q, const Tensor& kv) {
  c.that(shape.heads > 0 && shape.nope >= 0 && shape.rope >= 0 && shape.value > 0,
         "heads, nope, rope, value");
  c.that(shape.sequences >= 0, "sequences >= 0");
  c.index("q_starts", shape.q_starts, 1, shape.sequences + 1);
  c.index("k_starts", shape.k_starts, 1, shape.sequences + 1);
  c.act("q", q, q.rows, shape.heads * (shape.nope + shape.rope));
  c.act("kv", kv, q.dtype, kv.rows, shape.heads * (shape.nope + shape.value));
}

}  // namespace

void check(const Gemm& g) {
  const OpCheck c("gemm");
  const int64_t m = g.c.rows, n = g.c.cols, k = g.trans_a ? g.a.rows : g.a.cols;
  c.weight("a", g.a, g.trans_a ? k : m, g.trans_a ? m : k);
  c.weight("b", g.b, g.trans_b ? n : k, g.trans_b ? k : n);
  c.act("c", g.c, m, n);
  if (is_row_tiled(g.a)) {
    c.that(!g.trans_a && g.trans_b, "FP8: a is [M, K], b is [N, K]");
    if (is_row_tiled(g.b)) c.row_tiles("b", g.b, n, k);
    else c.blocks("b", g.b, n, k);
  } else {
    c.that(!is_row_tiled(g.b), "b has row tiles only where a has");
  }
  c.apart({{"c", g.c}}, {{"a", g.a}, {"b", g.b}});
}

void check(const GroupedGemm& g) {
  const OpCheck c("grouped_gemm");
  const int64_t out = g.input_grad ? g.x.cols : g.y.cols, in = g.input_grad ? g.y.cols : g.x.cols;
  c.that(g.experts > 0, "experts > 0");
  c.act_or_row_tiles("x", g.x, g.y.rows, g.input_grad ? out : in);
  c.act("y", g.y, g.x.rows, g.input_grad ? in : out);
  c.weight("w", g.w, g.experts * out, in);
  c.that(!is_row_tiled(g.w), "w has blocks");
  if (g.x.dtype == DType::e4m3) {
    c.that(!g.input_grad, "FP8: the input gradient takes the transposed weight");
    c.blocks("w", g.w, g.experts * out, in);
  }
  // An expert is a whole number of parts: gate and up are two.
  c.that(!g.w.scales || g.experts == 1 || (g.w.part_rows > 0 && out % g.w.part_rows == 0),
         "scales of w are cut where the experts are");
  c.index("offsets", g.offsets, 1, g.experts + 1);
  c.apart({{"y", g.y}}, {{"x", g.x}, {"w", g.w}, {"offsets", g.offsets}});
}

void check(const GroupedWeightGrad& g) {
  const OpCheck c("grouped_weight_grad");
  c.that(g.experts > 0, "experts > 0");
  if (g.dy.dtype == DType::e4m3) {  // transposed
    c.row_tiles("dy", g.dy, g.dy.rows, g.x.cols);
    c.row_tiles("x", g.x, g.x.rows, g.dy.cols);
    c.of("dw", g.dw, DType::f32, g.experts * g.dy.rows, g.x.rows);
  } else {
    c.act("dy", g.dy, g.x.rows, g.dy.cols);
    c.act("x", g.x, g.dy.rows, g.x.cols);
    c.stat("dw", g.dw, g.experts * g.dy.cols, g.x.cols);
  }
  c.index("offsets", g.offsets, 1, g.experts + 1);
  c.apart({{"dw", g.dw}}, {{"dy", g.dy}, {"x", g.x}, {"offsets", g.offsets}});
}

void check(const HeadGemm& g) {
  const OpCheck c("head_gemm");
  c.that(g.heads > 0 && g.w_rows > 0, "heads > 0 and w_rows > 0");
  c.that(g.x_stride >= 0 && g.y_stride >= 0 && g.w_stride >= 0 && g.w_first >= 0, "strides >= 0");
  c.act("x", g.x, g.y.rows, g.x.cols);
  c.act("y", g.y, g.x.rows, g.y.cols);
  c.weight("w", g.w, g.w.rows, g.w.cols);
  const int64_t x_width = g.trans_w ? g.w.cols : g.w_rows, y_width = g.trans_w ? g.w_rows : g.w.cols;
  c.that((g.heads - 1) * g.x_stride + x_width <= g.x.cols, "the last head ends inside x");
  c.that((g.heads - 1) * g.y_stride + y_width <= g.y.cols, "the last head ends inside y");
  c.that(g.w_first + (g.heads - 1) * g.w_stride + g.w_rows <= g.w.rows, "the last head ends inside w");
  c.that(g.heads == 1 || g.y_stride >= y_width, "heads of y do not overlap");
  c.apart({{"y", g.y}}, {{"x", g.x}, {"w", g.w}});
}

void check(const AttentionForward& a) {
  const OpCheck c("attention_forward");
  check_shape(c, a.shape, a.q, a.kv);
  const int64_t tokens = a.q.rows, heads = a.shape.heads;
  c.act("k_rope", a.k_rope, a.q.dtype, a.kv.rows, a.shape.rope);
  c.act("o", a.o, a.q.dtype, tokens, heads * a.shape.value);
  c.stat("lse", a.lse, a.q.dtype, tokens, heads);
  c.apart({{"o", a.o}, {"lse", a.lse}}, {{"q", a.q}, {"kv", a.kv}, {"k_rope", a.k_rope}});
}

void check(const AttentionBackward& a) {
  const OpCheck c("attention_backward");
  check_shape(c, a.shape, a.q, a.kv);
  const int64_t tokens = a.q.rows, heads = a.shape.heads;
  const DType act = a.q.dtype;
  c.act("k_rope", a.k_rope, act, a.kv.rows, a.shape.rope);
  c.act("o", a.o, act, tokens, heads * a.shape.value);
  c.stat("lse", a.lse, act, tokens, heads);
  c.act("d_o", a.d_o, act, tokens, heads * a.shape.value);
  c.act("dq", a.dq, act, tokens, a.q.cols);
  c.act("dkv", a.dkv, act, a.kv.rows, a.kv.cols);
  c.act("dk_rope", a.dk_rope, act, a.kv.rows, a.shape.rope);
  c.apart({{"dq", a.dq}, {"dkv", a.dkv}, {"dk_rope", a.dk_rope}},
          {{"q", a.q}, {"kv", a.kv}, {"k_rope", a.k_rope}, {"o", a.o}, {"lse", a.lse}, {"d_o", a.d_o}});
}

void check(const LatentPlan& p) {
  const OpCheck c("latent_plan");
  c.that(p.heads > 0 && p.rows >= 0 && p.page_size > 0 && p.sequences >= 0, "heads, rows, page_size, sequences");
  c.that(p.piece >= 0 && p.piece % 128 == 0, "piece is a multiple of 128");
  c.that(is_act(p.cache) || p.cache == DType::e4m3, "cache is act or e4m3");
  c.index("page_table", p.page_table, p.sequences, p.page_table.cols);
  c.index("kv_lens", p.kv_lens, 1, p.sequences);
  c.index("q_starts", p.q_starts, 1, p.sequences + 1);
  c.index("plan", p.plan, 1, latent_plan_size(p.sequences));
  c.apart({{"plan", p.plan}},
          {{"page_table", p.page_table}, {"kv_lens", p.kv_lens}, {"q_starts", p.q_starts}});
}

namespace {

void check_latent_cache(const OpCheck& c, const Tensor& cache, DType act, int64_t latent, int64_t rope) {
  if (cache.dtype != DType::e4m3) return c.act("cache", cache, act, cache.rows, latent + rope);
  c.of("cache", cache, DType::e4m3, cache.rows, latent_bytes(latent, rope));
  c.that(!cache.scales && cache.ld == cache.cols && latent % 4 == 0, "a cache in e4m3 is packed, C % 4 == 0");
}

}  // namespace

void check(const LatentAttention& a) {
  const OpCheck c("latent_attention");
  c.that(a.heads > 0 && a.latent > 0 && a.rope >= 0, "heads, latent, rope");
  c.that(a.page_size > 0 && a.sequences >= 0, "page_size > 0 and sequences >= 0");
  c.that(a.piece >= 0 && a.piece % 128 == 0, "piece is a multiple of 128");
  const DType act = a.q_latent.dtype;
  const int64_t tokens = a.q_latent.rows;
  c.act("q_latent", a.q_latent, tokens, a.heads * a.latent);
  c.act("q_rope", a.q_rope, act, tokens, a.q_rope.cols);
  c.that(a.q_rope_stride >= 0 && (a.heads - 1) * a.q_rope_stride + a.rope <= a.q_rope.cols,
         "the last head ends inside q_rope");
  check_latent_cache(c, a.cache, act, a.latent, a.rope);
  c.index("page_table", a.page_table, a.sequences, a.page_table.cols);
  c.index("kv_lens", a.kv_lens, 1, a.sequences);
  c.index("q_starts", a.q_starts, 1, a.sequences + 1);
  if (a.plan) c.index("plan", a.plan, 1, latent_plan_size(a.sequences));
  c.act("o_latent", a.o_latent, act, tokens, a.heads * a.latent);
  c.apart({{"o_latent", a.o_latent}}, {{"q_latent", a.q_latent}, {"q_rope", a.q_rope}, {"cache", a.cache}});
}

void check(const LatentAppend& a) {
  const OpCheck c("latent_append");
  c.that(a.latent > 0 && a.rope >= 0 && a.rope % 2 == 0, "latent > 0, rope even");
  const DType act = a.x.dtype;
  const int64_t tokens = a.x.rows;
  c.act("x", a.x, tokens, a.latent + a.rope);
  c.stat("gain", a.gain, act, 1, a.latent);
  c.index("positions", a.positions, 1, tokens);
  c.index("slots", a.slots, 1, tokens);
  c.stat("cos", a.cos, act, a.sin.rows, a.rope / 2);
  c.stat("sin", a.sin, act, a.cos.rows, a.rope / 2);
  check_latent_cache(c, a.cache, act, a.latent, a.rope);
  c.apart({{"cache", a.cache}}, {{"x", a.x}, {"gain", a.gain}});
  if (!a.q) return;
  c.act("q", a.q, act, tokens, a.q.cols);
  c.that(a.heads > 0 && a.q_stride >= a.rope && a.q_offset >= 0 &&
             (a.heads - 1) * a.q_stride + a.q_offset + a.rope <= a.q.cols,
         "the last head ends inside q");
  c.apart({{"q", a.q}}, {{"x", a.x}, {"cache", a.cache}});
}

void check(const LatentGather& g) {
  const OpCheck c("latent_gather");
  c.act("y", g.y, g.y.rows, g.latent + g.rope);
  c.that(g.cache.dtype == DType::e4m3, "the cache is in e4m3");
  check_latent_cache(c, g.cache, g.y.dtype, g.latent, g.rope);
  c.index("rows", g.rows, 1, g.y.rows);
  c.apart({{"y", g.y}}, {{"cache", g.cache}});
}

void check(const NormGemm& g) {
  const OpCheck c("norm_gemm");
  const int64_t tokens = g.x.rows, width = g.x.cols;
  const DType act = g.x.dtype;
  c.act("x", g.x, tokens, width);
  c.that(width > 0, "width > 0");
  c.stat("gain", g.gain, act, 1, width);
  c.act("y", g.y, act, tokens, width);
  c.stat("r", g.r, act, 1, tokens);
  c.weight("w", g.w, g.w.rows, width);
  c.act("c", g.c, tokens, g.w.rows);
  if (g.w2) {
    c.weight("w2", g.w2, g.w2.rows, width);
    c.act("c2", g.c2, tokens, g.w2.rows);
  }
  c.apart({{"y", g.y}, {"r", g.r}, {"c", g.c}, {"c2", g.c2}},
          {{"x", g.x}, {"gain", g.gain}, {"w", g.w}, {"w2", g.w2}});
}

void check(const LatentQuery& q) {
  check(q.project), check(q.append), check(q.absorb);
  const OpCheck c("latent_query");
  const auto same = [](const Tensor& a, const Tensor& b) {
    return a.data == b.data && a.dtype == b.dtype && a.rows == b.rows && a.cols == b.cols && a.ld == b.ld;
  };
  c.that(!q.project.w2, "one product");
  c.that(same(q.project.c, q.append.q) && same(q.project.c, q.absorb.x), "one q");
  c.that(!q.absorb.trans_w && q.absorb.heads == q.append.heads, "queries into the latent, of the same heads");
  c.that(q.absorb.x_stride == q.append.q_stride && q.absorb.w_rows <= q.append.q_offset,
         "rotary slices stand behind the others");
}

void check(const Route& r) {
  check(r.project), check(r.choose);
  const OpCheck c("route");
  c.that(!r.project.w2 && r.project.c.data == r.choose.logits.data && r.project.c.ld == r.choose.logits.ld,
         "one product, whose result are the logits");
  c.that(!r.choose.replay && !r.choose.counts, "no replay, no counts");
}

void check(const ExpertMlp& e) {
  const OpCheck c("expert_mlp");
  c.that(e.experts > 0, "experts > 0");
  const int64_t tokens = e.x.rows, width = e.x.cols, chosen = e.indices.cols, rows = tokens * chosen,
                hidden = e.down.cols;
  const DType act = e.x.dtype;
  c.act("x", e.x, tokens, width);
  c.act("residual", e.residual, act, tokens, width);
  c.act("y", e.y, act, tokens, width);
  c.index("indices", e.indices, tokens, chosen);
  c.stat("weights", e.weights, act, tokens, chosen);
  c.weight("gate_up", e.gate_up, e.experts * 2 * hidden, width);
  c.weight("down", e.down, e.experts * width, hidden);
  c.index("row_of", e.row_of, tokens, chosen);
  c.index("offsets", e.offsets, 1, e.experts + 1);
  c.act("rows", e.rows, act, rows, width);
  c.act("outputs", e.outputs, act, rows, width);
  c.act("hidden", e.hidden, act, rows, 2 * hidden);
  c.act("activated", e.activated, act, rows, hidden);
  c.that(bool(e.shared_gate_up) == bool(e.shared_down), "both halves of the shared expert or none");
  if (e.shared_down) {
    const int64_t shared = e.shared_down.cols;
    c.weight("shared_gate_up", e.shared_gate_up, 2 * shared, width);
    c.weight("shared_down", e.shared_down, width, shared);
    c.act("shared_hidden", e.shared_hidden, act, tokens, 2 * shared);
    c.act("shared_activated", e.shared_activated, act, tokens, shared);
    c.act("shared_output", e.shared_output, act, tokens, width);
  }
  c.apart_or_same({"y", e.y}, {"residual", e.residual});
  c.apart({{"y", e.y}, {"row_of", e.row_of}, {"offsets", e.offsets}, {"rows", e.rows}, {"hidden", e.hidden},
           {"activated", e.activated}, {"outputs", e.outputs}, {"shared_hidden", e.shared_hidden},
           {"shared_activated", e.shared_activated}, {"shared_output", e.shared_output}},
          {{"x", e.x}, {"indices", e.indices}, {"weights", e.weights}});
}

void check(const RmsNormForward& n) {
  const OpCheck c("rmsnorm_forward");
  const int64_t tokens = n.x.rows, width = n.x.cols;
  const DType act = n.x.dtype;
  c.act("x", n.x, tokens, width);
  c.that(width > 0, "width > 0");
  c.stat("gain", n.gain, act, 1, width);
  c.that(n.y || n.quantized || tokens == 0, "y or quantized");
  if (n.y) c.act("y", n.y, act, tokens, width);
  if (n.quantized) c.new_row_tiles("quantized", n.quantized, tokens, width);
  c.stat("r", n.r, act, 1, tokens);
  c.apart({{"y", n.y}, {"r", n.r}, {"quantized", n.quantized}}, {{"x", n.x}, {"gain", n.gain}});
}

void check(const RmsNormBackward& n) {
  const OpCheck c("rmsnorm_backward");
  const int64_t tokens = n.x.rows, width = n.x.cols;
  const DType act = n.x.dtype;
  c.act("x", n.x, tokens, width);
  c.that(width > 0, "width > 0");
  c.act("dy", n.dy, act, tokens, width);
  c.stat("gain", n.gain, act, 1, width);
  c.stat("r", n.r, act, 1, tokens);
  c.act("dx", n.dx, act, tokens, width);
  c.stat("dgain", n.dgain, act, 1, width);
  c.apart({{"dx", n.dx}, {"dgain", n.dgain}}, {{"dy", n.dy}, {"x", n.x}, {"gain", n.gain}, {"r", n.r}});
  if (n.residual) {
    c.act("residual", n.residual, act, tokens, width);
    c.apart_or_same({"dx", n.dx}, {"residual", n.residual});
    c.apart({{"dgain", n.dgain}}, {{"residual", n.residual}});
  }
}

void check(const Rope& r) {
  const OpCheck c("rope");
  c.act("x", r.x, r.x.rows, r.x.cols);
  c.that(r.heads > 0 && r.width >= 0 && r.width % 2 == 0, "heads > 0 and width even");
  c.that(r.stride >= 0 && r.offset >= 0 && (r.heads - 1) * r.stride + r.offset + r.width <= r.x.cols,
         "the last head ends inside x");
  c.that(r.heads == 1 || r.stride >= r.width, "heads do not overlap");
  c.index("positions", r.positions, 1, r.x.rows);
  c.stat("cos", r.cos, r.x.dtype, r.sin.rows, r.width / 2);
  c.stat("sin", r.sin, r.x.dtype, r.cos.rows, r.width / 2);
  c.apart({{"x", r.x}}, {{"positions", r.positions}, {"cos", r.cos}, {"sin", r.sin}});
}

void check(const SwigluForward& g) {
  const OpCheck c("swiglu_forward");
  const int64_t tokens = g.x.rows, width = g.x.cols / 2;
  c.act("x", g.x, tokens, 2 * width);
  c.that(g.y || g.quantized || g.x.size() == 0, "y or quantized");
  if (g.y) c.act("y", g.y, g.x.dtype, tokens, width);
  if (g.quantized) c.new_row_tiles("quantized", g.quantized, tokens, width);
  if (g.cached) c.new_row_tiles("cached", g.cached, tokens, 2 * width);
  c.apart({{"y", g.y}, {"quantized", g.quantized}, {"cached", g.cached}}, {{"x", g.x}});
}

void check(const SwigluBackward& g) {
  const OpCheck c("swiglu_backward");
  const int64_t tokens = g.dy.rows, width = g.dy.cols;
  c.act("dy", g.dy, tokens, width);
  if (g.x.dtype == DType::e4m3) c.row_tiles("x", g.x, tokens, 2 * width);
  else c.act("x", g.x, g.dy.dtype, tokens, 2 * width);
  c.that(g.dx || g.quantized || g.dy.size() == 0, "dx or quantized");
  if (g.dx) c.act("dx", g.dx, g.dy.dtype, tokens, 2 * width);
  if (g.y) c.act("y", g.y, g.dy.dtype, tokens, width);
  if (g.quantized) c.new_row_tiles("quantized", g.quantized, tokens, 2 * width);
  c.that(bool(g.weights) == bool(g.dweights), "weights with dweights");
  if (g.weights) {
    c.stat("weights", g.weights, g.dy.dtype, 1, tokens);
    c.stat("dweights", g.dweights, g.dy.dtype, 1, tokens);
  }
  c.that(bool(g.transposed) == bool(g.y_transposed) && (!g.transposed || (g.dx && g.y)),
         "transposed with y_transposed, dx and y");
  c.that(bool(g.offsets) == bool(g.padded), "offsets and padded come together");
  if (g.offsets) {
    const int64_t experts = g.offsets.cols - 1;
    c.that(experts > 0, "experts > 0");
    c.index("offsets", g.offsets, 1, experts + 1);
    c.index("padded", g.padded, 1, experts + 1);
  }
  if (g.transposed) {
    const int64_t columns = g.offsets ? g.transposed.cols : tokens;
    c.new_row_tiles("transposed", g.transposed, 2 * width, columns);
    c.new_row_tiles("y_transposed", g.y_transposed, width, columns);
    c.that(!g.offsets || columns % kScaleBlock == 0, "padded columns are a multiple of 128");
  }
  c.apart({{"dx", g.dx},
           {"y", g.y},
           {"quantized", g.quantized},
           {"dweights", g.dweights},
           {"transposed", g.transposed},
           {"y_transposed", g.y_transposed}},
          {{"dy", g.dy}, {"x", g.x}, {"weights", g.weights}, {"offsets", g.offsets}, {"padded", g.padded}});
}

void check(const GateForward& g) {
  const OpCheck c("gate_forward");
  const int64_t tokens = g.logits.rows, experts = g.logits.cols, chosen = g.indices.cols;
  const DType stat = g.logits.dtype;
  c.stat("logits", g.logits, tokens, experts);
  c.of("bias", g.bias, DType::f32, 1, experts);
  c.stat("scores", g.scores, stat, tokens, experts);
  c.index("indices", g.indices, tokens, chosen);
  c.stat("weights", g.weights, stat, tokens, chosen);
  if (g.counts) c.index("counts", g.counts, 1, experts);
  c.that(g.groups > 0 && experts > 0 && experts % g.groups == 0, "experts are a multiple of groups");
  c.that(0 < g.topk_groups && g.topk_groups <= g.groups, "0 < topk_groups <= groups");
  c.that(0 < chosen && chosen <= g.topk_groups * (experts / g.groups),
         "the chosen groups hold enough experts");
  c.apart({{"scores", g.scores}, {"indices", g.indices}, {"weights", g.weights}, {"counts", g.counts}},
          {{"logits", g.logits}, {"bias", g.bias}});
}

void check(const BalanceLoss& b) {
  const OpCheck c("balance_loss");
  const int64_t experts = b.scores.cols;
  c.that(b.sequences >= 0 && 0 < b.top_k && b.top_k <= experts, "sequences >= 0 and 0 < top_k <= experts");
  c.stat("scores", b.scores, b.scores.rows, experts);
  c.index("starts", b.starts, 1, b.sequences + 1);
  c.stat("fractions", b.fractions, b.scores.dtype, b.sequences, experts);
  c.stat("loss", b.loss, b.scores.dtype, 1, b.sequences);
  c.apart({{"fractions", b.fractions}, {"loss", b.loss}}, {{"scores", b.scores}, {"starts", b.starts}});
}

void check(const GateBackward& g) {
  const OpCheck c("gate_backward");
  const int64_t tokens = g.scores.rows, experts = g.scores.cols, chosen = g.indices.cols;
  const DType stat = g.scores.dtype;
  c.stat("scores", g.scores, tokens, experts);
  c.stat("dweights", g.dweights, stat, tokens, chosen);
  c.index("indices", g.indices, tokens, chosen);
  c.stat("dlogits", g.dlogits, stat, tokens, experts);
  c.that(0 < chosen && chosen <= experts, "0 < chosen <= experts");
  c.apart({{"dlogits", g.dlogits}}, {{"scores", g.scores}, {"dweights", g.dweights}, {"indices", g.indices}});
  if (g.balance_factor != 0) {
    c.that(g.sequences >= 0, "sequences >= 0");
    c.index("starts", g.starts, 1, g.sequences + 1);
    c.stat("fractions", g.fractions, stat, g.sequences, experts);
    c.apart({{"dlogits", g.dlogits}}, {{"starts", g.starts}, {"fractions", g.fractions}});
  }
}

void check(const CountGroups& g) {
  const OpCheck c("count_groups");
  c.that(g.experts > 0 && g.groups > 0 && g.experts % g.groups == 0, "experts are a multiple of groups");
  c.that(g.indices.cols > 0, "a token chooses at least one expert");
  c.index("indices", g.indices, g.indices.rows, g.indices.cols);
  c.index("visits", g.visits, 1, 1);
  c.apart({{"visits", g.visits}}, {{"indices", g.indices}});
}

void check(const UpdateGateBias& u) {
  const OpCheck c("update_gate_bias");
  c.index("counts", u.counts, 1, u.bias.cols);
  c.of("bias", u.bias, DType::f32, 1, u.counts.cols);
  c.apart({{"bias", u.bias}}, {{"counts", u.counts}});
}

void check(const PermutePlan& p) {
  const OpCheck c("permute_plan");
  c.that(p.experts > 0, "experts > 0");
  c.index("indices", p.indices, p.indices.rows, p.indices.cols);
  c.index("row_of", p.row_of, p.indices.rows, p.indices.cols);
  c.index("offsets", p.offsets, 1, p.experts + 1);
  c.apart({{"row_of", p.row_of}, {"offsets", p.offsets}}, {{"indices", p.indices}});
}

void check(const Permute& p) {
  const OpCheck c("permute");
  c.act_or_row_tiles("x", p.x, p.x.rows, p.x.cols);
  c.index("row_of", p.row_of, p.x.rows, p.row_of.cols);
  if (p.x.dtype == DType::e4m3) c.new_row_tiles("y", p.y, p.row_of.size(), p.x.cols);
  else c.act("y", p.y, p.x.dtype, p.row_of.size(), p.x.cols);
  c.apart({{"y", p.y}}, {{"x", p.x}, {"row_of", p.row_of}});
}

void check(const Unpermute& p) {
  const OpCheck c("unpermute");
  const DType act = p.y.dtype;
  c.act("y", p.y, p.y.rows, p.y.cols);
  c.index("row_of", p.row_of, p.y.rows, p.row_of.cols);
  c.act("x", p.x, act, p.row_of.size(), p.y.cols);
  c.apart({{"y", p.y}}, {{"x", p.x}, {"row_of", p.row_of}});
  if (p.weights) {
    c.stat("weights", p.weights, act, p.y.rows, p.row_of.cols);
    c.apart({{"y", p.y}}, {{"weights", p.weights}});
  }
  if (p.residual) {
    c.act("residual", p.residual, act, p.y.rows, p.y.cols);
    c.apart_or_same({"y", p.y}, {"residual", p.residual});
  }
  if (p.shared) {
    c.act("shared", p.shared, act, p.y.rows, p.y.cols);
    c.apart_or_same({"y", p.y}, {"shared", p.shared});
  }
}

void check(const UnpermuteBackward& p) {
  const OpCheck c("unpermute_backward");
  const DType act = p.dy.dtype;
  c.act("dy", p.dy, p.dy.rows, p.dy.cols);
  c.index("row_of", p.row_of, p.dy.rows, p.row_of.cols);
  c.act("x", p.x, act, p.row_of.size(), p.dy.cols);
  c.act("dx", p.dx, act, p.row_of.size(), p.dy.cols);
  c.stat("weights", p.weights, act, p.dy.rows, p.row_of.cols);
  c.stat("dweights", p.dweights, act, p.dy.rows, p.row_of.cols);
  c.apart({{"dx", p.dx}, {"dweights", p.dweights}},
          {{"dy", p.dy}, {"x", p.x}, {"row_of", p.row_of}, {"weights", p.weights}});
}

void check(const GatherRows& g) {
  const OpCheck c("gather_rows");
  c.act("x", g.x, g.x.rows, g.x.cols);
  c.act("y", g.y, g.y.rows, g.x.cols);
  c.index("rows", g.rows, 1, g.y.rows);
  c.apart({{"y", g.y}}, {{"x", g.x}, {"rows", g.rows}});
}

void check(const ScatterRows& s) {
  const OpCheck c("scatter_rows");
  c.act("x", s.x, s.x.rows, s.x.cols);
  c.act("y", s.y, s.y.rows, s.x.cols);
  c.index("rows", s.rows, 1, s.x.rows);
  c.apart({{"y", s.y}}, {{"x", s.x}, {"rows", s.rows}});
}

void check(const ScatterAddRows& s) {
  const OpCheck c("scatter_add_rows");
  c.act("x", s.x, s.x.rows, s.x.cols);
  c.stat("y", s.y, s.x.dtype, s.y.rows, s.x.cols);
  c.index("rows", s.rows, 1, s.x.rows);
  c.apart({{"y", s.y}}, {{"x", s.x}, {"rows", s.rows}});
}

void check(const CrossEntropy& e) {
  const OpCheck c("cross_entropy");
  c.stat("logits", e.logits, e.logits.rows, e.logits.cols);
  c.that(e.logits.cols > 0, "vocabulary > 0");
  c.index("targets", e.targets, 1, e.logits.rows);
  c.stat("loss", e.loss, e.logits.dtype, 1, e.logits.rows);
  if (e.dlogits) {
    c.that(e.gradient, "dlogits with gradient only");
    c.act("dlogits", e.dlogits, e.logits.rows, e.logits.cols);
  }
  c.apart({{"logits", e.logits}, {"loss", e.loss}, {"dlogits", e.dlogits}}, {{"targets", e.targets}});
}

void check(const Sample& s) {
  const OpCheck c("sample");
  c.stat("logits", s.logits, s.logits.rows, s.logits.cols);
  c.that(s.logits.cols > 0, "vocabulary > 0");
  c.index("positions", s.positions, 1, s.logits.rows);
  c.index("tokens", s.tokens, 1, s.logits.rows);
  c.that(s.temperature >= 0 && s.top_p > 0 && s.top_k >= 0, "temperature >= 0, top_p > 0 and top_k >= 0");
  c.apart({{"tokens", s.tokens}}, {{"logits", s.logits}, {"positions", s.positions}});
}

void check(const Fill& f) {
  const OpCheck c("fill");
  c.any("y", f.y, f.y.rows, f.y.cols);
  c.that(f.y.dtype != DType::e4m3, "y is not e4m3");
}

void check(const Cast& k) {
  const OpCheck c("cast");
  c.any("x", k.x, k.y.rows, k.y.cols);
  c.any("y", k.y, k.x.rows, k.x.cols);
  c.that(is_act(k.y.dtype) || (k.y.dtype == DType::i32 && k.x.dtype == DType::i32),
         "y is f64, f32 or bf16, or both are i32");
  c.apart({{"y", k.y}}, {{"x", k.x}});
}

void check(const Add& a) {
  const OpCheck c("add");
  c.that(a.y.dtype != DType::e4m3, "y is not e4m3");
  c.any("y", a.y, a.y.rows, a.y.cols);
  c.of("a", a.a, a.y.dtype, a.y.rows, a.y.cols);
  c.of("b", a.b, a.y.dtype, a.y.rows, a.y.cols);
  c.apart_or_same({"y", a.y}, {"a", a.a});
  c.apart_or_same({"y", a.y}, {"b", a.b});
}

void check(const SumSquares& s) {
  const OpCheck c("sum_squares");
  c.stat("x", s.x, s.x.rows, s.x.cols);
  c.of("out", s.out, DType::f64, 1, 1);
  c.apart({{"out", s.out}}, {{"x", s.x}});
}

void check(const AdamW& a) {
  const OpCheck c("adamw");
  const int64_t rows = a.master.rows, cols = a.master.cols;
  const DType moment = a.master.dtype == DType::f64 ? DType::f64 : DType::bf16;
  c.stat("master", a.master, rows, cols);
  c.stat("grad", a.grad, a.master.dtype, rows, cols);
  c.act("m", a.m, moment, rows, cols);
  c.act("v", a.v, moment, rows, cols);
  c.of("grad_norm_squared", a.grad_norm_squared, DType::f64, 1, 1);
  c.that(a.step >= 1 && a.max_norm >= 0, "step >= 1 and max_norm >= 0");
  c.that(0 <= a.beta1 && a.beta1 < 1 && 0 <= a.beta2 && a.beta2 < 1, "0 <= beta < 1");
  c.apart({{"master", a.master}, {"m", a.m}, {"v", a.v}},
          {{"grad", a.grad}, {"grad_norm_squared", a.grad_norm_squared}});
  if (a.weight) {
    c.act("weight", a.weight, rows, cols);
    c.apart({{"weight", a.weight}}, {{"master", a.master}, {"grad", a.grad}, {"m", a.m}, {"v", a.v}});
  }
}

void check(const Quantize& q) {
  const OpCheck c("quantize");
  const int64_t rows = q.x.rows, cols = q.x.cols;
  c.act_or_row_tiles("x", q.x, rows, cols);
  c.that(q.y || q.transposed || q.x.size() == 0, "y or transposed");
  c.that(!q.y || q.x.dtype != DType::e4m3, "an e4m3 x has no y");
  c.that(bool(q.offsets) == bool(q.padded), "offsets and padded come together");
  if (q.y) c.new_row_tiles("y", q.y, rows, cols);
  const int64_t experts = q.offsets.cols - 1;
  if (q.offsets) {
    c.that(experts > 0, "experts > 0");
    c.index("offsets", q.offsets, 1, experts + 1);
    c.index("padded", q.padded, 1, experts + 1);
  }
  if (q.transposed) {
    c.new_row_tiles("transposed", q.transposed, cols, q.offsets ? q.transposed.cols : rows);
    c.that(!q.offsets || q.transposed.cols % kScaleBlock == 0, "padded columns are a multiple of 128");
  }
  c.apart({{"y", q.y}, {"transposed", q.transposed}},
          {{"x", q.x}, {"offsets", q.offsets}, {"padded", q.padded}});
}

void check(const QuantizeWeight& q) {
  const OpCheck c("quantize_weight");
  const int64_t rows = q.x.rows, cols = q.x.cols;
  c.that(q.experts > 0 && rows % q.experts == 0, "experts divide the rows of x");
  const int64_t outputs = rows / q.experts;
  const auto parts_fit = [&](const Tensor& t) {
    return t.first_row == 0 && (t.part_rows == 0 ? q.experts == 1 : outputs % t.part_rows == 0);
  };
  c.that(q.y || q.transposed || q.x.size() == 0, "y or transposed");
  if (q.x.dtype == DType::e4m3) {
    c.blocks("x", q.x, rows, cols);
    c.that(!q.y, "an e4m3 x has no y");
    c.that(parts_fit(q.x), "parts of x are cut where the experts are");
  } else {
    c.act("x", q.x, rows, cols);
  }
  if (q.y) {
    c.blocks("y", q.y, rows, cols);
    c.that(parts_fit(q.y), "parts of y are cut where the experts are");
  }
  if (q.transposed) {
    c.blocks("transposed", q.transposed, q.experts * cols, outputs);
    c.that(q.transposed.first_row == 0 &&
               (q.transposed.part_rows == cols || (q.transposed.part_rows == 0 && q.experts == 1)),
           "a part of the transpose is an expert");
  }
  c.apart({{"y", q.y}, {"transposed", q.transposed}}, {{"x", q.x}});
}

void check(const PadOffsets& p) {
  const OpCheck c("pad_offsets");
  c.that(p.offsets.cols > 1, "experts > 0");
  c.index("offsets", p.offsets, 1, p.offsets.cols);
  c.index("padded", p.padded, 1, p.offsets.cols);
  c.apart({{"padded", p.padded}}, {{"offsets", p.offsets}});
}

namespace {

void check_e5m6(const OpCheck& c, const char* name, const Tensor& t, const Tensor& packed,
                const Tensor& scales) {
  c.act(name, t, t.rows, t.cols);
  c.index("packed", packed, t.rows, 3 * ((t.cols + 7) / 8));
  c.of("scales", scales, DType::f32, (t.cols + kScaleBlock - 1) / kScaleBlock, t.rows);
}

}  // namespace

void check(const PackE5m6& p) {
  const OpCheck c("pack_e5m6");
  check_e5m6(c, "x", p.x, p.packed, p.scales);
  c.apart({{"packed", p.packed}, {"scales", p.scales}}, {{"x", p.x}});
}

void check(const UnpackE5m6& p) {
  const OpCheck c("unpack_e5m6");
  check_e5m6(c, "y", p.y, p.packed, p.scales);
  c.apart({{"y", p.y}}, {{"packed", p.packed}, {"scales", p.scales}});
}

}  // namespace cachalot
