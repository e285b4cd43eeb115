#include "model/block.h"

namespace cachalot {

Block::State Block::forward_attention(Stream& s, Arena& arena, const TokenBatch& batch, Tensor x,
                                      const Options& options) const {
  State state;
  state.x = x;
  state.y = options.y;
  Tensor attention_in = arena.take_like(x), attention_out = arena.take_like(x);
  state.input_norm = input_norm.forward(s, arena, x, attention_in);
  state.attention = attention.forward(s, arena, batch, options.cache, attention_in, attention_out);
  state.x1 = arena.take_like(x);
  on(s).add({.a = x, .b = attention_out, .y = state.x1});
  state.normed = arena.take_like(x);
  state.post_norm = post_norm.forward(s, arena, state.x1, state.normed);
  if (gate)
    state.routing = gate->forward(s, arena, batch, state.normed, options.replay, options.with_balance);
  return state;
}

void Block::forward_dispatch(Stream& s, Arena& arena, State& state) const {
  if (!experts) return;
  state.plan = dispatch->plan(s, arena, state.routing.indices);
  state.rows = arena.take(recipe.act, state.routing.indices.size(), state.x.cols);
  dispatch->dispatch(s, state.plan, state.normed, state.rows);
}

void Block::forward_mlp(Stream& s, Arena& arena, State& state) const {
  if (mlp) {
    state.mlp_out = arena.take_like(state.x);
    state.mlp = mlp->forward(s, arena, state.normed, state.mlp_out);
  }
  if (experts) {
    state.expert_out = arena.take_like(state.rows);
    state.experts = experts->forward(s, arena, state.rows, state.plan.offsets, state.expert_out);
  }
}

void Block::forward_combine(Stream& s, Arena& arena, State& state) const {
  if (!state.y) state.y = arena.take_like(state.x);
  if (experts)
    dispatch->combine(s, state.plan, state.expert_out, state.routing.weights, state.x1, state.mlp_out,
                      state.y);
  else on(s).add({.a = state.x1, .b = state.mlp_out, .y = state.y});
}

void Block::backward_combine(Stream& s, Arena& arena, State& state, Tensor dy) const {
  state.dy = dy;
  if (!experts) return;
  state.d_expert_out = arena.take_like(state.expert_out);
  state.d_weights = arena.take_like(state.routing.weights);
  dispatch->combine_backward(s, state.plan, dy, state.expert_out, state.routing.weights, state.d_expert_out,
                             state.d_weights);
}

void Block::backward_mlp(Stream& s, Arena& arena, State& state) const {
  state.d_normed = arena.take_like(state.x);
  if (mlp) mlp->backward_input(s, arena, state.mlp, state.dy, state.d_normed, Accumulate::overwrite);
  if (experts) {
    state.d_rows = arena.take_like(state.rows);
    experts->backward_input(s, arena, state.experts, state.d_expert_out, state.d_rows);
  }
}

void Block::backward_dispatch(Stream& s, Arena&, State& state) const {
  if (experts)
    dispatch->dispatch_backward(s, state.plan, state.d_rows, mlp ? state.d_normed : Tensor{}, state.d_normed);
}

void Block::backward_attention(Stream& s, Arena& arena, const TokenBatch& batch, State& state,
                               double balance_factor, Accumulate mode) const {
  if (gate)
    gate->backward(s, arena, batch, state.routing, state.d_weights, balance_factor, state.d_normed, mode);
  state.dx1 = arena.take_like(state.x);
  post_norm.backward(s, state.post_norm, state.d_normed, state.dy, state.dx1, mode);
  Tensor d_attention_in = arena.take_like(state.x);
  attention.backward_input(s, arena, batch, state.attention, state.dx1, d_attention_in, mode);
  state.dx = arena.take_like(state.x);
  input_norm.backward(s, state.input_norm, d_attention_in, state.dx1, state.dx, mode);
}

void Block::weight_mlp(Stream& s, const State& state, Accumulate mode) const {
  if (mlp) mlp->backward_weight(s, state.mlp, mode);
  if (experts) experts->backward_weight(s, state.experts, mode);
}

void Block::weight_attention(Stream& s, const State& state, Accumulate mode) const {
  attention.backward_weight(s, state.attention, mode);
}

Block::State Block::forward(Stream& s, Arena& arena, const TokenBatch& batch, Tensor x,
                            const Options& options) const {
  State state = forward_attention(s, arena, batch, x, options);
  forward_dispatch(s, arena, state);
  forward_mlp(s, arena, state);
  forward_combine(s, arena, state);
  return state;
}

void Block::backward(Stream& s, Arena& arena, const TokenBatch& batch, State& state, Tensor dy,
                     double balance_factor, Accumulate mode) const {
  backward_combine(s, arena, state, dy);
  backward_mlp(s, arena, state);
  weight_mlp(s, state, mode);
  backward_dispatch(s, arena, state);
  backward_attention(s, arena, batch, state, balance_factor, mode);
  weight_attention(s, state, mode);
}

}  // namespace cachalot
