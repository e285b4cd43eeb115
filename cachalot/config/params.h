// All parameters of a model as data, so that nobody counts them twice: loaders, savers, initialisation, the
// optimizer, gradients and plans walk this one table.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/model.h"

namespace cachalot {

// What is kept in which precision and treated how by the optimizer.
enum class ParamKind : uint8_t {
  linear,     // a matrix that FP8 checkpoints store as E4M3; decayed
  eh_proj,    // the MTP projection: a decayed matrix, BF16 in FP8 checkpoints and in the fp8 recipe
  embedding,  // token embedding: decayed, BF16 in FP8 checkpoints
  head,       // output head: decayed, BF16 in FP8 checkpoints
  gate,       // router weight [E, D]: decayed, FP32 in every recipe, BF16 in FP8 checkpoints
  gate_bias,  // e_score_correction_bias [1, E]: FP32, no gradient, moved by the balancing rule
  norm,       // RMSNorm gain [1, n]: FP32 in every recipe, not decayed
};

// One Hugging Face tensor inside a parameter: `rows` rows from `first_row`.
struct ParamView {
  std::string hf_name;
  int64_t first_row = 0, rows = 0;
  // MTP layers repeat the embedding and the head under their own names; on loading they must be equal to the
  // first view, on saving they are written again.
  bool copy = false;
};

// One allocation. Gate and up projections share one ("gate_up", gate rows above up rows), and so do the
// experts of a layer (expert 0's rows, expert 1's rows, ...): a grouped product then has one base pointer.
struct Param {
  std::string name;  // "layers.3.mlp.experts.gate_up": ours, unique
  ParamKind kind = ParamKind::linear;
  int64_t layer = -1;          // -1: outside the layers
  int64_t rows = 0, cols = 0;  // vectors are [1, n]
  int64_t part_rows = 0;       // rows of one stacked matrix (Tensor::part_rows); rows if nothing is stacked
  int64_t experts = 1;  // matrices of different inputs that are stacked: gate and up of an expert are one
  std::vector<ParamView> views;

  bool is_vector() const { return kind == ParamKind::norm || kind == ParamKind::gate_bias; }
  bool trained() const { return kind != ParamKind::gate_bias; }
  bool decayed() const { return kind != ParamKind::norm && kind != ParamKind::gate_bias; }
  // E4M3 in FP8 checkpoints and in the fp8 recipe's products: not the router, the head, MTP's projection.
  bool can_be_fp8() const { return kind == ParamKind::linear; }
  int64_t size() const { return rows * cols; }
};

// In the order of the forward pass. Names, with l the layer (MTP depth k is layer num_hidden_layers + k - 1):
//   embed                                [V, D]      model.embed_tokens.weight (+ copies of MTP layers)
//   layers.l.input_norm                  [1, D]      model.layers.l.input_layernorm.weight
//   layers.l.attn.q_a                    [Q, D]      ...self_attn.q_a_proj.weight          (when q_lora_rank)
//   layers.l.attn.q_a_norm               [1, Q]      ...self_attn.q_a_layernorm.weight     (when q_lora_rank)
//   layers.l.attn.q_b                    [H(N+P), Q] ...self_attn.q_b_proj.weight; without q_lora_rank it is
//                                        [H(N+P), D] ...self_attn.q_proj.weight
//   layers.l.attn.kv_a                   [C+P, D]    ...self_attn.kv_a_proj_with_mqa.weight
//   layers.l.attn.kv_a_norm              [1, C]      ...self_attn.kv_a_layernorm.weight
//   layers.l.attn.kv_b                   [H(N+U), C] ...self_attn.kv_b_proj.weight
//   layers.l.attn.o                      [D, HU]     ...self_attn.o_proj.weight
//   layers.l.post_norm                   [1, D]      ...post_attention_layernorm.weight
//   layers.l.mlp.gate_up                 [2F, D]     ...mlp.gate_proj.weight, ...mlp.up_proj.weight   (dense)
//   layers.l.mlp.down                    [D, F]      ...mlp.down_proj.weight                          (dense)
//   layers.l.mlp.gate                    [E, D]      ...mlp.gate.weight                             (experts)
//   layers.l.mlp.gate_bias               [1, E]      ...mlp.gate.e_score_correction_bias
//   layers.l.mlp.experts.gate_up         [E 2I, D]   ...mlp.experts.e.gate_proj.weight, .up_proj; e = 0 ...
//   layers.l.mlp.experts.down            [E D, I]    ...mlp.experts.e.down_proj.weight
//   layers.l.mlp.shared.gate_up          [2 Z I, D]  ...mlp.shared_experts.{gate,up}_proj.weight
//   layers.l.mlp.shared.down             [D, Z I]    ...mlp.shared_experts.down_proj.weight
//   norm                                 [1, D]      model.norm.weight
//   head                                 [V, D]      lm_head.weight (+ copies of MTP layers)
// and for MTP layers, before their input_norm: layers.l.enorm, layers.l.hnorm [1, D], layers.l.eh_proj
// [D, 2D]; after their MLP: layers.l.head_norm [1, D] (shared_head.norm.weight).
// part_rows: F, I, Z I for the gate_up tensors, D for experts.down, rows elsewhere.
std::vector<Param> parameter_table(const ModelConfig& config);

int64_t parameter_count(const std::vector<Param>& table);   // copies counted once, gate_bias not counted
int64_t active_parameter_count(const ModelConfig& config);  // a token's share, main model without MTP

}  // namespace cachalot
