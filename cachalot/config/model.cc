#include "config/model.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/text.h"
#include "config/fields.h"

namespace cachalot {

double ModelConfig::softmax_scale() const {
  const double scale = 1 / std::sqrt(double(qk_head_dim()));
  if (!yarn || yarn->factor <= 1 || yarn->mscale_all_dim == 0) return scale;
  const double m = 0.1 * yarn->mscale_all_dim * std::log(yarn->factor) + 1;
  return scale * m * m;
}

// ---------------------------------------------------------------------------------------------------------
// Contradictions.

namespace {

// Bounds far above any model of this kind, low enough that no product of sizes leaves int64.
constexpr int64_t kMaxVocab = int64_t{1} << 28, kMaxWidth = int64_t{1} << 22, kMaxHidden = int64_t{1} << 20,
                  kMaxHeads = int64_t{1} << 16, kMaxHeadDim = int64_t{1} << 16,
                  kMaxExperts = int64_t{1} << 16, kMaxLayers = 4096, kMaxMtp = 64, kMaxShared = 1024,
                  kMaxExpertTensors = int64_t{1} << 20, kMaxPositions = int64_t{1} << 40;
constexpr double kMaxParameters = 1e15;

class Validator {
 public:
  explicit Validator(const std::string& where) : where_(where.empty() ? "" : where + ": ") {}

  [[noreturn]] void fail(const std::string& what, const std::string& hint) const {
    throw Error(where_ + what).hint(hint);
  }

  void in_range(const char* key, int64_t value, int64_t low, int64_t high) const {
    if (value < low || value > high)
      fail(fmt::format("{} is {}", key, value), fmt::format("it must be between {} and {}", low, high));
  }
  void positive(const char* key, double value) const {
    if (!std::isfinite(value) || value <= 0)
      fail(fmt::format("{} is {}", key, value), "it must be a number above 0");
  }
  void not_negative(const char* key, double value) const {
    if (!std::isfinite(value) || value < 0) fail(fmt::format("{} is {}", key, value), "it must be 0 or more");
  }

 private:
  std::string where_;
};

void validate_experts(const ModelConfig& c, const Validator& v) {
  v.in_range("n_group", c.n_group, 1, c.n_routed_experts);
  v.in_range("topk_group", c.topk_group, 1, c.n_group);
  v.in_range("num_experts_per_tok", c.num_experts_per_tok, 1, c.n_routed_experts);
  if (c.n_routed_experts % c.n_group != 0)
    v.fail(fmt::format("n_routed_experts is {}, which {} groups (n_group) do not divide", c.n_routed_experts,
                       c.n_group),
           "every group holds equally many experts: change n_routed_experts or n_group");
  const int64_t per_group = c.n_routed_experts / c.n_group;
  if (c.n_group > 1 && per_group < 2)
    v.fail(fmt::format("n_routed_experts {} in {} groups (n_group) leaves {} expert in each",
                       c.n_routed_experts, c.n_group, per_group),
           "a group is scored by its two best experts: use at most n_routed_experts / 2 groups, or one");
  if (c.num_experts_per_tok > c.topk_group * per_group)
    v.fail(fmt::format("num_experts_per_tok is {}, but the {} chosen groups (topk_group) hold {} experts",
                       c.num_experts_per_tok, c.topk_group, c.topk_group * per_group),
           "lower num_experts_per_tok or raise topk_group");
  v.positive("routed_scaling_factor", c.routed_scaling_factor);
  const int64_t layers = c.layers_with_mtp() - c.first_k_dense_replace;
  if (layers * c.n_routed_experts > kMaxExpertTensors)
    v.fail(fmt::format("{} layers of {} experts (n_routed_experts) are {}", layers, c.n_routed_experts,
                       layers * c.n_routed_experts),
           fmt::format("at most {} experts in all layers together are supported", kMaxExpertTensors));
}

void validate_yarn(const ModelConfig& c, const Validator& v) {
  const YarnConfig& y = *c.yarn;
  if (!(std::isfinite(y.factor) && y.factor >= 1))
    v.fail(fmt::format("rope_scaling.factor is {}", y.factor),
           "YaRN stretches the context: the factor is 1 or more");
  v.in_range("rope_scaling.original_max_position_embeddings", y.original_max_position_embeddings, 1,
             kMaxPositions);
  v.positive("rope_scaling.beta_slow", y.beta_slow);
  if (!(std::isfinite(y.beta_fast) && y.beta_fast > y.beta_slow))
    v.fail(fmt::format("rope_scaling.beta_fast is {} and beta_slow {}", y.beta_fast, y.beta_slow),
           "beta_fast must be the larger one (32 and 1 in DeepSeek-V3)");
  v.not_negative("rope_scaling.mscale", y.mscale);
  v.not_negative("rope_scaling.mscale_all_dim", y.mscale_all_dim);
}

// In doubles, before the table is built: the bounds of single fields alone would allow sums beyond int64.
double rough_parameter_count(const ModelConfig& c) {
  const double d = double(c.hidden_size), h = double(c.num_attention_heads);
  const double q = c.q_lora_rank ? double(c.q_lora_rank) * (d + h * double(c.qk_head_dim()))
                                 : d * h * double(c.qk_head_dim());
  const double kv = double(c.cached_per_token()) * d +
                    h * double(c.qk_nope_head_dim + c.v_head_dim) * double(c.kv_lora_rank);
  const double attention = q + kv + d * h * double(c.v_head_dim);
  const double layers = double(c.layers_with_mtp());
  const double moe_layers = c.n_routed_experts ? layers - double(c.first_k_dense_replace) : 0;
  const double experts =
      d * double(c.n_routed_experts) +
      3 * d * (double(c.n_routed_experts) * double(c.moe_intermediate_size) + double(c.shared_width()));
  const double dense = 3 * d * double(c.intermediate_size);
  return 2 * d * double(c.vocab_size) + layers * attention + moe_layers * experts +
         (layers - moe_layers) * dense + 2 * d * d * double(c.num_nextn_predict_layers);
}

}  // namespace

void ModelConfig::validate(const std::string& where) const {
  const Validator v(where);
  v.in_range("vocab_size", vocab_size, 1, kMaxVocab);
  v.in_range("hidden_size", hidden_size, 1, kMaxHidden);
  v.in_range("num_hidden_layers", num_hidden_layers, 1, kMaxLayers);
  v.in_range("num_nextn_predict_layers", num_nextn_predict_layers, 0, kMaxMtp);
  v.in_range("num_attention_heads", num_attention_heads, 1, kMaxHeads);
  v.in_range("q_lora_rank", q_lora_rank, 0, kMaxHidden);
  v.in_range("kv_lora_rank", kv_lora_rank, 1, kMaxHidden);
  v.in_range("qk_nope_head_dim", qk_nope_head_dim, 1, kMaxHeadDim);
  v.in_range("qk_rope_head_dim", qk_rope_head_dim, 1, kMaxHeadDim);
  v.in_range("v_head_dim", v_head_dim, 1, kMaxHeadDim);
  if (qk_rope_head_dim % 2 != 0)
    v.fail(fmt::format("qk_rope_head_dim is {}", qk_rope_head_dim), "rotary pairs need an even number");
  v.in_range("n_routed_experts", n_routed_experts, 0, kMaxExperts);
  v.in_range("first_k_dense_replace", first_k_dense_replace, 0, num_hidden_layers);
  v.in_range("intermediate_size", intermediate_size, has_experts(0) ? 0 : 1, kMaxWidth);
  v.in_range("moe_intermediate_size", moe_intermediate_size, n_routed_experts ? 1 : 0, kMaxWidth);
  v.in_range("n_shared_experts", n_shared_experts, 0, kMaxShared);
  if (n_routed_experts > 0) validate_experts(*this, v);
  v.not_negative("rms_norm_eps", rms_norm_eps);
  if (!(std::isfinite(rope_theta) && rope_theta > 1))
    v.fail(fmt::format("rope_theta is {}", rope_theta), "it must be above 1 (10000 in DeepSeek-V3)");
  if (yarn) validate_yarn(*this, v);
  v.in_range("max_position_embeddings", max_position_embeddings, 1, kMaxPositions);
  v.not_negative("initializer_range", initializer_range);
  v.in_range("bos_token_id", bos_token_id, 0, vocab_size - 1);
  v.in_range("eos_token_id", eos_token_id, 0, vocab_size - 1);
  if (const double n = rough_parameter_count(*this); n > kMaxParameters)
    v.fail(fmt::format("its sizes make a model of {} parameters", human_count(n)), "check the sizes");
}

// ---------------------------------------------------------------------------------------------------------
// config.json.

namespace {

class Keys {
 public:
  Keys(const Json& object, std::string prefix) : object_(object), prefix_(std::move(prefix)) {
    if (!object.is_object())
      fields::wrong_kind(object, prefix_.substr(0, prefix_.find_last_not_of(". :") + 1), "an object");
  }
  const std::string& prefix() const { return prefix_; }

  // The value, or nullptr when the key is absent or null (the format means the same by both, except where a
  // caller asks has()).
  const Json* find(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  bool has(const char* key) const { return object_.contains(key); }

  template <class T> void optional(const char* key, T& field) const {
    if (const Json* value = find(key)) fields::assign(field, *value, prefix_ + key);
  }
  template <class T> void required(const char* key, T& field) const {
    const Json* value = find(key);
    if (!value)
      throw Error(fmt::format("{}{} is missing", prefix_, key))
          .hint(
              "it decides the shape or the result of the model; the published DeepSeek-V3 config.json has "
              "it");
    fields::assign(field, *value, prefix_ + key);
  }
  // The key, if present, must say what cachalot computes.
  void only(const char* key, const Json& accepted, const std::string& why) const {
    const Json* value = find(key);
    if (value && *value != accepted)
      throw Error(fmt::format("{}{} is {}", prefix_, key,
                              value->dump(-1, ' ', false, Json::error_handler_t::replace)))
          .hint(fmt::format("only {} is supported: {}", accepted.dump(), why));
  }

 private:
  const Json& object_;
  std::string prefix_;
};

// YaRN's factor on cos and sin: m(mscale) / m(mscale_all_dim), m(x) = 0.1 x ln(factor) + 1.
double yarn_attention_factor(const YarnConfig& y) {
  const auto m = [&](double x) { return y.factor <= 1 ? 1 : 0.1 * x * std::log(y.factor) + 1; };
  return m(y.mscale) / m(y.mscale_all_dim);
}

// `rope_scaling` beside `rope_theta` (published), or both inside `rope_parameters` (transformers 5).
void parse_rope(const Keys& top, ModelConfig& c) {
  top.optional("rope_theta", c.rope_theta);
  top.only("rope_interleave", true, "DeepSeek-V3 rotates neighbouring pairs");
  if (top.find("rope_scaling") && top.find("rope_parameters") &&
      *top.find("rope_scaling") != *top.find("rope_parameters"))
    throw Error(top.prefix() + "rope_scaling and rope_parameters are both present and differ")
        .hint("keep the one that the weights were trained with");
  const char* key = top.find("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!top.find(key)) return;
  const std::string where = top.prefix() + key;
  const Keys rope(*top.find(key), where + ".");

  if (rope.find("rope_theta")) {
    double theta = 0;
    rope.required("rope_theta", theta);
    if (top.find("rope_theta") && theta != c.rope_theta)
      throw Error(
          fmt::format("{}rope_theta is {}, but {}.rope_theta is {}", top.prefix(), c.rope_theta, key, theta))
          .hint("keep one of them");
    c.rope_theta = theta;
  }
  rope.only("partial_rotary_factor", 1.0, "the whole rope slice of a head is rotated");

  std::string type = "default";
  rope.optional("type", type);
  if (rope.find("rope_type")) {
    std::string rope_type;
    rope.required("rope_type", rope_type);
    if (rope.find("type") && type != rope_type)
      throw Error(fmt::format("{}.type is \"{}\", but {}.rope_type is \"{}\"", where, type, key, rope_type))
          .hint("keep one of them");
    type = rope_type;
  }
  if (type == "default") return;
  if (type != "yarn")
    throw Error(fmt::format("{}: rope scaling of type \"{}\"", where, type))
        .hint("supported: \"yarn\", \"default\", or null");

  // What the published code takes for absent keys: mscale 1, mscale_all_dim 0.
  YarnConfig y{.mscale = 1, .mscale_all_dim = 0};
  rope.required("factor", y.factor);
  rope.required("original_max_position_embeddings", y.original_max_position_embeddings);
  rope.optional("beta_fast", y.beta_fast);
  rope.optional("beta_slow", y.beta_slow);
  rope.optional("mscale", y.mscale);
  rope.optional("mscale_all_dim", y.mscale_all_dim);
  rope.only("truncate", true, "the ramp's ends are rounded to whole dimensions");
  if (rope.find("attention_factor")) {
    double given = 0;
    rope.required("attention_factor", given);
    if (const double ours = yarn_attention_factor(y); !(std::abs(given - ours) <= 1e-6 * ours))
      throw Error(fmt::format("{}.attention_factor is {}, but mscale {} and mscale_all_dim {} make it {}",
                              where, given, y.mscale, y.mscale_all_dim, ours))
          .hint("give the factor by mscale and mscale_all_dim, as DeepSeek-V3 does");
  }
  c.yarn = y;
}

void parse_quantization(const Keys& top, ModelConfig& c) {
  const Json* value = top.find("quantization_config");
  if (!value) return;
  const Keys q(*value, top.prefix() + "quantization_config.");
  std::string method;
  q.required("quant_method", method);
  q.only("quant_method", "fp8", "E4M3 weights with one scale a 128 x 128 block");
  q.only("fmt", "e4m3", "E4M3 weights with one scale a 128 x 128 block");
  q.only("activation_scheme", "dynamic", "activations are quantised as they come");
  q.only("weight_block_size", Json::array({128, 128}), "E4M3 weights with one scale a 128 x 128 block");
  std::string scale_fmt = "float32";
  q.optional("scale_fmt", scale_fmt);
  if (scale_fmt != "float32" && scale_fmt != "ue8m0")
    throw Error(fmt::format("{}scale_fmt is \"{}\"", q.prefix(), scale_fmt))
        .hint("supported: \"ue8m0\" (powers of two); without the key scales are any float32");
  c.fp8 = true;
  c.fp8_power_of_two_scales = scale_fmt == "ue8m0";
}

// An integer; transformers also allows an array of them, null, or nothing.
void parse_token_id(const Keys& top, const char* key, int64_t& field) {
  const Json* value = top.find(key);
  if (!value) return;
  if (!value->is_array()) return fields::assign(field, *value, top.prefix() + key);
  if (value->size() != 1)
    throw Error(fmt::format("{}{} lists {} tokens", top.prefix(), key, value->size()))
        .hint("keep one token here");
  fields::assign(field, (*value)[0], top.prefix() + key + "[0]");
}

}  // namespace

ModelConfig parse_model_config(const Json& json, const std::string& where) {
  const Keys top(json, where.empty() ? "" : where + ": ");
  std::string type;
  top.required("model_type", type);
  if (type != "deepseek_v3" && type != "kimi_k2")
    throw Error(fmt::format("{}model_type is \"{}\"", top.prefix(), type))
        .hint("supported: \"deepseek_v3\", and \"kimi_k2\", which is the same architecture");

  ModelConfig c;
  c.yarn.reset();
  top.required("vocab_size", c.vocab_size);
  top.required("hidden_size", c.hidden_size);
  top.required("num_hidden_layers", c.num_hidden_layers);
  c.num_nextn_predict_layers = 0;  // transformers computes without MTP and may drop the key
  top.optional("num_nextn_predict_layers", c.num_nextn_predict_layers);

  top.required("num_attention_heads", c.num_attention_heads);
  if (!top.has("q_lora_rank"))
    throw Error(top.prefix() + "q_lora_rank is missing")
        .hint("write null for a model that does not compress queries");
  c.q_lora_rank = 0;
  if (top.find("q_lora_rank")) {
    top.required("q_lora_rank", c.q_lora_rank);
    if (c.q_lora_rank == 0)
      throw Error(top.prefix() + "q_lora_rank is 0").hint("write null for no query compression");
  }
  top.required("kv_lora_rank", c.kv_lora_rank);
  top.required("qk_nope_head_dim", c.qk_nope_head_dim);
  top.required("qk_rope_head_dim", c.qk_rope_head_dim);
  top.required("v_head_dim", c.v_head_dim);

  c.n_routed_experts = 0;  // null: every layer has a dense MLP
  if (!top.has("n_routed_experts")) top.required("n_routed_experts", c.n_routed_experts);
  top.optional("n_routed_experts", c.n_routed_experts);
  if (c.n_routed_experts != 0) {
    top.required("moe_intermediate_size", c.moe_intermediate_size);
    top.required("first_k_dense_replace", c.first_k_dense_replace);
    top.required("num_experts_per_tok", c.num_experts_per_tok);
    top.required("n_group", c.n_group);
    top.required("topk_group", c.topk_group);
    top.required("routed_scaling_factor", c.routed_scaling_factor);
    c.n_shared_experts = 0;  // null: none
    if (!top.has("n_shared_experts")) top.required("n_shared_experts", c.n_shared_experts);
    top.optional("n_shared_experts", c.n_shared_experts);
    top.optional("norm_topk_prob", c.norm_topk_prob);
    top.only("scoring_func", "sigmoid", "DeepSeek-V3's router");
    top.only("topk_method", "noaux_tc", "DeepSeek-V3's router, balanced by a bias");
    top.only("moe_layer_freq", 1, "every layer from first_k_dense_replace on has experts");
  } else {
    c.first_k_dense_replace = c.num_hidden_layers;
  }
  if (c.n_routed_experts == 0 || c.first_k_dense_replace > 0)
    top.required("intermediate_size", c.intermediate_size);
  else top.optional("intermediate_size", c.intermediate_size);

  top.only("hidden_act", "silu", "DeepSeek-V3's MLPs are SwiGLU");
  top.only("tie_word_embeddings", false, "DeepSeek-V3's output head is a matrix of its own");
  top.only("attention_bias", false, "DeepSeek-V3 has no biases");
  top.only("mlp_bias", false, "DeepSeek-V3 has no biases");
  top.only("attention_dropout", 0.0, "DeepSeek-V3 was trained without dropout");
  top.only("num_key_value_heads", c.num_attention_heads,
           "with latent attention it must equal num_attention_heads");
  top.only("qk_head_dim", c.qk_head_dim(), "it must be qk_nope_head_dim + qk_rope_head_dim");

  top.optional("rms_norm_eps", c.rms_norm_eps);
  c.rope_theta = 10000;
  parse_rope(top, c);
  top.required("max_position_embeddings", c.max_position_embeddings);
  c.initializer_range = 0.02;  // the published configuration class's default
  top.optional("initializer_range", c.initializer_range);
  parse_token_id(top, "bos_token_id", c.bos_token_id);
  parse_token_id(top, "eos_token_id", c.eos_token_id);
  parse_quantization(top, c);
  c.validate(where);
  return c;
}

ModelConfig load_model_config(const std::string& model_directory) {
  const std::string path = model_directory + "/config.json";
  return parse_model_config(read_json_file(path), path);
}

Json model_config_json(const ModelConfig& c, const std::string& torch_dtype) {
  Json j = Json::object();
  j["architectures"] = Json::array({"DeepseekV3ForCausalLM"});
  j["model_type"] = "deepseek_v3";
  j["torch_dtype"] = torch_dtype;
  j["vocab_size"] = c.vocab_size;
  j["hidden_size"] = c.hidden_size;
  j["intermediate_size"] = c.intermediate_size;
  j["moe_intermediate_size"] = c.moe_intermediate_size;
  j["num_hidden_layers"] = c.num_hidden_layers;
  j["first_k_dense_replace"] = c.first_k_dense_replace;
  j["moe_layer_freq"] = 1;
  j["num_nextn_predict_layers"] = c.num_nextn_predict_layers;
  j["num_attention_heads"] = c.num_attention_heads;
  j["num_key_value_heads"] = c.num_attention_heads;
  j["q_lora_rank"] = c.q_lora_rank ? Json(c.q_lora_rank) : Json(nullptr);
  j["kv_lora_rank"] = c.kv_lora_rank;
  j["qk_nope_head_dim"] = c.qk_nope_head_dim;
  j["qk_rope_head_dim"] = c.qk_rope_head_dim;
  j["v_head_dim"] = c.v_head_dim;
  j["n_routed_experts"] = c.n_routed_experts ? Json(c.n_routed_experts) : Json(nullptr);
  j["n_shared_experts"] = c.n_shared_experts ? Json(c.n_shared_experts) : Json(nullptr);
  j["num_experts_per_tok"] = c.num_experts_per_tok;
  j["n_group"] = c.n_group;
  j["topk_group"] = c.topk_group;
  j["topk_method"] = "noaux_tc";
  j["scoring_func"] = "sigmoid";
  j["norm_topk_prob"] = c.norm_topk_prob;
  j["routed_scaling_factor"] = c.routed_scaling_factor;
  j["hidden_act"] = "silu";
  j["rms_norm_eps"] = c.rms_norm_eps;
  j["rope_theta"] = c.rope_theta;
  j["rope_scaling"] = nullptr;
  if (c.yarn) {
    Json& y = j["rope_scaling"] = Json::object();
    y["type"] = "yarn";
    y["factor"] = c.yarn->factor;
    y["original_max_position_embeddings"] = c.yarn->original_max_position_embeddings;
    y["beta_fast"] = c.yarn->beta_fast;
    y["beta_slow"] = c.yarn->beta_slow;
    y["mscale"] = c.yarn->mscale;
    y["mscale_all_dim"] = c.yarn->mscale_all_dim;
  }
  j["max_position_embeddings"] = c.max_position_embeddings;
  j["attention_bias"] = false;
  j["attention_dropout"] = 0.0;
  j["tie_word_embeddings"] = false;
  j["initializer_range"] = c.initializer_range;
  j["bos_token_id"] = c.bos_token_id;
  j["eos_token_id"] = c.eos_token_id;
  j["use_cache"] = true;
  if (c.fp8) {
    Json& q = j["quantization_config"] = Json::object();
    q["activation_scheme"] = "dynamic";
    q["fmt"] = "e4m3";
    q["quant_method"] = "fp8";
    if (c.fp8_power_of_two_scales) q["scale_fmt"] = "ue8m0";
    q["weight_block_size"] = Json::array({128, 128});
  }
  return j;
}

}  // namespace cachalot
