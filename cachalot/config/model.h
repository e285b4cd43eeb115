// The model's hyper-parameters under their Hugging Face names. Defaults: DeepSeek-V3, 671B (report section
// 4.2, inference/configs/config_671B.json of the published code).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"

namespace cachalot {

struct YarnConfig {  // Peng et al., arXiv:2309.00071; V3 report section 4.3
  double factor = 40;
  int64_t original_max_position_embeddings = 4096;
  double beta_fast = 32, beta_slow = 1;
  double mscale = 1, mscale_all_dim = 1;
  bool operator==(const YarnConfig&) const = default;
};

struct ModelConfig {
  int64_t vocab_size = 129280;                   // V
  int64_t hidden_size = 7168;                    // D
  int64_t intermediate_size = 18432;             // F: width of a dense MLP
  int64_t moe_intermediate_size = 2048;          // I: width of an expert
  int64_t num_hidden_layers = 61;                // L
  int64_t first_k_dense_replace = 3;             // layers below it have a dense MLP, the others experts
  int64_t num_nextn_predict_layers = 1;          // MTP depths, layers L, L+1, ... of the checkpoint
  int64_t num_attention_heads = 128;             // H
  int64_t q_lora_rank = 1536;                    // Q: width of the compressed query; 0 = null, none
  int64_t kv_lora_rank = 512;                    // C: width of the compressed key-value
  int64_t qk_nope_head_dim = 128;                // N
  int64_t qk_rope_head_dim = 64;                 // P
  int64_t v_head_dim = 128;                      // U
  int64_t n_routed_experts = 256;                // E; 0: no layer has experts
  int64_t n_shared_experts = 1;                  // Z: the shared MLP is Z * I wide
  int64_t num_experts_per_tok = 8;               // K
  int64_t n_group = 8, topk_group = 4;           // G groups of experts, of which a token may use topk_group
  bool norm_topk_prob = true;
  double routed_scaling_factor = 2.5;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  std::optional<YarnConfig> yarn = std::nullopt; // "rope_scaling", in transformers 5 "rope_parameters"
  int64_t max_position_embeddings = 163840;
  double initializer_range = 0.006;              // V3 report section 4.2
  int64_t bos_token_id = 0, eos_token_id = 1;

  // How a checkpoint stores the weights: BF16, F32, or E4M3 with 128 x 128 scales ("quantization_config").
  bool fp8 = false;
  bool fp8_power_of_two_scales = false;          // "scale_fmt": "ue8m0"

  int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  int64_t cached_per_token() const { return kv_lora_rank + qk_rope_head_dim; }  // numbers a token and layer
  int64_t shared_width() const { return n_shared_experts * moe_intermediate_size; }
  bool has_experts(int64_t layer) const { return n_routed_experts > 0 && layer >= first_k_dense_replace; }
  int64_t layers_with_mtp() const { return num_hidden_layers + num_nextn_predict_layers; }
  // qk_head_dim^-1/2, times m^2 with m = 0.1 mscale_all_dim ln(factor) + 1 under YaRN.
  double softmax_scale() const;

  // Throws Error naming the first field that contradicts another, with the values. What passes is also small
  // enough for 64-bit sizes: no product of dimensions overflows, the parameter table fits in memory.
  void validate(const std::string& where) const;

  bool operator==(const ModelConfig&) const = default;
};

// From a config.json, as DeepSeek publishes it or as transformers 5 rewrites it; validated. Keys that do not
// change the computation are ignored; keys that ask for something cachalot does not compute (softmax scoring,
// tied embeddings, attention bias, ...) are refused by name. Absent keys: a shape or a router setting is
// missing and an Error; the others take the published configuration class's default, num_nextn_predict_layers
// 0. `where` (the path) starts every message.
ModelConfig parse_model_config(const Json& json, const std::string& where);
ModelConfig load_model_config(const std::string& model_directory);  // reads <model_directory>/config.json

// A config.json as DeepSeek publishes it; torch_dtype is "bfloat16" or "float32".
Json model_config_json(const ModelConfig& config, const std::string& torch_dtype);

}  // namespace cachalot
