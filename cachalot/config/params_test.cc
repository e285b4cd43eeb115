#include "config/params.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace cachalot {
namespace {

ModelConfig small() {
  return {.vocab_size = 50,
          .hidden_size = 10,
          .intermediate_size = 7,
          .moe_intermediate_size = 3,
          .num_hidden_layers = 2,
          .first_k_dense_replace = 1,
          .num_nextn_predict_layers = 2,
          .num_attention_heads = 2,
          .q_lora_rank = 5,
          .kv_lora_rank = 6,
          .qk_nope_head_dim = 4,
          .qk_rope_head_dim = 2,
          .v_head_dim = 3,
          .n_routed_experts = 4,
          .n_shared_experts = 2,
          .num_experts_per_tok = 2,
          .n_group = 2,
          .topk_group = 1};
}
const Param& find(const std::vector<Param>& table, const std::string& name) {
  const auto it = std::find_if(table.begin(), table.end(), [&](const Param& p) { return p.name == name; });
  if (it == table.end()) throw std::runtime_error("no parameter " + name);
  return *it;
}

TEST(Params, CountsAreThePublishedModels) {
  ModelConfig
      c;  // V3 report section 4.2: 671B, 37B active; README_WEIGHTS.md: 11.5B of MTP without embed and head
  const auto with_mtp = parameter_table(c);
  c.num_nextn_predict_layers = 0;
  const auto main = parameter_table(c);
  EXPECT_EQ(parameter_count(main), 671026404352);
  EXPECT_EQ(parameter_count(with_mtp) - parameter_count(main), 11610067968);
  EXPECT_EQ(active_parameter_count(c), 37552282624);
}

TEST(Params, NamesAreUniqueAndViewsTileTheirParameter) {
  for (ModelConfig c : {small(), ModelConfig{}}) {
    std::set<std::string> names, hf;
    for (const Param& p : parameter_table(c)) {
      EXPECT_TRUE(names.insert(p.name).second) << p.name;
      int64_t row = 0;
      for (const ParamView& v : p.views) {
        EXPECT_TRUE(hf.insert(v.hf_name).second) << v.hf_name;
        if (v.copy) {
          EXPECT_EQ(v.first_row, 0);
          EXPECT_EQ(v.rows, p.rows);
          continue;
        }
        EXPECT_EQ(v.first_row, row);
        row += v.rows;
      }
      EXPECT_EQ(row, p.rows) << p.name;
      EXPECT_EQ(p.rows % p.part_rows, 0) << p.name;
      for (const ParamView& v : p.views) EXPECT_EQ(v.first_row % p.part_rows, 0) << v.hf_name;
    }
  }
}

TEST(Params, ShapesAndNamesOfASmallModel) {
  const auto table = parameter_table(small());
  const auto expect = [&](const char* name, int64_t rows, int64_t cols, int64_t part_rows, const char* first,
                          const char* last) {
    const Param p = find(table, name);
    EXPECT_EQ(p.rows, rows) << name;
    EXPECT_EQ(p.cols, cols) << name;
    EXPECT_EQ(p.part_rows, part_rows) << name;
    EXPECT_EQ(p.views.front().hf_name, first);
    EXPECT_EQ(p.views.back().hf_name, last);
  };
  expect("embed", 50, 10, 50, "model.embed_tokens.weight", "model.layers.3.embed_tokens.weight");
  expect("head", 50, 10, 50, "lm_head.weight", "model.layers.3.shared_head.head.weight");
  expect("layers.0.attn.q_a", 5, 10, 5, "model.layers.0.self_attn.q_a_proj.weight",
         "model.layers.0.self_attn.q_a_proj.weight");
  expect("layers.0.attn.q_b", 12, 5, 12, "model.layers.0.self_attn.q_b_proj.weight",
         "model.layers.0.self_attn.q_b_proj.weight");
  expect("layers.0.attn.kv_a", 8, 10, 8, "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
         "model.layers.0.self_attn.kv_a_proj_with_mqa.weight");
  expect("layers.0.attn.kv_b", 14, 6, 14, "model.layers.0.self_attn.kv_b_proj.weight",
         "model.layers.0.self_attn.kv_b_proj.weight");
  expect("layers.0.attn.o", 10, 6, 10, "model.layers.0.self_attn.o_proj.weight",
         "model.layers.0.self_attn.o_proj.weight");
  expect("layers.0.mlp.gate_up", 14, 10, 7, "model.layers.0.mlp.gate_proj.weight",
         "model.layers.0.mlp.up_proj.weight");
  expect("layers.1.mlp.experts.gate_up", 24, 10, 3, "model.layers.1.mlp.experts.0.gate_proj.weight",
         "model.layers.1.mlp.experts.3.up_proj.weight");
  expect("layers.1.mlp.experts.down", 40, 3, 10, "model.layers.1.mlp.experts.0.down_proj.weight",
         "model.layers.1.mlp.experts.3.down_proj.weight");
  expect("layers.1.mlp.shared.gate_up", 12, 10, 6, "model.layers.1.mlp.shared_experts.gate_proj.weight",
         "model.layers.1.mlp.shared_experts.up_proj.weight");
  expect("layers.3.eh_proj", 10, 20, 10, "model.layers.3.eh_proj.weight", "model.layers.3.eh_proj.weight");
  expect("layers.2.head_norm", 1, 10, 1, "model.layers.2.shared_head.norm.weight",
         "model.layers.2.shared_head.norm.weight");
  EXPECT_EQ(find(table, "layers.1.mlp.gate").kind, ParamKind::gate);
  EXPECT_EQ(find(table, "layers.1.mlp.gate_bias").kind, ParamKind::gate_bias);
  EXPECT_EQ(find(table, "layers.1.mlp.gate_bias").cols, 4);
  EXPECT_THROW(find(table, "layers.0.mlp.gate"), std::runtime_error);
}

TEST(Params, WithoutQueryCompressionThereIsOneQueryMatrix) {
  ModelConfig c = small();
  c.q_lora_rank = 0;
  const auto table = parameter_table(c);
  EXPECT_EQ(find(table, "layers.0.attn.q_b").views[0].hf_name, "model.layers.0.self_attn.q_proj.weight");
  EXPECT_EQ(find(table, "layers.0.attn.q_b").cols, 10);
  EXPECT_THROW(find(table, "layers.0.attn.q_a"), std::runtime_error);
  EXPECT_THROW(find(table, "layers.0.attn.q_a_norm"), std::runtime_error);
}

TEST(Params, WithoutSharedExpertsOrMtpTheirParametersAreAbsent) {
  ModelConfig c = small();
  c.n_shared_experts = 0;
  c.num_nextn_predict_layers = 0;
  for (const Param& p : parameter_table(c)) {
    EXPECT_EQ(p.name.find("shared"), std::string::npos) << p.name;
    EXPECT_LT(p.layer, 2);
    for (const ParamView& v : p.views) EXPECT_FALSE(v.copy);
  }
}

TEST(Params, ActiveCountTakesKOfEExperts) {
  ModelConfig c = small();
  c.num_nextn_predict_layers = 0;
  const int64_t all = parameter_count(parameter_table(c)), one_expert = 3 * 10 * 3;
  EXPECT_EQ(active_parameter_count(c), all - 2 * one_expert);
}

}  // namespace
}  // namespace cachalot
