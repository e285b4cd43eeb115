// Multi-head latent attention, V3 report section 2.1.1; inference/model.py class MLA.
//
// Keys and values of all H heads come from one latent of C numbers and one rotary key of P numbers a token:
// that is all the cache holds.
//   cq = norm(x W_qa)  [T, Q]                  (left out when q_lora_rank is null)
//   q  = cq W_qb       [T, H (N + P)]          last P of each head rotated
//   (ckv | kr) = x W_kva  [T, C + P]           cached = (norm(ckv) | rotate(kr))
//   (k | v) = cached[:C] W_kvb  [T, H (N + U)]
//   y = attention(q, k | kr, v) W_o
// Two forms with one set of weights: expanded (above) for training and prefill; absorbed for decoding, where
// W_kvb's key half moves into the query and its value half behind the attention, so that only the latents are
// read:
//   q_nope . (W_UK latent) = (q_nope W_UK) . latent
//     sum_j p_j (W_UV latent_j) = W_UV (sum_j p_j latent_j)
//
// fp8: the five projections multiply codes; attention itself, the cache and the absorbed products stay bf16.
// What the projection behind attention needs again for its weight gradient, and attention for its own
// backward, is kept in E5M6 (ops/quantize.h; V3 report, section 3.3.3).
#pragma once

#include <optional>

#include "config/model.h"
#include "nn/linear.h"
#include "nn/operand.h"
#include "nn/recipe.h"
#include "nn/rmsnorm.h"
#include "nn/rope.h"
#include "tensor/token_batch.h"

namespace cachalot {

struct Mla {
  int64_t heads = 0, nope = 0, rope = 0, value = 0, latent = 0;  // H, N, P, U, C
  double softmax_scale = 0;
  Recipe recipe;
  const RopeTable* table = nullptr;

  std::optional<Linear> q_a;  // W_qa [Q, D]
  RmsNorm q_a_norm;
  // fp8: the transposes of W_qa and W_kva side by side, [D, Q + C + P], or absent: then the input gradient of
  // both is one product, whose sum is rounded once.
  Tensor down_transposed{};
  Linear q_b;   // W_qb [H (N + P), Q or D]
  Linear kv_a;  // W_kva [C + P, D]
  RmsNorm kv_a_norm;
  Linear kv_b;  // W_kvb [H (N + U), C]
  Linear o;     // W_o [D, H U]

  struct Saved {
    Tensor x;    // input [T, D]; fp8: codes
    Tensor kva;  // [T, C + P]: latent and rotary key before norm and rotation
    RmsNorm::Saved q_norm, kv_norm;
    Tensor cq, q;                  // [T, Q] (fp8: codes), [T, H (N + P)] rotated
    Tensor cached;                 // [T, C + P]: what the cache gets
    Tensor latent;                 // fp8: codes of cached[:C]
    Tensor kv, attended, lse;      // [T, H (N + U)], [T, H U], [T, H]
    // Under Keep::for_recompute cq, q, cached, latent and kv are absent until recompute().
    Tensor packed, packed_scales;  // fp8: `attended` in E5M6
    // Written by backward_input for backward_weight. fp8: codes of the transpose, and so is `attended`.
    Tensor dy, dq, dcq, dkv, dkva;
  };

  // y [T, D]. `cache` (ops/latent_attention.h) is this layer's, or absent (Attend::self).
  Saved forward(Stream& s, Arena& arena, const TokenBatch& batch, Tensor cache, Tensor x, Tensor y,
                Keep keep = Keep::for_backward) const;
  // The up-projections once more, before backward_input, to the same bits; `saved.x` must hold what it held.
  void recompute(Stream& s, Arena& arena, const TokenBatch& batch, Saved& saved) const;
  // dx = gradient with respect to x (Attend::self only); overwrites. Norm gains' gradients: `mode`.
  void backward_input(Stream& s, Arena& arena, const TokenBatch& batch, Saved& saved, Tensor dy, Tensor dx,
                      Accumulate mode) const;
  void backward_weight(Stream& s, Arena& arena, const Saved& saved, Accumulate mode) const;
  // x += attention of norm(x), where nothing is kept: a decoding step (Attend::absorb, not fp8).
  void decode(Stream& s, Arena& arena, const TokenBatch& batch, Tensor cache, const RmsNorm& norm,
              Tensor x) const;

 private:
  AttentionShape shape(const TokenBatch& batch, Tensor key_starts) const;
  // From compressed query and latent: cq, q, and what the cache keeps.
  void expand(Stream& s, Arena& arena, const TokenBatch& batch, Saved& saved) const;
  void attend_expanded(Stream& s, const TokenBatch& batch, Tensor latents, Tensor key_starts,
                       const Saved& saved) const;
  // mla_decode.cc: the cache. q is turned in place.
  void append(Stream& s, const TokenBatch& batch, Tensor kva, Tensor q, Tensor cache) const;
  LatentAppend appending(const TokenBatch& batch, Tensor kva, Tensor q, Tensor cache) const;
  HeadGemm absorbing(Tensor q, Tensor q_latent) const;
  void gather(Stream& s, Tensor cache, Tensor rows, Tensor y) const;
  // From queries in the latent on.
  void attend_latents(Stream& s, Arena& arena, const TokenBatch& batch, Tensor cache, Tensor q,
                      Tensor q_latent, Tensor attended) const;
  void attend_absorbed(Stream& s, Arena& arena, const TokenBatch& batch, Tensor cache, Tensor q,
                       Tensor attended) const;
};

}  // namespace cachalot
