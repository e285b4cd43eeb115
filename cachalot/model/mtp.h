// One depth of multi-token prediction, V3 report section 2.2. At position i, depth k:
//   x = W_eh [ enorm(Emb(t_(i+k))) ; hnorm(h^(k-1)_i) ]     [2D] -> [D]
//   h^k = head_norm(block(x)),  logits = shared head (h^k), predicting t_(i+k+1)
// h^0 is the trunk's output after its final norm. Embedding and head are the main model's memory.
#pragma once

#include "model/block.h"
#include "nn/embedding.h"

namespace cachalot {

struct Mtp {
  RmsNorm enorm, hnorm, head_norm;
  Linear eh_proj;  // [D, 2D]; bf16 in the fp8 recipe
  Block block;
  const Embedding* embedding = nullptr;

  struct State {
    Tensor embedded, concatenated;  // [T, D], [T, 2D]
    RmsNorm::Saved enorm, hnorm, head_norm;
    Block::State block;  // block.y is what `mtp.K.hidden` shows
    Tensor hidden;       // h^k [T, D]
    Tensor d_previous;   // gradient for h^(k-1), written by backward
  };

  // `previous` [T, D]: h^(k-1) of the same rows.
  State forward(Stream& s, Arena& arena, const TokenBatch& batch, Tensor previous,
                const Block::Options& options) const;
  // `dhidden`: gradient for h^k. The embedding's gradient is added or overwritten by `embedding_mode`.
  void backward(Stream& s, Arena& arena, const TokenBatch& batch, State& state, Tensor dhidden,
                double balance_factor, Accumulate mode, Accumulate embedding_mode) const;
};

}  // namespace cachalot
