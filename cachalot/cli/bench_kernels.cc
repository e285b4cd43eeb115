#include "cli/bench_kernels.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "backend/masked_gemm.h"
#include "base/rng.h"

namespace cachalot::cli {

namespace {

// N, K of V3's linears: q_a with kv_a, q_b, kv_b, o, an expert's gate with up, an expert's down.
struct Linear {
  int64_t n, k;
};
constexpr Linear kLinears[] = {{2112, 7168},  {24576, 1536}, {32768, 512},
                               {7168, 16384}, {4096, 7168},  {7168, 2048}};
constexpr Linear kExpertLinears[] = {{4096, 7168}, {7168, 2048}};
constexpr int64_t kCaches = int64_t(256) << 20;  // operands of this many bytes fit no cache

std::string shape_of(int64_t m, const Linear& l) { return fmt::format("{} x {} x {}", m, l.n, l.k); }

void dense(OpBench g, int64_t m, const Linear& l) {
  // Few rows end before a launch does: they are timed in a graph that goes round enough operands.
  const int copies = m > 512 ? 1 : int(1 + kCaches / (l.n * l.k));
  std::vector<Tensor> a, b, c;
  for (int i = 0; i < copies; ++i) {
    a.push_back(g.normal_row_tiles(m, l.k));
    b.push_back(g.normal_blocks(l.n, l.k, l.n));
    c.push_back(g.raw(DType::bf16, m, l.n));
  }
  const auto call = [&](Backend& backend, int i) {
    backend.gemm({.a = a[size_t(i)], .b = b[size_t(i)], .c = c[size_t(i)], .trans_b = true});
  };
  const OpTime what{.op = "gemm fp8",
                    .shape = shape_of(m, l),
                    .bytes = double(m * l.k + l.n * l.k + 2 * m * l.n),
                    .flops = 2.0 * double(m * l.n) * double(l.k)};
  g.time(what, [&](Backend& backend) { call(backend, 0); });
  if (copies > 1) g.time_in_graph(what, copies, call);
}

// `each` rows for each expert, as even as the published figures have them.
void experts(OpBench g, int64_t count, int64_t each, const Linear& l) {
  const int64_t rows = count * each;
  const Tensor offsets = g.integers(1, count + 1, [&](int64_t e) { return e * each; });
  const OpTime what{.op = "",
                    .shape = fmt::format("{} x {} rows, {} x {}", count, each, l.n, l.k),
                    .bytes = double(rows * l.k + count * l.n * l.k + 2 * rows * l.n),
                    .flops = 2.0 * double(rows * l.n) * double(l.k)};
  const auto named = [&](const char* op) {
    OpTime t = what;
    t.op = op;
    return t;
  };
  const Tensor y = g.raw(DType::bf16, rows, l.n);
  {
    const Tensor x = g.normal_row_tiles(rows, l.k), w = g.normal_blocks(count * l.n, l.k, l.n);
    g.time(named("grouped fp8"), [&](Backend& b) {
      b.grouped_gemm({.x = x, .w = w, .y = y, .offsets = offsets, .experts = count});
    });
  }
  {
    const Tensor x = g.normal(DType::bf16, rows, l.k), w = g.normal(DType::bf16, count * l.n, l.k);
    g.time(named("grouped bf16"), [&](Backend& b) {
      b.grouped_gemm({.x = x, .w = w, .y = y, .offsets = offsets, .experts = count});
    });
  }
  const Tensor dy = g.normal_row_tiles(l.n, rows), x = g.normal_row_tiles(l.k, rows),
               dw = g.raw(DType::f32, count * l.n, l.k);
  for (const Accumulate a : {Accumulate::overwrite, Accumulate::add})
    g.time(named(a == Accumulate::add ? "weight grad fp8, add" : "weight grad fp8"), [&](Backend& b) {
      b.grouped_weight_grad(
          {.dy = dy, .x = x, .dw = dw, .offsets = offsets, .experts = count, .accumulate = a});
    });
}

// `each` rows of `room` for each expert, as decoding over expert-parallel ranks has them; from a graph.
void experts_with_room(OpBench g, Backend& backend, int64_t count, int64_t each, int64_t room,
                       const Linear& l) {
  const int copies = int(1 + kCaches / (count * l.n * l.k));
  const Tensor counts = g.integers(1, count, [&](int64_t) { return each; });
  std::vector<MaskedGemm> products;
  for (int i = 0; i < copies; ++i) {
    MaskedGemm p{.x = g.normal_row_tiles(count * room, l.k),
                 .w = g.normal_blocks(count * l.n, l.k, l.n),
                 .y = g.raw(DType::bf16, count * room, l.n),
                 .counts = counts,
                 .experts = count,
                 .max_rows = room,
                 .expected_rows = each};
    if (!masked_gemm(backend, p)) return;  // no Hopper card
    products.push_back(p);
  }
  const int64_t rows = count * each;
  g.time_in_graph({.op = "masked fp8",
                   .shape = fmt::format("{} x {} rows, {} x {}", count, each, l.n, l.k),
                   .bytes = double(rows * l.k + count * l.n * l.k + 2 * rows * l.n),
                   .flops = 2.0 * double(rows * l.n) * double(l.k)},
                  copies, [&](Backend& b, int i) { masked_gemm(b, products[size_t(i)]); });
}

void training_attention(OpBench g, int64_t tokens) {
  constexpr int64_t kHeads = 128, kNope = 128, kRope = 64, kValue = 128;
  const DType act = DType::bf16;
  const Tensor starts = g.integers(1, 2, [&](int64_t i) { return i * tokens; });
  const Tensor q = g.normal(act, tokens, kHeads * (kNope + kRope)),
               kv = g.normal(act, tokens, kHeads * (kNope + kValue)), k_rope = g.normal(act, tokens, kRope),
               o = g.raw(act, tokens, kHeads * kValue), lse = g.raw(DType::f32, tokens, kHeads),
               d_o = g.normal(act, tokens, kHeads * kValue), dq = g.raw(act, q.rows, q.cols),
               dkv = g.raw(act, kv.rows, kv.cols), dk_rope = g.raw(act, tokens, kRope);
  const AttentionShape shape{.heads = kHeads,
                             .nope = kNope,
                             .rope = kRope,
                             .value = kValue,
                             .scale = 1 / std::sqrt(double(kNope + kRope)),
                             .sequences = 1,
                             .q_starts = starts,
                             .k_starts = starts};
  OpTime what{.op = "attention forward",
              .shape = fmt::format("{} tokens, {} heads, {}/{}", tokens, kHeads, kNope + kRope, kValue),
              .flops = double(tokens) * double(tokens) * double(kHeads * (kNope + kRope + kValue))};
  g.time(what, [&](Backend& b) {
    b.attention_forward({.shape = shape, .q = q, .kv = kv, .k_rope = k_rope, .o = o, .lse = lse});
  });
  what.op = "attention backward", what.flops *= 2.5;
  g.time(what, [&](Backend& b) {
    b.attention_backward({.shape = shape,
                          .q = q,
                          .kv = kv,
                          .k_rope = k_rope,
                          .o = o,
                          .lse = lse,
                          .d_o = d_o,
                          .dq = dq,
                          .dkv = dkv,
                          .dk_rope = dk_rope});
  });
}

struct Decode {
  int64_t batch = 128, queries = 1, keys = 4096, heads = 128;
  DType cache = DType::bf16;
};

// Every sequence has pages of its own, in no order, as a server that has run for a while has them.
void absorbed_attention(OpBench g, Backend& backend, const Decode& d) {
  constexpr int64_t kLatent = 512, kRope = 64, kPage = 64;
  const DType act = DType::bf16;
  const int64_t pages = (d.keys + kPage - 1) / kPage, slots = d.batch * pages * kPage,
                rows = d.batch * d.queries;
  const bool fp8 = d.cache == DType::e4m3;
  const int64_t row_bytes = fp8 ? latent_bytes(kLatent, kRope) : 2 * (kLatent + kRope);
  const Tensor cache = fp8 ? g.raw(DType::e4m3, slots, row_bytes) : g.normal(act, slots, kLatent + kRope);
  const Tensor q_latent = g.normal(act, rows, d.heads * kLatent),
               q_rope = g.normal(act, rows, d.heads * kRope), o = g.raw(act, rows, d.heads * kLatent);
  if (fp8) {  // rows as a model leaves them
    const Tensor x = g.normal(act, slots, kLatent + kRope), gain = g.constant(DType::f32, 1, kLatent, 1),
                 zeros = g.integers(1, slots, [](int64_t) { return 0; }),
                 order = g.integers(1, slots, [](int64_t i) { return i; }),
                 cos = g.constant(DType::f32, 1, kRope / 2, 1), sin = g.constant(DType::f32, 1, kRope / 2, 0);
    backend.latent_append({.x = x,
                           .gain = gain,
                           .positions = zeros,
                           .cos = cos,
                           .sin = sin,
                           .slots = order,
                           .cache = cache,
                           .latent = kLatent,
                           .rope = kRope,
                           .eps = 1e-6});
    backend.synchronize();
  }
  std::vector<int64_t> place(size_t(d.batch * pages));  // a permutation (Fisher and Yates)
  for (size_t i = 0; i < place.size(); ++i) place[i] = int64_t(i);
  for (size_t i = place.size(); i > 1; --i)
    std::swap(place[i - 1], place[size_t(random_uniform(5, 6, i) * double(i))]);
  const Tensor table = g.integers(d.batch, pages, [&](int64_t i) { return place[size_t(i)]; }),
               lens = g.integers(1, d.batch, [&](int64_t) { return d.keys; }),
               starts = g.integers(1, d.batch + 1, [&](int64_t s) { return s * d.queries; }),
               plan = g.raw(DType::i32, 1, latent_plan_size(d.batch));
  backend.latent_plan({.page_table = table,
                       .kv_lens = lens,
                       .q_starts = starts,
                       .plan = plan,
                       .cache = d.cache,
                       .rows = rows,
                       .heads = d.heads,
                       .page_size = kPage,
                       .sequences = d.batch});
  const OpTime what{.op = fp8 ? "decode fp8 cache" : "decode bf16",
                    .shape = fmt::format("{} x {} on {}, {} heads", d.batch, d.queries, d.keys, d.heads),
                    .bytes = double(d.batch * d.keys * row_bytes) + 4.0 * double(rows * d.heads * kLatent),
                    .flops = 2.0 * double(rows * d.heads) * double(d.keys) * (2 * kLatent + kRope)};
  g.time(what, [&](Backend& b) {
    b.latent_attention({.q_latent = q_latent,
                        .q_rope = q_rope,
                        .cache = cache,
                        .page_table = table,
                        .kv_lens = lens,
                        .q_starts = starts,
                        .o_latent = o,
                        .heads = d.heads,
                        .latent = kLatent,
                        .rope = kRope,
                        .q_rope_stride = kRope,
                        .page_size = kPage,
                        .sequences = d.batch,
                        .scale = 1 / std::sqrt(192.0),
                        .plan = plan});
  });
}

}  // namespace

void bench_products(Device& device, int64_t rows, const ShowTime& show) {
  Stream s(device);
  const CacheFlush flush(device);
  const auto group = [&] { return OpBench(device, s, flush, show); };
  for (const int64_t m : {int64_t(64), int64_t(128), rows})
    for (const Linear& l : kLinears) dense(group(), m, l);
  for (const auto& [count, each] :
       {std::pair<int64_t, int64_t>{4, 2 * rows}, {8, rows}, {32, rows / 4}, {32, rows / 16}})
    for (const Linear& l : kExpertLinears) experts(group(), count, std::max<int64_t>(1, each / 128) * 128, l);
  for (const int64_t count : {1, 2, 4})
    for (const Linear& l : kExpertLinears)
      experts_with_room(group(), on(s), count, std::max<int64_t>(1, rows / 4 / count), rows, l);
}

void bench_attention(Device& device, int64_t rows, const ShowTime& show) {
  Stream s(device);
  const CacheFlush flush(device);
  const auto group = [&] { return OpBench(device, s, flush, show); };
  for (const int64_t tokens : {rows, 4 * rows}) training_attention(group(), tokens);
  for (const DType cache : {DType::bf16, DType::e4m3}) {
    for (const int64_t queries : {1, 2})
      absorbed_attention(group(), on(s), {.queries = queries, .keys = rows, .cache = cache});
    for (const int64_t heads : {64, 16})
      absorbed_attention(group(), on(s), {.keys = rows, .heads = heads, .cache = cache});
    absorbed_attention(group(), on(s), {.batch = 32, .keys = 8 * rows, .cache = cache});
    absorbed_attention(group(), on(s), {.batch = 1, .keys = 16 * rows, .cache = cache});
  }
}

}  // namespace cachalot::cli
