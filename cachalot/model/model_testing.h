// A small random model on any device, for tests.
#pragma once

#include "backend/testing.h"
#include "model/training_pass.h"

namespace cachalot::testing {

inline ModelConfig tiny_config() {
  ModelConfig c;
  c.vocab_size = 23, c.hidden_size = 12, c.intermediate_size = 10, c.moe_intermediate_size = 7;
  c.num_hidden_layers = 3, c.first_k_dense_replace = 1, c.num_nextn_predict_layers = 2;
  c.num_attention_heads = 2, c.q_lora_rank = 9, c.kv_lora_rank = 8, c.qk_nope_head_dim = 6,
  c.qk_rope_head_dim = 4;
  c.v_head_dim = 5, c.n_routed_experts = 8, c.n_shared_experts = 1, c.num_experts_per_tok = 3, c.n_group = 4;
  c.topk_group = 2, c.max_position_embeddings = 64, c.initializer_range = 0.3;
  c.validate("tiny_config");
  return c;
}

struct ModelRun {
  ModelRun(Device& device, const ModelConfig& config, Precision precision)
      : s(device),
        params(device, config, Recipe::of(precision), {.gradients = true}),
        arena(device, 8 << 20, "test"),
        model(s, config, params, 64) {
    initialize(s, params, config, 3);
    // Gains away from 1 and biases away from 0, or their gradients and effects would go untested.
    for (size_t i = 0; i < params.table().size(); ++i) {
      const Param& p = params.table()[i];
      if (!p.is_vector()) continue;
      std::vector<double> v(size_t(p.size()));
      for (size_t k = 0; k < v.size(); ++k)
        v[k] = p.kind == ParamKind::norm ? 1 + 0.2 * random_normal(9, i, k) : 0.05 * random_normal(9, i, k);
      const std::vector<float> f(v.begin(), v.end());
      on(s).upload(params.weight(i).dtype == DType::f64 ? static_cast<const void*>(v.data()) : f.data(),
                   params.weight(i));
    }
  }
  // Two sequences of different length.
  TrainingBatch batch(int seed = 0) {
    std::vector<int32_t> a, b;
    for (int i = 0; i < 9; ++i) a.push_back(int32_t(random_below(21, seed, i, 23)));
    for (int i = 0; i < 6; ++i) b.push_back(int32_t(random_below(22, seed, i, 23)));
    const std::vector<std::span<const int32_t>> sequences{a, b};
    return make_training_batch(s, arena, sequences, model.config().num_nextn_predict_layers);
  }
  static LossScales scales() { return {.main = 1.0 / 13, .mtp = {0.15 / 11, 0.15 / 9}, .balance = 0.05}; }

  Stream s;
  ParamSet params;
  Arena arena;
  Transformer model;
};

}  // namespace cachalot::testing
