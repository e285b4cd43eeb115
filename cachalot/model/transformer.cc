#include "model/transformer.h"

#include <fmt/format.h>

namespace cachalot {

Transformer::Transformer(Stream& s, const ModelConfig& config, const ParamSet& params, int64_t positions)
    : config_(config), recipe_(params.recipe()), table_(s, config, positions, recipe_.stat) {
  const auto norm = [&](const std::string& name) {
    return RmsNorm{params.weight(name), params.gradient(name), config_.rms_norm_eps};
  };
  embedding_ = {params.weight("embed"), params.gradient("embed")};
  for (int64_t l = 0; l < config_.num_hidden_layers; ++l) blocks_.push_back(make_block(params, l));
  norm_ = norm("norm");
  head_ = {.linear = {params.weight("head"), params.gradient("head")}, .recipe = recipe_};
  for (int64_t k = 0; k < config_.num_nextn_predict_layers; ++k) {
    const std::string p = fmt::format("layers.{}.", config_.num_hidden_layers + k);
    mtp_.push_back({.enorm = norm(p + "enorm"),
                    .hnorm = norm(p + "hnorm"),
                    .head_norm = norm(p + "head_norm"),
                    .eh_proj = {params.weight(p + "eh_proj"), params.gradient(p + "eh_proj"),
                                params.transposed(p + "eh_proj")},
                    .block = make_block(params, config_.num_hidden_layers + k),
                    .embedding = &embedding_});
  }
}

Block Transformer::make_block(const ParamSet& params, int64_t layer) const {
  const ModelConfig& c = config_;
  const std::string p = fmt::format("layers.{}.", layer);
  const auto linear = [&](const std::string& name) {
    return Linear{params.weight(p + name), params.gradient(p + name), params.transposed(p + name)};
  };
  const auto norm = [&](const std::string& name) {
    return RmsNorm{params.weight(p + name), params.gradient(p + name), c.rms_norm_eps};
  };
  const auto swiglu = [&](const std::string& name) {
    return SwigluMlp{linear(name + ".gate_up"), linear(name + ".down"), recipe_};
  };
  Block b;
  b.recipe = recipe_;
  b.input_norm = norm("input_norm");
  b.post_norm = norm("post_norm");
  Mla& a = b.attention;
  a.heads = c.num_attention_heads;
  a.nope = c.qk_nope_head_dim;
  a.rope = c.qk_rope_head_dim;
  a.value = c.v_head_dim;
  a.latent = c.kv_lora_rank;
  a.softmax_scale = c.softmax_scale();
  a.recipe = recipe_;
  a.table = &table_;
  if (c.q_lora_rank) {
    a.q_a = linear("attn.q_a");
    a.q_a_norm = norm("attn.q_a_norm");
  }
  a.q_b = linear("attn.q_b");
  a.kv_a = linear("attn.kv_a");
  if (c.q_lora_rank) a.down_transposed = params.transposed_both(p + "attn.q_a", p + "attn.kv_a");
  a.kv_a_norm = norm("attn.kv_a_norm");
  a.kv_b = linear("attn.kv_b");
  a.o = linear("attn.o");
  if (!c.has_experts(layer)) {
    b.mlp = swiglu("mlp");
    return b;
  }
  b.gate = Gate{.w = params.weight(p + "mlp.gate"),
                .dw = params.gradient(p + "mlp.gate"),
                .bias = params.weight(p + "mlp.gate_bias"),
                .groups = c.n_group,
                .topk_groups = c.topk_group,
                .top_k = c.num_experts_per_tok,
                .normalise = c.norm_topk_prob,
                .scale = c.routed_scaling_factor,
                .recipe = recipe_};
  b.dispatch.emplace(c.n_routed_experts);
  b.experts = Experts{.experts = c.n_routed_experts,
                      .gate_up = params.weight(p + "mlp.experts.gate_up"),
                      .d_gate_up = params.gradient(p + "mlp.experts.gate_up"),
                      .down = params.weight(p + "mlp.experts.down"),
                      .d_down = params.gradient(p + "mlp.experts.down"),
                      .gate_up_transposed = params.transposed(p + "mlp.experts.gate_up"),
                      .down_transposed = params.transposed(p + "mlp.experts.down"),
                      .recipe = recipe_};
  if (c.n_shared_experts > 0) b.mlp = swiglu("mlp.shared");
  return b;
}

Block::Options Transformer::block_options(int64_t layer, const Options& options) const {
  return {.cache = options.caches.empty() ? Tensor{} : options.caches[layer],
          .replay = options.replay.empty() ? Tensor{} : options.replay[layer],
          .with_balance = options.with_balance,
          .y = {},
          .normed = {},
          .keep = !options.keep_states ? Keep::nothing
                  : options.recompute  ? Keep::for_recompute
                                       : Keep::for_backward};
}

Transformer::State Transformer::forward(Stream& s, Arena& arena, const TokenBatch& batch,
                                        const Options& options) const {
  State state;
  state.embedded = arena.take(recipe_.act, batch.rows, config_.hidden_size);
  embedding_.forward(s, batch.tokens, state.embedded);
  Tensor x = state.embedded;
  Tensor y = options.keep_states ? Tensor{} : arena.take_like(x);
  Block::Normed shared;  // the last block's, which has a router if any has one
  if (options.keep_states && options.recompute) shared = blocks_.back().take_normed(arena, batch.rows);
  Tensor expert_out;  // not needed behind a block
  if (options.keep_states && config_.has_experts(config_.num_hidden_layers - 1))
    expert_out = arena.take(recipe_.act, batch.rows * config_.num_experts_per_tok, config_.hidden_size);
  const bool decode = batch.attend == Attend::absorb && !recipe_.fp8 && !options.keep_states && options.replay.empty();
  for (size_t l = 0; l < blocks_.size(); ++l) {
    if (decode) {
      blocks_[l].decode(s, arena, batch, options.caches[l], x);
    } else if (options.keep_states) {
      Block::Options of_block = block_options(int64_t(l), options);
      of_block.normed = shared;
      of_block.expert_out = expert_out;
      state.blocks.push_back(blocks_[l].forward(s, arena, batch, x, of_block));
      x = state.blocks.back().y;
    } else {
      Arena::Scope scratch(arena);
      Block::Options to_y = block_options(int64_t(l), options);
      to_y.y = y;
      blocks_[l].forward(s, arena, batch, x, to_y);
      std::swap(x, y);
    }
  }
  state.hidden = options.hidden ? options.hidden : arena.take_like(x);
  state.norm = norm_.forward(s, arena, x, state.hidden);
  return state;
}

void Transformer::backward(Stream& s, Arena& arena, const TokenBatch& batch, State& state, Tensor dhidden,
                           double balance_factor, Accumulate mode, Accumulate embedding_mode) const {
  Tensor dy = arena.take_like(dhidden), dx = arena.take_like(dhidden);
  norm_.backward(s, state.norm, dhidden, {}, dy, mode);
  for (size_t l = blocks_.size(); l-- > 0;) {
    Arena::Scope scratch(arena);  // of a block's backward nothing but dx is needed after it
    state.blocks[l].dx = dx;
    blocks_[l].backward(s, arena, batch, state.blocks[l], dy, balance_factor, mode);
    std::swap(dy, dx);
  }
  state.dembedded = dy;
  embedding_.backward_weight(s, batch.tokens, dy, embedding_mode);
}

Mtp::State Transformer::forward_mtp(Stream& s, Arena& arena, const TokenBatch& batch, int64_t depth,
                                    Tensor previous, const Options& options) const {
  CHECK(depth >= 1 && depth <= int64_t(mtp_.size()));
  return mtp_[depth - 1].forward(s, arena, batch, previous,
                                 block_options(config_.num_hidden_layers + depth - 1, options));
}

}  // namespace cachalot
