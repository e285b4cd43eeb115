#include "model/block.h"

namespace cachalot {

Block::Normed Block::take_normed(Arena& arena, int64_t rows) const {
  const int64_t d = input_norm.gain.cols;
  const auto take = [&] { return recipe.fp8 ? take_row_tiles(arena, rows, d) : arena.take(recipe.act, rows, d); };
  Normed n;
  n.attention_in = take();
  if (gate || !recipe.fp8) n.normed = arena.take(recipe.act, rows, d);  // the router reads more than codes
  n.mlp_in = recipe.fp8 ? take() : n.normed;
  return n;
}

void Block::norm_input(Stream& s, const State& state) const {
  const Tensor y = state.normed.attention_in;
  if (recipe.fp8) input_norm.compute(s, state.input_norm, {}, y, recipe.power_of_two);
  else input_norm.compute(s, state.input_norm, y);
}

void Block::norm_attended(Stream& s, const State& state) const {
  const Normed& n = state.normed;
  if (recipe.fp8) post_norm.compute(s, state.post_norm, gate ? n.normed : Tensor{}, n.mlp_in, /*power_of_two=*/true);
  else post_norm.compute(s, state.post_norm, n.normed);
}

Block::State Block::forward_attention(Stream& s, Arena& arena, const TokenBatch& batch, Tensor x,
                                      const Options& options) const {
  State state;
  state.x = x;
  state.y = options.y;
  state.expert_out = options.expert_out;
  state.keep = options.keep;
  state.normed = options.normed.attention_in ? options.normed : take_normed(arena, x.rows);
  state.input_norm = {x, arena.take_vector(input_norm.gain.dtype, x.rows)};
  norm_input(s, state);
  state.x1 = arena.take_like(x);
  state.attention =
      attention.forward(s, arena, batch, options.cache, state.normed.attention_in, state.x1, options.keep);
  on(s).add({.a = x, .b = state.x1, .y = state.x1});
  state.post_norm = {state.x1, arena.take_vector(post_norm.gain.dtype, x.rows)};
  norm_attended(s, state);
  if (gate)
    state.routing = gate->forward(s, arena, batch, state.normed.normed, options.replay, options.with_balance);
  return state;
}

void Block::forward_dispatch(Stream& s, Arena& arena, State& state) const {
  if (!experts) return;
  state.plan = dispatch->plan(s, arena, state.routing.indices);
  const int64_t rows = state.routing.indices.size(), cols = state.x.cols;
  state.rows = recipe.fp8 ? take_row_tiles(arena, rows, cols) : arena.take(recipe.act, rows, cols);
  dispatch->dispatch(s, state.plan, state.normed.mlp_in, state.rows);
}

void Block::forward_mlp(Stream& s, Arena& arena, State& state) const {
  if (!state.y) state.y = arena.take_like(state.x);
  if (mlp) state.mlp = mlp->forward(s, arena, state.normed.mlp_in, state.y, state.keep);
  if (experts) {
    if (!state.expert_out) state.expert_out = arena.take(recipe.act, state.rows.rows, state.rows.cols);
    state.experts = experts->forward(s, arena, state.rows, state.plan.offsets, state.expert_out, state.keep);
  }
}

void Block::forward_combine(Stream& s, Arena&, State& state) const {
  const Tensor mlp_out = mlp ? state.y : Tensor{};
  if (experts)
    dispatch->combine(s, state.plan, state.expert_out, state.routing.weights, state.x1, mlp_out, state.y);
  else on(s).add({.a = state.x1, .b = mlp_out, .y = state.y});
}

void Block::backward_combine(Stream& s, Arena& arena, State& state, Tensor dy) const {
  state.dy = dy;
  if (!experts) return;
  const int64_t rows = state.routing.indices.size(), cols = dy.cols;
  state.dy_rows = recipe.fp8 ? take_row_tiles(arena, rows, cols) : arena.take(recipe.act, rows, cols);
  state.row_weights = arena.take_vector(recipe.stat, rows);
  Tensor codes = dy;
  if (recipe.fp8) {
    codes = take_row_tiles(arena, dy.rows, cols);
    on(s).quantize({.x = dy, .y = codes, .power_of_two = true});
  }
  dispatch->dispatch(s, state.plan, codes, state.dy_rows);
  dispatch->dispatch_numbers(s, state.plan, state.routing.weights, state.row_weights);
}

void Block::backward_mlp(Stream& s, Arena& arena, State& state) const {
  if (state.keep == Keep::for_recompute) norm_attended(s, state);
  state.d_normed = arena.take_like(state.x);
  if (mlp) mlp->backward_input(s, arena, state.mlp, state.dy, state.d_normed, Accumulate::overwrite);
  if (experts) {
    state.d_rows = arena.take(recipe.act, state.rows.rows, state.rows.cols);
    state.d_row_weights = arena.take_like(state.row_weights);
    experts->backward_input(s, arena, state.experts, state.dy_rows, state.row_weights, state.d_rows,
                            state.d_row_weights);
  }
}

void Block::backward_dispatch(Stream& s, Arena& arena, State& state) const {
  if (!experts) return;
  dispatch->dispatch_backward(s, state.plan, state.d_rows, mlp ? state.d_normed : Tensor{}, state.d_normed);
  state.d_weights = arena.take_like(state.routing.weights);
  dispatch->return_numbers(s, state.plan, state.d_row_weights, state.d_weights);
}

void Block::backward_attention(Stream& s, Arena& arena, const TokenBatch& batch, State& state,
                               double balance_factor, Accumulate mode) const {
  if (gate)
    gate->backward(s, arena, batch, state.routing, state.d_weights, balance_factor, state.d_normed, mode);
  state.dx1 = arena.take_like(state.x);
  post_norm.backward(s, state.post_norm, state.d_normed, state.dy, state.dx1, mode);
  if (state.keep == Keep::for_recompute) {
    norm_input(s, state);
    attention.recompute(s, arena, batch, state.attention);
  }
  Tensor d_attention_in = arena.take_like(state.x);
  attention.backward_input(s, arena, batch, state.attention, state.dx1, d_attention_in, mode);
  if (!state.dx) state.dx = arena.take_like(state.x);
  input_norm.backward(s, state.input_norm, d_attention_in, state.dx1, state.dx, mode);
}

void Block::weight_mlp(Stream& s, Arena& arena, const State& state, Accumulate mode) const {
  if (mlp) mlp->backward_weight(s, arena, state.mlp, mode);
  if (experts) experts->backward_weight(s, arena, state.experts, mode);
}

void Block::weight_attention(Stream& s, Arena& arena, const State& state, Accumulate mode) const {
  attention.backward_weight(s, arena, state.attention, mode);
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
  weight_mlp(s, arena, state, mode);
  backward_dispatch(s, arena, state);
  backward_attention(s, arena, batch, state, balance_factor, mode);
  weight_attention(s, arena, state, mode);
}

}  // namespace cachalot
