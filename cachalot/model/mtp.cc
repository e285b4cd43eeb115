#include "model/mtp.h"

namespace cachalot {

Mtp::State Mtp::forward(Stream& s, Arena& arena, const TokenBatch& batch, Tensor previous,
                        const Block::Options& options) const {
  const int64_t d = previous.cols;
  State state;
  state.embedded = arena.take_like(previous);
  embedding->forward(s, batch.tokens, state.embedded);
  state.concatenated = arena.take(previous.dtype, previous.rows, 2 * d);
  state.enorm = enorm.forward(s, arena, state.embedded, state.concatenated.slice_cols(0, d));
  state.hnorm = hnorm.forward(s, arena, previous, state.concatenated.slice_cols(d, d));
  Tensor x = arena.take_like(previous);
  eh_proj.forward(s, state.concatenated, x);
  state.block = block.forward(s, arena, batch, x, options);
  state.hidden = arena.take_like(previous);
  state.head_norm = head_norm.forward(s, arena, state.block.y, state.hidden);
  return state;
}

void Mtp::backward(Stream& s, Arena& arena, const TokenBatch& batch, State& state, Tensor dhidden,
                   double balance_factor, Accumulate mode, Accumulate embedding_mode) const {
  const int64_t d = dhidden.cols;
  state.d_previous = arena.take_like(dhidden);
  Arena::Scope scratch(arena);
  Tensor dy = arena.take_like(dhidden);
  head_norm.backward(s, state.head_norm, dhidden, {}, dy, mode);
  block.backward(s, arena, batch, state.block, dy, balance_factor, mode);
  Tensor d_concatenated = arena.take(dhidden.dtype, dhidden.rows, 2 * d),
         d_embedded = arena.take_like(dhidden);
  eh_proj.backward_weight(s, state.block.dx, state.concatenated, mode);
  eh_proj.backward_input(s, state.block.dx, d_concatenated);
  enorm.backward(s, state.enorm, d_concatenated.slice_cols(0, d), {}, d_embedded, mode);
  hnorm.backward(s, state.hnorm, d_concatenated.slice_cols(d, d), {}, state.d_previous, mode);
  embedding->backward_weight(s, batch.tokens, d_embedded, embedding_mode);
}

}  // namespace cachalot
