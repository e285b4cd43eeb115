// The router: which experts a token goes to (ops/gate.h). Everything in stat format, in every recipe.
#pragma once

#include "backend/buffer.h"
#include "config/model.h"
#include "nn/recipe.h"
#include "nn/rmsnorm.h"
#include "tensor/token_batch.h"

namespace cachalot {

struct Gate {
  Tensor w, dw;                                    // [E, D] stat
  Tensor bias;                                     // f32 [1, E]: selection only, no gradient
  int64_t groups = 1, topk_groups = 1, top_k = 1;  // G, topk_group, K
  bool normalise = true;
  double scale = 1;
  Recipe recipe;

  struct Routing {
    Tensor x;                         // input [T, D]
    Tensor scores, indices, weights;  // [T, E], i32 [T, K] ascending, [T, K]
    Tensor counts;                    // i32 [1, E]: tokens an expert got in this micro-batch
    Tensor fractions, balance;        // [S, E], [1, S]: sequence-wise balance loss, when asked for
    Tensor dlogits;                   // written by backward
  };
  // `replay` (i32 [T, K], ascending, or absent): another run's choices.
  Routing forward(Stream& s, Arena& arena, const TokenBatch& batch, Tensor x, Tensor replay,
                  bool with_balance) const;
  // x = norm(residual) and its routing, where nothing is kept for a backward.
  Routing decode(Stream& s, Arena& arena, const RmsNorm& norm, Tensor residual, Tensor x) const;
  // dx += dlogits W; dW (=, +=) dlogits^T x: small, so both here. balance_factor: alpha / sequences in the
  // batch.
  void backward(Stream& s, Arena& arena, const TokenBatch& batch, Routing& routing, Tensor dweights,
                double balance_factor, Tensor dx, Accumulate mode) const;

 private:
  GateForward choice(Tensor logits, const Routing& r) const;
};

}  // namespace cachalot
