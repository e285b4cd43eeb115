#include "nn/gate.h"

namespace cachalot {

Gate::Routing Gate::forward(Stream& s, Arena& arena, const TokenBatch& batch, Tensor x, Tensor replay,
                            bool with_balance) const {
  const int64_t t = x.rows, experts = w.rows;
  Routing r{.x = x,
            .scores = arena.take(recipe.stat, t, experts),
            .indices = replay ? replay : arena.take(DType::i32, t, top_k),
            .weights = arena.take(recipe.stat, t, top_k),
            .counts = arena.take_vector(DType::i32, experts),
            .fractions = {},
            .balance = {},
            .dlogits = {}};
  if (with_balance) {
    r.fractions = arena.take(recipe.stat, batch.sequences, experts);
    r.balance = arena.take_vector(recipe.stat, batch.sequences);
  }
  Arena::Scope scratch(arena);
  Tensor logits = arena.take_like(r.scores);
  on(s).gemm({.a = x, .b = w, .c = logits, .trans_b = true});
  GateForward choose = choice(logits, r);
  choose.replay = bool(replay);
  on(s).gate_forward(choose);
  if (with_balance)
    on(s).balance_loss({.scores = r.scores,
                        .starts = batch.starts,
                        .fractions = r.fractions,
                        .loss = r.balance,
                        .sequences = batch.sequences,
                        .top_k = top_k});
  return r;
}

Gate::Routing Gate::decode(Stream& s, Arena& arena, const RmsNorm& norm, Tensor residual, Tensor x) const {
  const int64_t t = x.rows, experts = w.rows;
  Routing r{.x = x,
            .scores = arena.take(recipe.stat, t, experts),
            .indices = arena.take(DType::i32, t, top_k),
            .weights = arena.take(recipe.stat, t, top_k),
            .counts = {},
            .fractions = {},
            .balance = {},
            .dlogits = {}};
  Arena::Scope scratch(arena);
  Tensor logits = arena.take_like(r.scores);
  on(s).route({.project = norm.into(arena, residual, x, w, logits), .choose = choice(logits, r)});
  return r;
}

GateForward Gate::choice(Tensor logits, const Routing& r) const {
  return {.logits = logits,
          .bias = bias,
          .scores = r.scores,
          .indices = r.indices,
          .weights = r.weights,
          .counts = r.counts,
          .groups = groups,
          .topk_groups = topk_groups,
          .normalise = normalise,
          .scale = scale};
}

void Gate::backward(Stream& s, Arena& arena, const TokenBatch& batch, Routing& r, Tensor dweights,
                    double balance_factor, Tensor dx, Accumulate mode) const {
  r.dlogits = arena.take_like(r.scores);
  on(s).gate_backward({.dweights = dweights,
                       .scores = r.scores,
                       .indices = r.indices,
                       .dlogits = r.dlogits,
                       .normalise = normalise,
                       .scale = scale,
                       .balance_factor = balance_factor,
                       .starts = batch.starts,
                       .fractions = r.fractions,
                       .sequences = batch.sequences});
  on(s).gemm({.a = r.dlogits, .b = w, .c = dx, .accumulate = Accumulate::add});
  on(s).gemm({.a = r.dlogits, .b = r.x, .c = dw, .trans_a = true, .accumulate = mode});
}

}  // namespace cachalot
