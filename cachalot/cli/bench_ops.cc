#include "cli/bench_ops.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "base/rng.h"

namespace cachalot::cli {

namespace {

void time(OpBench& g, const std::string& op, const std::string& shape, double bytes,
          const OpBench::Call& call) {
  g.time_beside_copy({.op = op, .shape = shape, .bytes = bytes}, call);
}

constexpr int64_t kHidden = 7168, kExperts = 256, kTopK = 8, kExpertWidth = 2048, kVocabulary = 129280;
constexpr int64_t kHeads = 128, kRope = 64, kQuery = 192;
void norms(OpBench g, int64_t tokens) {
  const DType act = DType::bf16;
  const Tensor x = g.normal(act, tokens, kHidden), dy = g.normal(act, tokens, kHidden),
               more = g.normal(act, tokens, kHidden), y = g.raw(act, tokens, kHidden),
               gain = g.normal(DType::f32, 1, kHidden), dgain = g.raw(DType::f32, 1, kHidden),
               r = g.constant(DType::f32, 1, tokens, 1);
  const double bytes = 2 * double(x.size());
  const std::string shape = by(tokens, kHidden);
  time(g, "add", shape, 3 * bytes, [&](Backend& b) { b.add({.a = x, .b = dy, .y = y}); });
  time(g, "rmsnorm_forward", shape, 2 * bytes,
       [&](Backend& b) { b.rmsnorm_forward({.x = x, .gain = gain, .y = y, .r = r, .eps = 1e-6}); });
  time(g, "rmsnorm_backward", shape, 3 * bytes, [&](Backend& b) {
    b.rmsnorm_backward({.dy = dy, .x = x, .gain = gain, .r = r, .dx = y, .dgain = dgain});
  });
  time(g, "rmsnorm_backward", shape + ", residual", 4 * bytes, [&](Backend& b) {
    b.rmsnorm_backward({.dy = dy, .x = x, .gain = gain, .r = r, .residual = more, .dx = y, .dgain = dgain});
  });
  for (const int64_t width : {int64_t(1536), int64_t(512)}) {  // the latents
    const auto narrow = [&](const Tensor& t) { return make_tensor(t.data, t.dtype, tokens, width); };
    const Tensor some = make_tensor(gain.data, DType::f32, 1, width);
    time(g, "rmsnorm_forward", by(tokens, width), 4.0 * double(tokens * width), [&](Backend& b) {
      b.rmsnorm_forward({.x = narrow(x), .gain = some, .y = narrow(y), .r = r, .eps = 1e-6});
    });
  }
}

void rotations(OpBench g, int64_t tokens) {
  const Tensor q = g.normal(DType::bf16, tokens, kHeads * kQuery),
               positions = g.integers(1, tokens, [](int64_t t) { return t; }),
               cos = g.normal(DType::f32, tokens, kRope / 2), sin = g.normal(DType::f32, tokens, kRope / 2);
  time(g, "rope", fmt::format("{} x {} heads, {} of {}", tokens, kHeads, kRope, kQuery),
       4.0 * double(tokens * kHeads * kRope), [&](Backend& b) {
         b.rope({.x = q,
                 .positions = positions,
                 .cos = cos,
                 .sin = sin,
                 .heads = kHeads,
                 .stride = kQuery,
                 .offset = kQuery - kRope,
                 .width = kRope});
       });
}

void activations(OpBench g, int64_t rows) {
  const Tensor x = g.normal(DType::bf16, rows, 2 * kExpertWidth),
               dy = g.normal(DType::bf16, rows, kExpertWidth), y = g.raw(DType::bf16, rows, kExpertWidth),
               dx = g.raw(DType::bf16, rows, 2 * kExpertWidth);
  const double bytes = 2 * double(y.size());
  time(g, "swiglu_forward", by(rows, kExpertWidth), 3 * bytes,
       [&](Backend& b) { b.swiglu_forward({.x = x, .y = y}); });
  time(g, "swiglu_backward", by(rows, kExpertWidth), 5 * bytes,
       [&](Backend& b) { b.swiglu_backward({.dy = dy, .x = x, .dx = dx}); });
}

void routing(OpBench g, int64_t tokens) {
  const DType stat = DType::f32, act = DType::bf16;
  const Tensor logits = g.normal(stat, tokens, kExperts), bias = g.normal(stat, 1, kExperts, 0.1f),
               scores = g.raw(stat, tokens, kExperts), indices = g.raw(DType::i32, tokens, kTopK),
               weights = g.raw(stat, tokens, kTopK), counts = g.raw(DType::i32, 1, kExperts),
               row_of = g.raw(DType::i32, tokens, kTopK), offsets = g.raw(DType::i32, 1, kExperts + 1);
  const auto gate = [&](int64_t n) {
    return GateForward{.logits = logits.slice_rows(0, n),
                       .bias = bias,
                       .scores = scores.slice_rows(0, n),
                       .indices = indices.slice_rows(0, n),
                       .weights = weights.slice_rows(0, n),
                       .counts = counts,
                       .groups = 8,
                       .topk_groups = 4,
                       .scale = 2.5};
  };
  const auto plan = [&](int64_t n) {
    return PermutePlan{.indices = indices.slice_rows(0, n),
                       .row_of = row_of.slice_rows(0, n),
                       .offsets = offsets,
                       .experts = kExperts};
  };
  for (const int64_t n : {int64_t(1), std::min<int64_t>(128, tokens), tokens}) {
    time(g, "gate_forward", by(n, kExperts), 0, [&](Backend& b) { b.gate_forward(gate(n)); });
    time(g, "permute_plan", by(n, kTopK), 0, [&](Backend& b) { b.permute_plan(plan(n)); });
  }
  const Tensor x = g.normal(act, tokens, kHidden), shared = g.normal(act, tokens, kHidden),
               out = g.raw(act, tokens, kHidden), rows = g.normal(act, tokens * kTopK, kHidden),
               drows = g.raw(act, tokens * kTopK, kHidden), dweights = g.raw(stat, tokens, kTopK);
  const double bytes = 2 * double(x.size());
  const std::string shape = fmt::format("{} x {}, {} of {}", tokens, kHidden, kTopK, kExperts);
  time(g, "permute", shape, bytes * (1 + kTopK),
       [&](Backend& b) { b.permute({.x = x, .row_of = row_of, .y = drows}); });
  time(g, "unpermute", shape, bytes * (3 + kTopK), [&](Backend& b) {
    b.unpermute({.x = rows, .row_of = row_of, .weights = weights, .residual = x, .shared = shared, .y = out});
  });
  time(g, "unpermute_backward", shape, bytes * (1 + 2 * kTopK), [&](Backend& b) {
    b.unpermute_backward(
        {.dy = x, .x = rows, .row_of = row_of, .weights = weights, .dx = drows, .dweights = dweights});
  });
}

// Tokens as text has them: few of them often. A quarter of the vocabulary is enough for no cache to hold it.
void embeddings(OpBench g, int64_t tokens) {
  const int64_t vocabulary = kVocabulary / 4;
  const Tensor table = g.normal(DType::bf16, vocabulary, kHidden), x = g.normal(DType::bf16, tokens, kHidden),
               y = g.raw(DType::bf16, tokens, kHidden), sums = g.constant(DType::f32, vocabulary, kHidden, 0);
  std::vector<bool> met(static_cast<size_t>(vocabulary));
  const Tensor rows = g.integers(1, tokens, [&](int64_t t) {
    const double u = random_uniform(3, 4, uint64_t(t));
    const auto row = int64_t(u * u * u * u * double(vocabulary - 1));
    met[size_t(row)] = true;
    return row;
  });
  const double bytes = 2 * double(x.size()), distinct = double(std::count(met.begin(), met.end(), true));
  time(g, "gather_rows", by(tokens, kHidden), 2 * bytes,
       [&](Backend& b) { b.gather_rows({.x = table, .rows = rows, .y = y}); });
  time(g, "scatter_add_rows", fmt::format("{}, {} distinct", by(tokens, kHidden), distinct),
       bytes + 8 * distinct * double(kHidden), [&](Backend& b) {
         b.scatter_add_rows({.x = x, .rows = rows, .y = sums, .accumulate = Accumulate::add});
       });
}

void losses(OpBench g, int64_t rows) {
  const Tensor logits = g.normal(DType::f32, rows, kVocabulary, 3), loss = g.raw(DType::f32, 1, rows),
               targets = g.integers(1, rows, [](int64_t t) { return t * 97 % kVocabulary; });
  const double bytes = 4 * double(logits.size());
  time(g, "cross_entropy", by(rows, kVocabulary), bytes,
       [&](Backend& b) { b.cross_entropy({.logits = logits, .targets = targets, .loss = loss}); });
  time(g, "cross_entropy", by(rows, kVocabulary) + ", gradient", 2 * bytes, [&](Backend& b) {
    b.cross_entropy({.logits = logits, .targets = targets, .loss = loss, .gradient = true});
  });
}

void draws(OpBench g, int64_t most) {
  const Tensor logits = g.normal(DType::f32, most, kVocabulary, 3), tokens = g.raw(DType::i32, 1, most),
               positions = g.integers(1, most, [](int64_t t) { return t; });
  struct Setting {
    const char* name;
    double temperature, top_p;
    int64_t top_k;
  };
  for (const int64_t rows : {most, int64_t(1)})
    for (const Setting& s :
         {Setting{"greedy", 0, 1, 0}, Setting{"temperature 1", 1, 1, 0},
          Setting{"temperature 1, top_p 0.95", 1, 0.95, 0}, Setting{"temperature 1, top_k 50", 1, 1, 50}})
      time(g, "sample", fmt::format("{}, {}", by(rows, kVocabulary), s.name), 4 * double(rows * kVocabulary),
           [&](Backend& b) {
             b.sample({.logits = logits.slice_rows(0, rows),
                       .positions = positions.slice_cols(0, rows),
                       .tokens = tokens.slice_cols(0, rows),
                       .temperature = s.temperature,
                       .top_p = s.top_p,
                       .top_k = s.top_k});
           });
}

// FP8: activations and gradients, and what they are fused with.
void quantised_rows(OpBench g, int64_t tokens) {
  const Tensor x = g.normal(DType::bf16, tokens, kHidden), norm = g.raw(DType::bf16, tokens, kHidden),
               y = g.row_tiles(tokens, kHidden), turned = g.row_tiles(kHidden, tokens),
               gain = g.normal(DType::f32, 1, kHidden), r = g.raw(DType::f32, 1, tokens);
  const double n = double(x.size());
  const std::string shape = by(tokens, kHidden);
  time(g, "quantize", shape, 3 * n, [&](Backend& b) { b.quantize({.x = x, .y = y}); });
  time(g, "quantize", shape + ", transposed", 3 * n,
       [&](Backend& b) { b.quantize({.x = x, .transposed = turned}); });
  time(g, "quantize", shape + ", both", 4 * n,
       [&](Backend& b) { b.quantize({.x = x, .y = y, .transposed = turned}); });
  time(g, "quantize", shape + ", codes transposed", 2 * n,
       [&](Backend& b) { b.quantize({.x = y, .transposed = turned}); });
  time(g, "rmsnorm_forward", shape + ", to FP8", 3 * n, [&](Backend& b) {
    b.rmsnorm_forward({.x = x, .gain = gain, .y = {}, .r = r, .eps = 1e-6, .quantized = y});
  });
  time(g, "rmsnorm_forward", shape + ", and FP8", 5 * n, [&](Backend& b) {
    b.rmsnorm_forward({.x = x, .gain = gain, .y = norm, .r = r, .eps = 1e-6, .quantized = y});
  });
  const Tensor packed = g.raw(DType::i32, tokens, 3 * kHidden / 8),
               scales = g.raw(DType::f32, kHidden / kScaleBlock, tokens);
  time(g, "pack_e5m6", shape, 3.5 * n,
       [&](Backend& b) { b.pack_e5m6({.x = x, .packed = packed, .scales = scales}); });
  time(g, "unpack_e5m6", shape, 3.5 * n,
       [&](Backend& b) { b.unpack_e5m6({.packed = packed, .scales = scales, .y = norm}); });
}

// Rows of 32 experts, ragged, on one card of many.
void quantised_experts(OpBench g, int64_t rows) {
  constexpr int64_t kHere = 32;
  const int64_t padded = padded_rows(rows, kHere);
  const Tensor x = g.normal(DType::bf16, rows, 2 * kExpertWidth),
               dy = g.normal(DType::bf16, rows, kExpertWidth), y = g.row_tiles(rows, kExpertWidth),
               cached = g.row_tiles(rows, 2 * kExpertWidth), dx = g.row_tiles(rows, 2 * kExpertWidth),
               out = g.raw(DType::bf16, rows, kExpertWidth), turned = g.row_tiles(kExpertWidth, padded),
               pads = g.raw(DType::i32, 1, kHere + 1), offsets = g.integers(1, kHere + 1, [&](int64_t e) {
                 return e == kHere ? rows : std::min(rows, e * rows / kHere + e % 7);
               });
  const double n = double(dy.size());
  const std::string shape = by(rows, kExpertWidth);
  time(g, "pad_offsets", fmt::format("{} experts", kHere), 0,
       [&](Backend& b) { b.pad_offsets({.offsets = offsets, .padded = pads}); });
  time(g, "quantize", shape + ", transposed, experts", 3 * n,
       [&](Backend& b) { b.quantize({.x = dy, .transposed = turned, .offsets = offsets, .padded = pads}); });
  time(g, "swiglu_forward", shape + ", to FP8, x kept in FP8", 7 * n,
       [&](Backend& b) { b.swiglu_forward({.x = x, .y = {}, .quantized = y, .cached = cached}); });
  time(g, "swiglu_backward", shape + ", from and to FP8, with y", 8 * n,
       [&](Backend& b) { b.swiglu_backward({.dy = dy, .x = cached, .dx = {}, .y = out, .quantized = dx}); });
  const Tensor weights = g.constant(DType::f32, 1, rows, 1), dweights = g.raw(DType::f32, 1, rows),
               scratch = g.raw(DType::bf16, rows, 2 * kExpertWidth),
               dx_turned = g.row_tiles(2 * kExpertWidth, padded);
  time(g, "swiglu_backward", shape + ", from and to FP8, transposed, experts", 10 * n, [&](Backend& b) {
    b.swiglu_backward({.dy = dy,
                       .x = cached,
                       .dx = scratch,
                       .y = out,
                       .quantized = dx,
                       .weights = weights,
                       .dweights = dweights,
                       .transposed = dx_turned,
                       .y_transposed = turned,
                       .offsets = offsets,
                       .padded = pads});
  });
}

// Some experts' gate and up, from f32 masters.
void quantised_weights(OpBench g, int64_t experts) {
  const int64_t rows = experts * 2 * kExpertWidth;
  const Tensor w = g.normal(DType::f32, rows, kHidden), y = g.blocks(rows, kHidden, kExpertWidth),
               turned = g.blocks(experts * kHidden, 2 * kExpertWidth, kHidden);
  const double n = double(w.size());
  time(g, "quantize_weight", by(rows, kHidden) + ", f32, and transposed", 6 * n,
       [&](Backend& b) { b.quantize_weight({.x = w, .y = y, .transposed = turned, .experts = experts}); });
  time(g, "quantize_weight", by(rows, kHidden) + ", codes transposed", 2 * n,
       [&](Backend& b) { b.quantize_weight({.x = y, .transposed = turned, .experts = experts}); });
}

void optimizer(OpBench g, int64_t n) {
  const Tensor master = g.normal(DType::f32, 1, n), grad = g.normal(DType::f32, 1, n),
               m = g.normal(DType::bf16, 1, n, 0.1f), v = g.constant(DType::bf16, 1, n, 0.25),
               w = g.raw(DType::bf16, 1, n), norm = g.constant(DType::f64, 1, 1, 0);
  const std::string shape = fmt::format("{}", n);
  time(g, "sum_squares", shape, 4 * double(n), [&](Backend& b) { b.sum_squares({.x = grad, .out = norm}); });
  time(g, "cast", shape + ", f32 to bf16", 6 * double(n), [&](Backend& b) { b.cast({.x = master, .y = w}); });
  time(g, "adamw", shape, 22 * double(n), [&](Backend& b) {
    b.adamw({.master = master,
             .grad = grad,
             .m = m,
             .v = v,
             .weight = w,
             .grad_norm_squared = norm,
             .lr = 1e-4,
             .weight_decay = 0.1,
             .max_norm = 1});
  });
}

}  // namespace

void bench_ops(Device& device, int64_t tokens, const ShowTime& show) {
  Stream s(device);
  const CacheFlush flush(device);
  const auto group = [&] { return OpBench(device, s, flush, show); };
  norms(group(), tokens);
  rotations(group(), tokens);
  activations(group(), tokens * kTopK);
  routing(group(), tokens);
  embeddings(group(), tokens);
  losses(group(), std::max<int64_t>(1, tokens / 4));
  draws(group(), std::max<int64_t>(1, tokens / 32));
  quantised_rows(group(), tokens);
  quantised_experts(group(), tokens * kTopK);
  quantised_weights(group(), std::max<int64_t>(1, tokens / 512));
  optimizer(group(), tokens << 15);
}

}  // namespace cachalot::cli
