#include "backend/ops/cost.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <set>

namespace cachalot {

namespace {

// With scales of row tiles, which are 1 / 32 of the codes; those of blocks are nothing.
double bytes(const Tensor& t) {
  const bool tiles = t.scales && t.scale_tile == ScaleTile::row;
  return double(t.size()) * size_of(t.dtype) + (tiles ? double(t.size()) * 4 / kScaleBlock : 0.0);
}
double bytes(std::initializer_list<const Tensor*> tensors) {
  double sum = 0;
  for (const Tensor* t : tensors) sum += t->data ? bytes(*t) : 0;
  return sum;
}

Cost memory(const Tensor& shape, double bytes) {
  return {.bytes = bytes, .shape = fmt::format("{} x {} {}", shape.rows, shape.cols, name_of(shape.dtype))};
}

// C is read too when the product is added to it.
double output(const Tensor& c, Accumulate mode) { return bytes(c) * (mode == Accumulate::add ? 2 : 1); }

Cost product(double m, double n, double k, const Tensor& w, double bytes, std::string shape) {
  return {.kind = CostKind::product,
          .flops = 2 * m * n * k,
          .bytes = bytes,
          .shape = fmt::format("{} {}", shape, name_of(w.dtype))};
}

// Rows of all experts together, and experts that have rows.
struct Load {
  double rows = 0, busy = 0;
};
Load load(const Tensor& offsets, const ReadIndices& read) {
  const std::vector<int32_t> o = read(offsets);
  Load l{.rows = double(o.back())};
  for (size_t e = 1; e < o.size(); ++e) l.busy += o[e] > o[e - 1];
  return l;
}

// Pairs of a query and a key that it sees, and rows that are in sequences.
struct Pairs {
  double pairs = 0, queries = 0, keys = 0;
};
Pairs pairs(const AttentionShape& a, const ReadIndices& read) {
  const std::vector<int32_t> q = read(a.q_starts), k = read(a.k_starts);
  Pairs p;
  for (size_t s = 0; s + 1 < q.size(); ++s) {
    const double n = q[s + 1] - q[s], m = k[s + 1] - k[s];
    p.pairs += n * m - n * (n - 1) / 2;
    p.queries += n, p.keys += m;
  }
  return p;
}
std::string attention_label(const AttentionShape& a, const Pairs& p, const Tensor& q) {
  return fmt::format("{} x {} rows, {} heads of {}/{} {}", p.queries, p.keys, a.heads, a.nope + a.rope,
                     a.value, name_of(q.dtype));
}

}  // namespace

Cost cost_of(const Gemm& g, const ReadIndices&) {
  const int64_t k = g.trans_a ? g.a.rows : g.a.cols;
  return product(double(g.c.rows), double(g.c.cols), double(k), g.b,
                 bytes({&g.a, &g.b}) + output(g.c, g.accumulate),
                 fmt::format("{} x {} x {}", g.c.rows, g.c.cols, k));
}

Cost cost_of(const GroupedGemm& g, const ReadIndices& read) {
  const Load l = load(g.offsets, read);
  const double out = double(g.w.rows) / double(g.experts), in = double(g.w.cols);
  const double row = double(g.x.cols * size_of(g.x.dtype) + g.y.cols * size_of(g.y.dtype));
  return product(l.rows, out, in, g.w, l.rows * row + bytes(g.w) * l.busy / double(g.experts),
                 fmt::format("{} x {} x {}, {} experts", l.rows, g.input_grad ? in : out,
                             g.input_grad ? out : in, g.experts));
}

Cost cost_of(const GroupedWeightGrad& g, const ReadIndices& read) {
  const Load l = load(g.offsets, read);
  const bool transposed = g.dy.dtype == DType::e4m3;
  const int64_t out = transposed ? g.dy.rows : g.dy.cols, in = transposed ? g.x.rows : g.x.cols;
  const double row = double(in * size_of(g.x.dtype) + out * size_of(g.dy.dtype));
  return product(double(out), double(in), l.rows, g.x, l.rows * row + output(g.dw, g.accumulate),
                 fmt::format("{} x {} x {}, {} experts", out, in, l.rows, g.experts));
}

Cost cost_of(const HeadGemm& g, const ReadIndices&) {
  const double rows = double(g.x.rows), heads = double(g.heads);
  const double in = double(g.trans_w ? g.w.cols : g.w_rows), out = double(g.trans_w ? g.w_rows : g.w.cols);
  const double weights = heads * double(g.w_rows * g.w.cols * size_of(g.w.dtype));
  const double row = heads * (in * size_of(g.x.dtype) + out * size_of(g.y.dtype));
  return product(rows * heads, out, in, g.w, weights + rows * row,
                 fmt::format("{} x {} x {}, {} heads", rows, out, in, heads));
}

Cost cost_of(const AttentionForward& a, const ReadIndices& read) {
  const Pairs p = pairs(a.shape, read);
  const double width = double(a.shape.nope + a.shape.rope), value = double(a.shape.value);
  return {.kind = CostKind::attention,
          .flops = 2 * p.pairs * double(a.shape.heads) * (width + value),
          .bytes = bytes({&a.q, &a.kv, &a.k_rope, &a.o, &a.lse}),
          .shape = attention_label(a.shape, p, a.q)};
}

// Five products: s and dk, dq over N + P numbers, dp and dv over U.
Cost cost_of(const AttentionBackward& a, const ReadIndices& read) {
  const Pairs p = pairs(a.shape, read);
  const double width = double(a.shape.nope + a.shape.rope), value = double(a.shape.value);
  return {.kind = CostKind::attention,
          .flops = 2 * p.pairs * double(a.shape.heads) * (3 * width + 2 * value),
          .bytes = bytes({&a.q, &a.kv, &a.k_rope, &a.o, &a.lse, &a.d_o, &a.dq, &a.dkv, &a.dk_rope}),
          .shape = attention_label(a.shape, p, a.q)};
}

Cost cost_of(const LatentPlan& p, const ReadIndices&) {
  return memory(p.kv_lens, bytes({&p.kv_lens, &p.q_starts}));
}
Cost cost_of(const LatentAttention& a, const ReadIndices& read) {
  const std::vector<int32_t> lens = read(a.kv_lens), starts = read(a.q_starts);
  double seen = 0, cached = 0;
  for (size_t s = 0; s < lens.size() && s + 1 < starts.size(); ++s) {
    const double n = starts[s + 1] - starts[s];
    seen += n * lens[s] - n * (n - 1) / 2;
    cached += n > 0 ? lens[s] : 0;
  }
  const double width = double(a.latent + a.rope);
  return {.kind = CostKind::attention,
          .flops = 2 * seen * double(a.heads) * (width + double(a.latent)),
          .bytes = cached * double(a.cache.cols * size_of(a.cache.dtype)) + bytes({&a.q_latent, &a.o_latent}) +
                   double(a.q_rope.rows * a.heads * a.rope * size_of(a.q_rope.dtype)),
          .shape = fmt::format("{} rows, {} tokens, {} heads of {}/{} {}", a.q_latent.rows, cached, a.heads,
                               width, a.latent, name_of(a.cache.dtype))};
}
Cost cost_of(const LatentAppend& a, const ReadIndices&) {
  const double turned = a.q ? 2 * double(a.q.rows * a.heads * a.rope * size_of(a.q.dtype)) : 0;
  return memory(a.x, bytes(a.x) + double(a.x.rows * a.cache.cols * size_of(a.cache.dtype)) + turned);
}
Cost cost_of(const LatentGather& g, const ReadIndices&) {
  return memory(g.y, bytes(g.y) + double(g.y.rows * g.cache.cols));
}
Cost cost_of(const NormGemm& g, const ReadIndices&) {
  const double t = double(g.x.rows), d = double(g.x.cols), n = double(g.w.rows + (g.w2 ? g.w2.rows : 0));
  return {.kind = CostKind::product,
          .flops = 2 * t * n * d,
          .bytes = bytes({&g.x, &g.gain, &g.y, &g.w, &g.c, &g.w2, &g.c2}),
          .shape = fmt::format("{} x {} x {} {}", t, n, d, name_of(g.w.dtype))};
}
Cost cost_of(const LatentQuery& q, const ReadIndices& read) {
  Cost cost = cost_of(q.project, read);
  for (const Cost& part : {cost_of(q.append, read), cost_of(q.absorb, read)})
    cost.flops += part.flops, cost.bytes += part.bytes;
  return cost;
}
Cost cost_of(const Route& r, const ReadIndices& read) {
  Cost cost = cost_of(r.project, read);
  cost.bytes += cost_of(r.choose, read).bytes;
  return cost;
}
Cost cost_of(const ExpertMlp& e, const ReadIndices& read) {
  const std::vector<int32_t> chosen = read(e.indices);
  const double used = double(std::set<int32_t>(chosen.begin(), chosen.end()).size()), t = double(e.x.rows),
               width = double(e.x.cols), hidden = double(e.down.cols),
               shared = e.shared_down ? double(e.shared_down.cols) : 0;
  const double of_expert = 3 * width * hidden, of_shared = 3 * width * shared;  // numbers
  return {.kind = CostKind::product,
          .flops = 2 * (double(chosen.size()) * of_expert + t * of_shared),
          .bytes = used * of_expert * size_of(e.gate_up.dtype) + bytes({&e.shared_gate_up, &e.shared_down}) +
                   bytes({&e.x, &e.residual, &e.y, &e.indices, &e.weights}),
          .shape = fmt::format("{} x {} x {}, {} of {} experts {}", t, width, hidden, e.indices.cols, e.experts,
                               name_of(e.gate_up.dtype))};
}

Cost cost_of(const RmsNormForward& n, const ReadIndices&) {
  return memory(n.x, bytes({&n.x, &n.gain, &n.y, &n.quantized, &n.r}));
}
Cost cost_of(const RmsNormBackward& n, const ReadIndices&) {
  return memory(n.x,
                bytes({&n.dy, &n.x, &n.gain, &n.r, &n.residual, &n.dx}) + output(n.dgain, n.accumulate_gain));
}
Cost cost_of(const Rope& r, const ReadIndices&) {
  return {.bytes = 2 * double(r.x.rows * r.heads * r.width * size_of(r.x.dtype)),
          .shape = fmt::format("{} x {} heads of {} {}", r.x.rows, r.heads, r.width, name_of(r.x.dtype))};
}
Cost cost_of(const SwigluForward& s, const ReadIndices&) {
  return memory(s.y ? s.y : s.quantized, bytes({&s.x, &s.y, &s.quantized, &s.cached}));
}
Cost cost_of(const SwigluBackward& s, const ReadIndices&) {
  if (s.transposed) return memory(s.dy, bytes({&s.dy, &s.x, &s.quantized, &s.transposed, &s.y_transposed}));
  return memory(s.dy, bytes({&s.dy, &s.x, &s.dx, &s.y, &s.quantized}));
}
Cost cost_of(const GateForward& g, const ReadIndices&) {
  return memory(g.logits, bytes({&g.logits, &g.scores, &g.indices, &g.weights, &g.counts}));
}
Cost cost_of(const GateBackward& g, const ReadIndices&) {
  return memory(g.dlogits, bytes({&g.dweights, &g.scores, &g.indices, &g.dlogits}));
}
Cost cost_of(const BalanceLoss& b, const ReadIndices&) {
  return memory(b.scores, bytes({&b.scores, &b.fractions, &b.loss}));
}
Cost cost_of(const CountGroups& g, const ReadIndices&) {
  return memory(g.indices, bytes({&g.indices, &g.visits}));
}
Cost cost_of(const UpdateGateBias& u, const ReadIndices&) {
  return memory(u.bias, bytes(u.counts) + 2 * bytes(u.bias));
}
Cost cost_of(const PermutePlan& p, const ReadIndices&) {
  return memory(p.indices, bytes({&p.indices, &p.row_of, &p.offsets}));
}
Cost cost_of(const Permute& p, const ReadIndices&) { return memory(p.y, bytes({&p.x, &p.row_of, &p.y})); }
Cost cost_of(const Unpermute& u, const ReadIndices&) {
  return memory(u.y, bytes({&u.x, &u.row_of, &u.weights, &u.residual, &u.shared, &u.y}));
}
Cost cost_of(const UnpermuteBackward& u, const ReadIndices&) {
  return memory(u.dy, bytes({&u.dy, &u.x, &u.row_of, &u.weights, &u.dx, &u.dweights}));
}
Cost cost_of(const GatherRows& g, const ReadIndices&) {
  return memory(g.y, double(g.rows.size() * g.x.cols * size_of(g.x.dtype)) + bytes({&g.rows, &g.y}));
}
Cost cost_of(const ScatterRows& s, const ReadIndices&) {
  return memory(s.x, bytes({&s.x, &s.rows}) + double(s.x.size() * size_of(s.y.dtype)));
}
Cost cost_of(const ScatterAddRows& s, const ReadIndices&) {
  const double touched = 2 * double(s.x.size() * size_of(s.y.dtype));
  return memory(
      s.x, bytes({&s.x, &s.rows}) + (s.accumulate == Accumulate::overwrite ? bytes(s.y) + touched : touched));
}
Cost cost_of(const CrossEntropy& c, const ReadIndices&) {
  return memory(c.logits, bytes({&c.logits, &c.targets, &c.loss}) +
                              (c.gradient ? bytes(c.dlogits ? c.dlogits : c.logits) : 0));
}
Cost cost_of(const Sample& s, const ReadIndices&) { return memory(s.logits, bytes(s.logits)); }
Cost cost_of(const Fill& f, const ReadIndices&) { return memory(f.y, bytes(f.y)); }
Cost cost_of(const Cast& c, const ReadIndices&) { return memory(c.y, bytes({&c.x, &c.y})); }
Cost cost_of(const Add& a, const ReadIndices&) { return memory(a.y, bytes({&a.a, &a.b, &a.y})); }
Cost cost_of(const SumSquares& s, const ReadIndices&) { return memory(s.x, bytes(s.x)); }
Cost cost_of(const AdamW& a, const ReadIndices&) {
  return memory(a.master, 2 * bytes({&a.master, &a.m, &a.v}) + bytes({&a.grad, &a.weight}));
}
Cost cost_of(const Quantize& q, const ReadIndices&) {
  return memory(q.x, bytes({&q.x, &q.y}) + (q.transposed ? double(q.x.size()) : 0));
}
Cost cost_of(const QuantizeWeight& q, const ReadIndices&) {
  return memory(q.x, bytes({&q.x, &q.y, &q.transposed}));
}
Cost cost_of(const PadOffsets& p, const ReadIndices&) {
  return memory(p.offsets, bytes({&p.offsets, &p.padded}));
}
Cost cost_of(const PackE5m6& p, const ReadIndices&) {
  return memory(p.x, bytes({&p.x, &p.packed, &p.scales}));
}
Cost cost_of(const UnpackE5m6& p, const ReadIndices&) {
  return memory(p.y, bytes({&p.y, &p.packed, &p.scales}));
}

}  // namespace cachalot
