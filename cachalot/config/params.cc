#include "config/params.h"

#include <fmt/format.h>

namespace cachalot {

namespace {

class Table {
 public:
  explicit Table(const ModelConfig& config) : c_(config) {}

  std::vector<Param> take() { return std::move(params_); }

  void embedding() {
    Param& p =
        add("embed", ParamKind::embedding, -1, c_.vocab_size, c_.hidden_size, "model.embed_tokens.weight");
    copies(p, "embed_tokens.weight");
  }

  void head() {
    add("norm", ParamKind::norm, -1, 1, c_.hidden_size, "model.norm.weight");
    Param& p = add("head", ParamKind::head, -1, c_.vocab_size, c_.hidden_size, "lm_head.weight");
    copies(p, "shared_head.head.weight");
  }

  void layer(int64_t l) {
    const int64_t d = c_.hidden_size;
    const bool mtp = l >= c_.num_hidden_layers;
    if (mtp) {
      add_in(l, "enorm", ParamKind::norm, 1, d, "enorm.weight");
      add_in(l, "hnorm", ParamKind::norm, 1, d, "hnorm.weight");
      add_in(l, "eh_proj", ParamKind::eh_proj, d, 2 * d, "eh_proj.weight");
    }
    add_in(l, "input_norm", ParamKind::norm, 1, d, "input_layernorm.weight");
    attention(l);
    add_in(l, "post_norm", ParamKind::norm, 1, d, "post_attention_layernorm.weight");
    if (c_.has_experts(l)) experts(l);
    else mlp(l, "mlp", "mlp", c_.intermediate_size);
    if (mtp) add_in(l, "head_norm", ParamKind::norm, 1, d, "shared_head.norm.weight");
  }

 private:
  void attention(int64_t l) {
    const int64_t d = c_.hidden_size, h = c_.num_attention_heads, q = c_.q_lora_rank, c = c_.kv_lora_rank;
    if (q > 0) {
      add_in(l, "attn.q_a", ParamKind::linear, q, d, "self_attn.q_a_proj.weight");
      add_in(l, "attn.q_a_norm", ParamKind::norm, 1, q, "self_attn.q_a_layernorm.weight");
      add_in(l, "attn.q_b", ParamKind::linear, h * c_.qk_head_dim(), q, "self_attn.q_b_proj.weight");
    } else {
      add_in(l, "attn.q_b", ParamKind::linear, h * c_.qk_head_dim(), d, "self_attn.q_proj.weight");
    }
    add_in(l, "attn.kv_a", ParamKind::linear, c + c_.qk_rope_head_dim, d,
           "self_attn.kv_a_proj_with_mqa.weight");
    add_in(l, "attn.kv_a_norm", ParamKind::norm, 1, c, "self_attn.kv_a_layernorm.weight");
    add_in(l, "attn.kv_b", ParamKind::linear, h * (c_.qk_nope_head_dim + c_.v_head_dim), c,
           "self_attn.kv_b_proj.weight");
    add_in(l, "attn.o", ParamKind::linear, d, h * c_.v_head_dim, "self_attn.o_proj.weight");
  }

  // SwiGLU of width `width`: gate rows above up rows in one parameter.
  void mlp(int64_t l, const std::string& name, const std::string& hf, int64_t width) {
    Param& up = add_stacked(l, name + ".gate_up", 2 * width, c_.hidden_size, width);
    up.views = {view(l, hf + ".gate_proj.weight", 0, width), view(l, hf + ".up_proj.weight", width, width)};
    add_in(l, name + ".down", ParamKind::linear, c_.hidden_size, width, hf + ".down_proj.weight");
  }

  void experts(int64_t l) {
    const int64_t d = c_.hidden_size, e = c_.n_routed_experts, i = c_.moe_intermediate_size;
    add_in(l, "mlp.gate", ParamKind::gate, e, d, "mlp.gate.weight");
    add_in(l, "mlp.gate_bias", ParamKind::gate_bias, 1, e, "mlp.gate.e_score_correction_bias");
    Param& up = add_stacked(l, "mlp.experts.gate_up", e * 2 * i, d, i);
    up.experts = e;
    for (int64_t x = 0; x < e; ++x) {
      up.views.push_back(view(l, fmt::format("mlp.experts.{}.gate_proj.weight", x), x * 2 * i, i));
      up.views.push_back(view(l, fmt::format("mlp.experts.{}.up_proj.weight", x), x * 2 * i + i, i));
    }
    Param& down = add_stacked(l, "mlp.experts.down", e * d, i, d);
    down.experts = e;
    for (int64_t x = 0; x < e; ++x)
      down.views.push_back(view(l, fmt::format("mlp.experts.{}.down_proj.weight", x), x * d, d));
    if (c_.n_shared_experts > 0) mlp(l, "mlp.shared", "mlp.shared_experts", c_.shared_width());
  }

  // The reference is good until the next add.
  Param& add(std::string name, ParamKind kind, int64_t layer, int64_t rows, int64_t cols,
             std::string hf_name) {
    params_.push_back({.name = std::move(name),
                       .kind = kind,
                       .layer = layer,
                       .rows = rows,
                       .cols = cols,
                       .part_rows = rows,
                       .views = {{.hf_name = std::move(hf_name), .first_row = 0, .rows = rows}}});
    return params_.back();
  }
  void add_in(int64_t l, const std::string& name, ParamKind kind, int64_t rows, int64_t cols,
              const std::string& hf) {
    add(fmt::format("layers.{}.{}", l, name), kind, l, rows, cols, fmt::format("model.layers.{}.{}", l, hf));
  }
  Param& add_stacked(int64_t l, const std::string& name, int64_t rows, int64_t cols, int64_t part_rows) {
    params_.push_back({.name = fmt::format("layers.{}.{}", l, name),
                       .kind = ParamKind::linear,
                       .layer = l,
                       .rows = rows,
                       .cols = cols,
                       .part_rows = part_rows,
                       .views = {}});
    return params_.back();
  }
  static ParamView view(int64_t l, const std::string& hf, int64_t first_row, int64_t rows) {
    return {.hf_name = fmt::format("model.layers.{}.{}", l, hf), .first_row = first_row, .rows = rows};
  }
  void copies(Param& p, const std::string& hf) {
    for (int64_t l = c_.num_hidden_layers; l < c_.layers_with_mtp(); ++l) {
      p.views.push_back(view(l, hf, 0, p.rows));
      p.views.back().copy = true;
    }
  }

  const ModelConfig& c_;
  std::vector<Param> params_;
};

}  // namespace

std::vector<Param> parameter_table(const ModelConfig& config) {
  Table table(config);
  table.embedding();
  for (int64_t l = 0; l < config.num_hidden_layers; ++l) table.layer(l);
  table.head();
  for (int64_t l = config.num_hidden_layers; l < config.layers_with_mtp(); ++l) table.layer(l);
  return table.take();
}

int64_t parameter_count(const std::vector<Param>& table) {
  int64_t n = 0;
  for (const Param& p : table) n += p.trained() ? p.size() : 0;
  return n;
}

int64_t active_parameter_count(const ModelConfig& config) {
  ModelConfig main = config;
  main.num_nextn_predict_layers = 0;
  int64_t n = 0;
  for (const Param& p : parameter_table(main)) {
    if (!p.trained()) continue;
    const bool routed = p.name.find(".mlp.experts.") != std::string::npos;
    n += routed ? p.size() / main.n_routed_experts * main.num_experts_per_tok : p.size();
  }
  return n;
}

}  // namespace cachalot
