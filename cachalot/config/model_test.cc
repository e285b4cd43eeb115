#include "config/model.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace cachalot {
namespace {

Json v3() { return model_config_json(ModelConfig{.yarn = YarnConfig{}}, "bfloat16"); }

std::string message_of(const Json& json) {
  try {
    parse_model_config(json, "c.json");
  } catch (const Error& e) {
    const std::string what = e.what();  // "x is y, not an object" says enough without a hint
    EXPECT_TRUE(!e.hint().empty() || what.ends_with("an object") || what.ends_with("number")) << what;
    return e.what();
  }
  return "no error";
}
std::string message_with(const std::function<void(Json&)>& change) {
  Json json = v3();
  change(json);
  return message_of(json);
}

std::string golden(const std::string& name) {
  return std::string(std::getenv("CACHALOT_SOURCE")) + "/tests/golden/" + name;
}

TEST(ModelConfig, WhatIsWrittenIsReadBackEqual) {
  ModelConfig c{.q_lora_rank = 0,
                .num_experts_per_tok = 7,
                .norm_topk_prob = false,
                .yarn = YarnConfig{.factor = 8, .mscale = 0.7}};
  c.fp8 = c.fp8_power_of_two_scales = true;
  EXPECT_EQ(parse_model_config(model_config_json(c, "bfloat16"), ""), c);
  c.yarn.reset();
  c.fp8 = c.fp8_power_of_two_scales = false;
  c.n_shared_experts = 0;
  EXPECT_EQ(parse_model_config(model_config_json(c, "float32"), ""), c);
}

TEST(ModelConfig, ReadsTheGoldenFiles) {
  const ModelConfig nano = load_model_config(golden("nano/model"));
  EXPECT_EQ(nano.vocab_size, 160);
  EXPECT_EQ(nano.q_lora_rank, 24);
  EXPECT_EQ(nano.num_experts_per_tok, 3);
  EXPECT_EQ(nano.initializer_range, 0.02);
  EXPECT_FALSE(nano.yarn);
  EXPECT_FALSE(nano.fp8);
  const ModelConfig yarn = load_model_config(golden("nano-yarn/model_fp8"));
  EXPECT_EQ(yarn.q_lora_rank, 0);
  EXPECT_EQ(yarn.num_nextn_predict_layers, 2);
  EXPECT_TRUE(yarn.fp8);
  EXPECT_FALSE(yarn.fp8_power_of_two_scales);
  ASSERT_TRUE(yarn.yarn);
  EXPECT_EQ(yarn.yarn->factor, 40);
  EXPECT_EQ(yarn.yarn->original_max_position_embeddings, 16);
}

TEST(ModelConfig, ReadsWhatTransformers5Writes) {  // DeepseekV3Config.save_pretrained of 5.23
  Json j = parse_json(
      R"({"architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "bos_token_id": 0, "dtype": "bfloat16", "eos_token_id": 1, "first_k_dense_replace": 1, "head_dim": 32,
    "hidden_act": "silu", "hidden_size": 128, "initializer_range": 0.02, "intermediate_size": 256,
    "kv_lora_rank": 128,
    "max_position_embeddings": 640, "model_type": "deepseek_v3", "moe_intermediate_size": 128, "n_group": 4,
    "n_routed_experts": 8, "n_shared_experts": 2, "norm_topk_prob": true, "num_attention_heads": 2,
    "num_experts_per_tok": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "num_nextn_predict_layers": 2,
    "output_router_logits": false, "pad_token_id": null, "pretraining_tp": 1, "q_lora_rank": null,
    "qk_head_dim": 96,
    "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "rms_norm_eps": 1e-06, "rope_interleave": true,
    "rope_parameters": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
      "original_max_position_embeddings": 16, "rope_theta": 10000, "rope_type": "yarn", "type": "yarn"},
    "routed_scaling_factor": 2.5, "tie_word_embeddings": false, "topk_group": 2,
    "transformers_version": "5.23.0",
    "use_cache": true, "v_head_dim": 64, "vocab_size": 256})",
      "test");
  ModelConfig expected = load_model_config(golden("nano-yarn/model"));
  EXPECT_EQ(parse_model_config(j, ""), expected);
  j["rope_parameters"] = {{"rope_theta", 50000.0}, {"rope_type", "default"}};
  j.erase("num_nextn_predict_layers");  // older versions write it only if the source had it
  expected.yarn.reset();
  expected.rope_theta = 50000;
  expected.num_nextn_predict_layers = 0;
  EXPECT_EQ(parse_model_config(j, ""), expected);
}

TEST(ModelConfig, AcceptsKimiK2AndNamesWhatElseItKnows) {
  EXPECT_EQ(message_with([](Json& j) { j["model_type"] = "kimi_k2"; }), "no error");
  EXPECT_EQ(message_with([](Json& j) { j["model_type"] = "deepseek_v32"; }),
            "c.json: model_type is \"deepseek_v32\"");
  EXPECT_EQ(message_with([](Json& j) { j.erase("model_type"); }), "c.json: model_type is missing");
}

TEST(ModelConfig, RefusesByNameWhatItDoesNotCompute) {
  const std::pair<const char*, Json> others[] = {
      {"scoring_func", "softmax"}, {"topk_method", "greedy"},  {"tie_word_embeddings", true},
      {"attention_bias", true},    {"hidden_act", "gelu"},     {"moe_layer_freq", 2},
      {"num_key_value_heads", 8},  {"rope_interleave", false}, {"qk_head_dim", 128},
      {"attention_dropout", 0.1},  {"mlp_bias", true},         {"hidden_act", 3}};
  for (const auto& [key, value] : others)
    EXPECT_EQ(message_with([&](Json& j) { j[key] = value; }),
              std::string("c.json: ") + key + " is " + value.dump());
}

TEST(ModelConfig, RefusesOtherRopeScaling) {
  const auto rope = [](const std::function<void(Json&)>& change) {
    return message_with([&](Json& j) { change(j["rope_scaling"]); });
  };
  EXPECT_EQ(rope([](Json& r) { r["type"] = "linear"; }),
            "c.json: rope_scaling: rope scaling of type \"linear\"");
  EXPECT_EQ(rope([](Json& r) { r["rope_type"] = "dynamic"; }),
            "c.json: rope_scaling.type is \"yarn\", but rope_scaling.rope_type is \"dynamic\"");
  EXPECT_EQ(rope([](Json& r) { r.erase("factor"); }), "c.json: rope_scaling.factor is missing");
  EXPECT_EQ(rope([](Json& r) { r["truncate"] = false; }), "c.json: rope_scaling.truncate is false");
  EXPECT_EQ(rope([](Json& r) { r["rope_theta"] = 5; }),
            "c.json: rope_theta is 10000, but rope_scaling.rope_theta is 5");
  EXPECT_EQ(rope([](Json& r) { r["attention_factor"] = 1.0; }), "no error");  // m(1) / m(1)
  EXPECT_NE(rope([](Json& r) { r["attention_factor"] = 1.2; }).find("attention_factor is 1.2"),
            std::string::npos);
  EXPECT_EQ(rope([](Json& r) { r = "yarn"; }), "c.json: rope_scaling is \"yarn\" (string), not an object");
  EXPECT_NE(
      message_with([](Json& j) { j["rope_parameters"] = {{"rope_type", "default"}}; }).find("both present"),
      std::string::npos);
}

TEST(ModelConfig, AbsentYarnKeysMeanWhatThePublishedCodeTakesThemFor) {
  Json j = v3();
  for (const char* key : {"beta_fast", "beta_slow", "mscale", "mscale_all_dim"}) j["rope_scaling"].erase(key);
  EXPECT_EQ(*parse_model_config(j, "").yarn, (YarnConfig{.mscale = 1, .mscale_all_dim = 0}));
}

TEST(ModelConfig, RefusesOtherQuantization) {
  const auto quant = [](const char* key, const Json& value) {
    return message_with([&](Json& j) {
      j["quantization_config"] = {
          {"quant_method", "fp8"}, {"fmt", "e4m3"}, {"weight_block_size", {128, 128}}};
      if (value.is_null()) j["quantization_config"].erase(key);
      else j["quantization_config"][key] = value;
    });
  };
  EXPECT_EQ(quant("fmt", nullptr), "no error");
  EXPECT_EQ(quant("scale_fmt", "ue8m0"), "no error");
  EXPECT_EQ(quant("quant_method", "awq"), "c.json: quantization_config.quant_method is \"awq\"");
  EXPECT_EQ(quant("quant_method", nullptr), "c.json: quantization_config.quant_method is missing");
  EXPECT_EQ(quant("fmt", "e5m2"), "c.json: quantization_config.fmt is \"e5m2\"");
  EXPECT_EQ(quant("weight_block_size", Json::array({64, 64})),
            "c.json: quantization_config.weight_block_size is [64,64]");
  EXPECT_EQ(quant("activation_scheme", "static"),
            "c.json: quantization_config.activation_scheme is \"static\"");
  EXPECT_EQ(quant("scale_fmt", "e5m3"), "c.json: quantization_config.scale_fmt is \"e5m3\"");
}

TEST(ModelConfig, MissingEssentialKeysAreNamed) {
  for (const char* key :
       {"vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers",
        "num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
        "v_head_dim", "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "n_group", "topk_group",
        "first_k_dense_replace", "routed_scaling_factor", "max_position_embeddings"})
    EXPECT_EQ(message_with([&](Json& j) { j.erase(key); }), std::string("c.json: ") + key + " is missing");
}

TEST(ModelConfig, WrongKindsAreNamed) {
  EXPECT_EQ(message_with([](Json& j) { j["hidden_size"] = "big"; }),
            "c.json: hidden_size is \"big\" (string), not a whole number");
  EXPECT_EQ(message_of(Json::array()), "c.json is [] (array), not an object");
  EXPECT_EQ(message_with([](Json& j) { j["eos_token_id"] = {1, 2}; }), "c.json: eos_token_id lists 2 tokens");
  EXPECT_EQ(message_with([](Json& j) { j["eos_token_id"] = Json::array({7}); }), "no error");
}

TEST(ModelConfig, ContradictionsAreRefusedWithTheValues) {
  const auto with = [](const char* key, const Json& value) {
    return message_with([&](Json& j) { j[key] = value; });
  };
  EXPECT_EQ(with("n_routed_experts", 255),
            "c.json: n_routed_experts is 255, which 8 groups (n_group) do not divide");
  EXPECT_EQ(with("qk_rope_head_dim", 63), "c.json: qk_rope_head_dim is 63");
  EXPECT_EQ(with("topk_group", 9), "c.json: topk_group is 9");
  EXPECT_EQ(with("num_experts_per_tok", 129),
            "c.json: num_experts_per_tok is 129, but the 4 chosen groups (topk_group) hold 128 experts");
  EXPECT_EQ(with("n_routed_experts", 8),
            "c.json: n_routed_experts 8 in 8 groups (n_group) leaves 1 expert in each");
  EXPECT_EQ(with("first_k_dense_replace", 62), "c.json: first_k_dense_replace is 62");
  EXPECT_EQ(with("first_k_dense_replace", -1), "c.json: first_k_dense_replace is -1");
  EXPECT_EQ(with("hidden_size", 0), "c.json: hidden_size is 0");
  EXPECT_EQ(with("hidden_size", 1LL << 62), "c.json: hidden_size is 4611686018427387904");
  EXPECT_EQ(with("q_lora_rank", 0), "c.json: q_lora_rank is 0");
  EXPECT_EQ(with("rope_theta", 1), "c.json: rope_theta is 1");
  EXPECT_EQ(with("rms_norm_eps", -1e-6), "c.json: rms_norm_eps is -1e-06");
  EXPECT_EQ(with("eos_token_id", 129280), "c.json: eos_token_id is 129280");
  const auto yarn = [](const char* key, const Json& value) {
    return message_with([&](Json& j) { j["rope_scaling"][key] = value; });
  };
  EXPECT_EQ(yarn("factor", 0.5), "c.json: rope_scaling.factor is 0.5");
  EXPECT_EQ(yarn("beta_fast", 1), "c.json: rope_scaling.beta_fast is 1 and beta_slow 1");
  EXPECT_EQ(yarn("mscale_all_dim", -1), "c.json: rope_scaling.mscale_all_dim is -1");
  EXPECT_EQ(yarn("original_max_position_embeddings", 0),
            "c.json: rope_scaling.original_max_position_embeddings is 0");
}

TEST(ModelConfig, SizesWhoseProductsExplodeAreRefused) {
  ModelConfig c;
  c.hidden_size = 1 << 20, c.intermediate_size = c.moe_intermediate_size = 1 << 22;
  EXPECT_THROW(c.validate(""), Error);  // every size in range, 10^20 parameters
  c = {};
  c.num_hidden_layers = 4096, c.n_routed_experts = 65536, c.hidden_size = c.moe_intermediate_size = 1;
  EXPECT_THROW(c.validate(""), Error);  // few parameters, 800 million tensors
  c = {};
  c.first_k_dense_replace = 61, c.num_nextn_predict_layers = 0, c.moe_intermediate_size = INT64_MAX;
  EXPECT_THROW(c.validate(""), Error);  // in a part that no layer has
}

TEST(ModelConfig, DenseModelsNeedNoRouterKeys) {
  Json j = v3();
  j["n_routed_experts"] = nullptr;
  for (const char* key :
       {"n_group", "topk_group", "num_experts_per_tok", "moe_intermediate_size", "n_shared_experts"})
    j.erase(key);
  const ModelConfig c = parse_model_config(j, "");
  EXPECT_FALSE(c.has_experts(60));
  EXPECT_FALSE(c.has_experts(61));
}

TEST(ModelConfig, SoftmaxScaleIsTheReports) {
  ModelConfig c;
  EXPECT_DOUBLE_EQ(c.softmax_scale(), 1 / std::sqrt(192.0));
  c.yarn = YarnConfig{};
  EXPECT_NEAR(c.softmax_scale(), 0.1352337788608801, 1e-15);  // 192^-1/2 (0.1 ln 40 + 1)^2
  c.yarn->mscale_all_dim = 0;
  EXPECT_DOUBLE_EQ(c.softmax_scale(), 1 / std::sqrt(192.0));
  c.yarn = YarnConfig{.factor = 1};
  EXPECT_DOUBLE_EQ(c.softmax_scale(), 1 / std::sqrt(192.0));
}

}  // namespace
}  // namespace cachalot
