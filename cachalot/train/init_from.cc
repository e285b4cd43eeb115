#include "train/init_from.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/text.h"
#include "base/thread_pool.h"
#include "model/hf_checkpoint.h"
#include "model/load.h"

namespace cachalot {

namespace {

std::string quoted(std::string_view bytes) { return Json(utf8_lossy(bytes)).dump(); }

}  // namespace

void require_same_shapes(const ModelConfig& model, const std::string& path) {
  const std::string directory = resolve_model_directory(path);
  const Json was = model_config_json(load_model_config(directory), ""), now = model_config_json(model, "");
  std::vector<std::string> differences;
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size",
                          "num_hidden_layers", "first_k_dense_replace", "num_nextn_predict_layers",
                          "num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim",
                          "qk_rope_head_dim", "v_head_dim", "n_routed_experts", "n_shared_experts"})
    if (was.at(key) != now.at(key))
      differences.push_back(fmt::format("{} {} (there {})", key, now.at(key).dump(), was.at(key).dump()));
  if (differences.empty()) return;
  throw Error(fmt::format("training cannot begin with the weights in {}: the model has {}", directory,
                          fmt::join(differences, ", ")))
      .hint("give the model the values of the weights' config.json");
}

bool has_tokenizer(const std::string& path) {
  return std::filesystem::exists(resolve_model_directory(path) + "/tokenizer.json");
}

void require_same_tokens(const Tokenizer& tokenizer, const std::string& path) {
  const std::string directory = resolve_model_directory(path);
  const Tokenizer theirs = Tokenizer::load(directory);
  const int64_t n = std::max(tokenizer.vocab_size(), theirs.vocab_size());
  for (int32_t id = 0; id < n; ++id)
    if (tokenizer.token_bytes(id) != theirs.token_bytes(id))
      throw Error(
          fmt::format("training cannot begin with the weights in {}: token {} is {} there, and {} in the "
                      "tokenizer of this run",
                      directory, id, quoted(theirs.token_bytes(id)), quoted(tokenizer.token_bytes(id))))
          .hint(fmt::format(
              "give the weights' own tokenizer, --tokenizer.path {}, or shards that were made with it",
              directory));
}

void initialize_from(Stream& s, Trainer& trainer, const std::string& path) {
  require_same_shapes(trainer.model().config(), path);
  const HfCheckpoint checkpoint(resolve_model_directory(path), {});
  const ParamSet& params = trainer.params();
  ThreadPool pool(available_cpus());
  for (size_t i = 0; i < params.table().size(); ++i) {
    const Param& p = params.table()[i];
    const Tensor t = p.trained() ? trainer.optimizer().master(i) : params.weight(i);
    CHECK(t.dtype == DType::f32, p.name);
    upload_parameter(s, checkpoint, p, t, pool);
  }
  trainer.adopt_state(0);
  if (trainer.average()) trainer.average()->start(s);
  on(s).synchronize();
}

}  // namespace cachalot
