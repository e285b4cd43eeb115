#include "train/config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "base/error.h"
#include "base/text.h"
#include "config/fields.h"
#include "config/precision.h"
#include "train/step_plan.h"

namespace cachalot {

namespace {

struct ModelKey {
  const char* key;
  const char* meaning;
};

// Keys that a config.json may have and that change what is computed, in its order.
constexpr ModelKey kModelKeys[] = {
    {"vocab_size", "V: rows of embedding and head; absent: the tokenizer's size"},
    {"hidden_size", "D: width of the residual stream"},
    {"intermediate_size", "F: width of a dense MLP"},
    {"moe_intermediate_size", "I: width of an expert"},
    {"num_hidden_layers", "L: layers without those of multi-token prediction"},
    {"first_k_dense_replace", "layers below it have a dense MLP, the others experts"},
    {"num_nextn_predict_layers", "depths of multi-token prediction (MTP); absent: 0"},
    {"num_attention_heads", "H: attention heads"},
    {"q_lora_rank", "Q: width of the compressed query; null: not compressed"},
    {"kv_lora_rank", "C: width of the compressed key-value, cached a token and layer"},
    {"qk_nope_head_dim", "N: a head's key width without position"},
    {"qk_rope_head_dim", "P: rotary key width, one key for all heads"},
    {"v_head_dim", "U: a head's value width"},
    {"n_routed_experts", "E: experts a layer, of which a token uses some; null: no experts"},
    {"n_shared_experts", "experts a layer that every token uses"},
    {"num_experts_per_tok", "K: routed experts a token uses"},
    {"n_group", "groups that the experts of a layer are cut into"},
    {"topk_group", "groups that a token may use"},
    {"norm_topk_prob", "expert weights of a token are divided by their sum"},
    {"routed_scaling_factor", "expert weights are multiplied by it"},
    {"rms_norm_eps", "added to the mean square in RMSNorm"},
    {"rope_theta", "base of the rotary frequencies"},
    {"rope_scaling", "YaRN: {\"type\": \"yarn\", \"factor\": ...}; null: none"},
    {"max_position_embeddings", "longest context"},
    {"initializer_range", "standard deviation of the initial weights"},
    {"bos_token_id", "absent: the tokenizer's end-of-text token"},
    {"eos_token_id", "absent: the tokenizer's end-of-text token"},
};

// Keys that published files also have: config/model.h checks those that must have one value and ignores the
// others.
constexpr const char* kOtherModelKeys[] = {"architectures",
                                           "attention_bias",
                                           "attention_dropout",
                                           "auto_map",
                                           "aux_loss_alpha",
                                           "dtype",
                                           "ep_size",
                                           "head_dim",
                                           "hidden_act",
                                           "mlp_bias",
                                           "model_type",
                                           "moe_layer_freq",
                                           "num_key_value_heads",
                                           "pad_token_id",
                                           "pretraining_tp",
                                           "qk_head_dim",
                                           "rope_interleave",
                                           "rope_parameters",
                                           "scoring_func",
                                           "seq_aux",
                                           "tie_word_embeddings",
                                           "topk_method",
                                           "torch_dtype",
                                           "transformers_version",
                                           "use_cache"};

// The budget in the spelling of the schedules: "5M" becomes 5000000.
void read_budget(Json& train, const std::string& where) {
  if (!train.is_object() || !train.contains("tokens") || !train["tokens"].is_string()) return;
  TrainingPoint point;
  assign(point, train["tokens"], where);
  if (point.steps)
    throw Error(fmt::format("{} is {}", where, train["tokens"].dump()))
        .hint(fmt::format("a budget of steps is --train.steps {}", point.steps));
  train["tokens"] = point.tokens;
}

class Checker {
 public:
  explicit Checker(const std::string& where) : where_(where.empty() ? "" : where + ": ") {}
  [[noreturn]] void fail(const std::string& what, const std::string& hint) const {
    throw Error(where_ + what).hint(hint);
  }
  void at_least(const char* key, int64_t value, int64_t low) const {
    if (value < low) fail(fmt::format("{} is {}", key, value), fmt::format("it must be {} or more", low));
  }
  void at_most(const char* key, int64_t value, int64_t high) const {
    if (value > high) fail(fmt::format("{} is {}", key, value), fmt::format("it must be at most {}", high));
  }
  void positive(const char* key, double value) const {
    if (!std::isfinite(value) || value <= 0)
      fail(fmt::format("{} is {}", key, value), "it must be a number above 0");
  }
  void not_negative(const char* key, double value) const {
    if (!std::isfinite(value) || value < 0) fail(fmt::format("{} is {}", key, value), "it must be 0 or more");
  }
  void below(const char* key, double value, double bound, const std::string& hint) const {
    if (!(value >= 0 && value < bound)) fail(fmt::format("{} is {}", key, value), hint);
  }

 private:
  std::string where_;
};

constexpr int64_t kMostTokens = int64_t{1} << 50;  // far beyond any run
constexpr int64_t kMostSequences = int64_t{1} << 24;
constexpr int64_t kMostMicroBatchTokens = int64_t{1} << 18;  // of the largest model: terabytes of activations
constexpr double kBeta2Limit =
    0.998;  // above, BF16 rounding swallows (1 - beta2) v: 2^-9 is half a unit in the last place

}  // namespace

void assign(ModelSection& field, const Json& value, const std::string& where) {
  if (!value.is_object()) fields::wrong_kind(value, where, "an object");
  std::vector<std::string> known;
  for (const ModelKey& k : kModelKeys) known.push_back(k.key);
  for (const char* k : kOtherModelKeys) known.push_back(k);
  if (value.contains("quantization_config") && !value["quantization_config"].is_null())
    throw Error(where + ".quantization_config is given")
        .hint("a new model has no FP8 weights yet: leave the key out");
  known.push_back("quantization_config");
  fields::refuse_unknown(value, known, where + ".");
  field.json = value.dump();
}

void assign(PartNumbers& field, const Json& value, const std::string& where) {
  if (!value.is_object()) fields::wrong_kind(value, where, "an object such as {\"en\": 0.7}");
  field.of.clear();
  for (const auto& [part, number] : value.items()) fields::assign(field.of[part], number, where + "." + part);
}

void assign(NamedPaths& field, const Json& value, const std::string& where) {
  if (!value.is_object()) fields::wrong_kind(value, where, "an object such as {\"books\": [\"books.txt\"]}");
  field.of.clear();
  for (const auto& [name, paths] : value.items()) {
    std::vector<std::string>& list = field.of[name];
    if (paths.is_string()) list = {paths.get<std::string>()};
    else fields::read(list, paths, where + "." + name);
    if (list.empty()) throw Error(fmt::format("{}.{} names no path", where, name)).hint("leave the name out");
  }
}

void to_json(Json& json, const NamedPaths& paths) {
  json = Json::object();
  for (const auto& [name, list] : paths.of) json[name] = list;
}

void to_json(Json& json, const PartNumbers& numbers) {
  json = Json::object();
  for (const auto& [part, number] : numbers.of) json[part] = number;
}

void to_json(Json& json, const ModelSection& section) { json = parse_json(section.json, "model"); }

void RunConfig::validate(const std::string& where) const {
  const Checker c(where);
  if (data.files.empty() && data.shards.empty())
    c.fail("data.files names no file, and data.shards no folder",
           "give text files, \"files\": [\"data/shakespeare/input.txt\"], or \"shards\" that cachalot data "
           "tokenize made");
  if (!data.files.empty() && !data.shards.empty())
    c.fail(fmt::format("data.files names {} files and data.shards {} folders", data.files.size(),
                       data.shards.size()),
           "a run reads text or shards: leave out one of the two");
  c.below("data.held_out", data.held_out, 1, "it is a share of the text: 0 or more, below 1");
  for (const auto& [key, numbers] :
       {std::pair("data.weights", &data.weights), std::pair("data.epochs", &data.epochs)})
    for (const auto& [part, number] : numbers->of)
      c.not_negative(fmt::format("{}.{}", key, part).c_str(), number);
  c.not_negative("data.max_epochs", data.max_epochs);
  if (data.packing != "concatenate" && data.packing != "best_fit")
    c.fail(fmt::format("data.packing \"{}\" is not known", data.packing), "concatenate or best_fit");
  if (!data.shards.empty()) {
    if (tokenizer.vocab_size != 0)
      c.fail(
          fmt::format("data.shards are given and tokenizer.vocab_size {}", tokenizer.vocab_size),
          "the tokens of shards are made: leave vocab_size out; the tokenizer beside the shards is used, or "
          "tokenizer.path");
  } else if (tokenizer.path.empty()) {
    const bool of_weights = tokenizer.vocab_size == 0 && !train.init_from.empty();  // they bring theirs
    if (tokenizer.vocab_size == 0 && !of_weights)
      c.fail(
          "tokenizer gives neither path nor vocab_size",
          "name a tokenizer.json, or say how many tokens a new one shall have: --tokenizer.vocab_size 2048");
    if (!of_weights)
      c.at_least("tokenizer.vocab_size", tokenizer.vocab_size, 258);  // every byte, begin and end of text
    c.at_most("tokenizer.vocab_size", tokenizer.vocab_size, int64_t{1} << 20);
  } else if (tokenizer.vocab_size != 0) {
    c.fail(fmt::format("tokenizer.path is \"{}\" and tokenizer.vocab_size {}", tokenizer.path,
                       tokenizer.vocab_size),
           "a tokenizer that is there has its size: leave out one of the two");
  }

  const TrainSection& t = train;
  c.at_least("train.seed", t.seed, 0);
  c.at_least("train.seq_len", t.seq_len, 1);
  c.at_most("train.seq_len", t.seq_len, int64_t{1} << 30);
  c.at_least("train.batch", t.batch, 1);
  c.at_most("train.batch", t.batch, kMostSequences);
  c.at_least("train.micro_batch", t.micro_batch, 0);
  c.at_most("train.micro_batch", t.micro_batch, kMostSequences);
  if (t.micro_batch > 0 && t.schedule.batch.empty() && t.batch % t.micro_batch != 0) {
    int64_t divisor = std::min(t.micro_batch, t.batch);
    while (t.batch % divisor != 0) --divisor;
    c.fail(
        fmt::format("train.batch is {}, which train.micro_batch {} does not divide", t.batch, t.micro_batch),
        fmt::format("--train.micro_batch {}", divisor));
  }
  if (t.micro_batch_sequences() * t.seq_len > kMostMicroBatchTokens)
    c.fail(fmt::format("{} sequences of {} tokens are {} in one micro-batch, more than {}",
                       t.micro_batch_sequences(), t.seq_len, t.micro_batch_sequences() * t.seq_len,
                       kMostMicroBatchTokens),
           "lower train.micro_batch or train.seq_len");
  c.at_least("train.tokens", t.tokens, 0);
  c.at_most("train.tokens", t.tokens, kMostTokens);
  c.at_least("train.steps", t.steps, 0);
  c.at_most("train.steps", t.steps, kMostTokens);
  if ((t.tokens > 0) == (t.steps > 0))
    c.fail(t.tokens > 0 ? fmt::format("train.tokens is {} and train.steps {}", t.tokens, t.steps)
                        : std::string("neither train.tokens nor train.steps is given"),
           "the budget is one of the two; set the other to 0");
  c.positive("train.lr", t.lr);
  c.not_negative("train.min_lr", t.min_lr);
  if (t.min_lr > t.lr)
    c.fail(fmt::format("train.min_lr is {}, above train.lr {}", t.min_lr, t.lr),
           "the cosine falls from lr to min_lr");
  c.at_least("train.warmup_steps", t.warmup_steps, 0);
  for (const SchedulePiece& p : t.schedule.batch)
    for (const auto& value : {p.from, p.to})
      if (value && !(*value >= 1 && *value <= double(kMostSequences)))
        c.fail(fmt::format("train.schedule.batch goes to {}", *value),
               fmt::format("a batch has between 1 and {} sequences", kMostSequences));
  double largest = t.schedule.batch.empty() ? double(t.batch) : 1;
  for (const SchedulePiece& p : t.schedule.batch)
    largest = std::max({largest, p.from.value_or(1), p.to.value_or(1)});
  if (double(t.steps) * largest * double(t.seq_len) > double(kMostTokens))
    c.fail(fmt::format("train.steps is {}, of up to {} sequences of {} tokens", t.steps, largest, t.seq_len),
           fmt::format("all steps together may have up to {} tokens", kMostTokens));
  const auto plan = [&](const TrainSection& section) {
    try {
      return StepPlan(section);
    } catch (const Error& e) {
      c.fail(e.what(), e.hint());
    }
  };
  TrainSection batches = t;  // a warm-up longer than the run has a message of its own
  batches.warmup_steps = 0;
  batches.schedule = {.batch = t.schedule.batch};
  const int64_t steps = plan(batches).steps();
  if (t.schedule.lr.empty() && t.warmup_steps > steps)
    c.fail(fmt::format("train.warmup_steps is {}, but the run has {} steps", t.warmup_steps, steps),
           fmt::format("lower it (--train.warmup_steps {}) or train longer", steps / 10));
  plan(t);
  c.below("train.beta1", t.beta1, 1, "it must be 0 or more, below 1");
  c.below(
      "train.beta2", t.beta2, kBeta2Limit,
      "it must be 0 or more, below 0.998: the second moment is kept in BF16, which would round every smaller "
      "change away");
  c.positive("train.eps", t.eps);
  c.not_negative("train.weight_decay", t.weight_decay);
  c.not_negative("train.clip", t.clip);
  c.below("train.ema_decay", t.ema_decay, 1, "it must be 0 (no average) or more, below 1");
  c.not_negative("train.mtp_lambda", t.mtp_lambda);
  c.not_negative("train.balance_alpha", t.balance_alpha);
  c.not_negative("train.bias_gamma", t.bias_gamma);
  try {
    parse_precision(t.precision);
  } catch (const Error& e) {
    c.fail(std::string("train.") + e.what(), e.hint());
  }
  if (t.recompute != "none" && t.recompute != "v3")
    c.fail(fmt::format("train.recompute \"{}\" is not known", t.recompute), "none or v3");
  c.at_least("train.threads", t.threads, 0);
  c.at_most("train.threads", t.threads, 4096);
  c.at_least("train.eval_every", t.eval_every, 0);
  c.at_least("train.eval_sequences", t.eval_sequences, 0);
  c.at_least("train.save_every", t.save_every, 0);
  c.at_least("train.log_every", t.log_every, 1);
  const auto one_of = [&](const char* key, const std::string& value, const std::vector<std::string>& known) {
    if (std::find(known.begin(), known.end(), value) == known.end())
      c.fail(fmt::format("{} is \"{}\"", key, value), fmt::format("{}", fmt::join(known, ", ")));
  };
  const GuardSection& g = guard;
  c.at_least("guard.window", g.window, GuardSection::kFewestSteps);
  c.at_most("guard.window", g.window, 100000);
  c.not_negative("guard.spike", g.spike);
  one_of("guard.on_spike", g.on_spike, {"log", "skip", "rewind", "stop"});
  one_of("guard.on_not_finite", g.on_not_finite, {"skip", "rewind", "stop"});
  c.at_least("guard.most_skipped", g.most_skipped, 1);
  c.at_least("guard.most_rewinds", g.most_rewinds, 1);
  c.at_least("guard.rewind_beyond", g.rewind_beyond, 0);
  c.at_least("guard.collapse_steps", g.collapse_steps, 0);
  c.not_negative("guard.collapse_share", g.collapse_share);
  one_of("guard.on_collapse", g.on_collapse, {"log", "rewind", "stop"});
  c.at_least("guard.recheck_every", g.recheck_every, 0);
  one_of("guard.on_corruption", g.on_corruption, {"retry", "stop"});
  c.not_negative("guard.hang_seconds", g.hang_seconds);
  c.not_negative("guard.hang_factor", g.hang_factor);
  c.at_least("train.keep_last", t.keep_last, 1);
  c.at_least("train.keep_every", t.keep_every, 0);
  c.not_negative("train.price_per_hour", t.price_per_hour);
  c.not_negative("train.price_per_kwh", t.price_per_kwh);
}

void apply_overrides(Json& json, const Overrides& overrides) {
  for (const auto& [key, text] : overrides) {
    // Shards instead of the file's text, or text instead of its shards; likewise the tokenizer goes with
    // them.
    if ((key == "data.files" || key == "data.shards") && json.contains("data") && json["data"].is_object()) {
      const char* other = key == "data.files" ? "shards" : "files";
      const bool both = std::any_of(overrides.begin(), overrides.end(),
                                    [&](const auto& o) { return o.first == std::string("data.") + other; });
      if (!both) json["data"].erase(other);
      if (key == "data.shards" && json.contains("tokenizer") && json["tokenizer"].is_object())
        json["tokenizer"].erase("vocab_size");
    }
    // The budget is tokens or steps: who gives one on the command line means it instead of the file's.
    if (key == "train.tokens" || key == "train.steps") {
      const char* other = key == "train.tokens" ? "steps" : "tokens";
      const bool both = std::any_of(overrides.begin(), overrides.end(),
                                    [&](const auto& o) { return o.first == std::string("train.") + other; });
      if (!both && json.contains("train") && json["train"].is_object()) json["train"].erase(other);
    }
    fields::override_key(json, key, text);
  }
  for (const char* list : {"files", "shards"})  // one file: --data.files input.txt
    if (json.contains("data") && json["data"].is_object() && json["data"].contains(list) &&
        json["data"][list].is_string())
      json["data"][list] = Json::array({json["data"][list]});
}

RunConfig load_run_config(const std::string& path, const Overrides& overrides) {
  if (std::filesystem::is_directory(path))
    throw Error(fmt::format("{} is a directory, not a training configuration", path))
        .hint("name a file like configs/nano.json");
  Json json = read_json_file(path);
  if (!json.is_object()) fields::wrong_kind(json, path, "an object");
  apply_overrides(json, overrides);
  if (json.contains("train")) read_budget(json["train"], path + ": train.tokens");
  RunConfig config;
  read_fields(config, json, path);
  config.validate(path);
  return config;
}

ModelConfig resolve_model(const RunConfig& config, int64_t vocab, int64_t end_of_text,
                          const std::string& where) {
  const Checker c(where);
  Json json = parse_json(config.model.json, "model");
  if (json.empty()) c.fail("there is no \"model\" section", "copy one from configs/nano.json");
  if (!json.contains("model_type")) json["model_type"] = "deepseek_v3";
  if (!json.contains("vocab_size")) json["vocab_size"] = vocab;
  for (const char* key : {"bos_token_id", "eos_token_id"})
    if (!json.contains(key)) json[key] = end_of_text;
  const ModelConfig model = parse_model_config(json, (where.empty() ? "" : where + ": ") + "model");
  if (model.vocab_size < vocab)
    c.fail(fmt::format("model.vocab_size is {}, but the tokenizer has {} tokens", model.vocab_size, vocab),
           fmt::format("--model.vocab_size {}, or leave the key out", vocab));
  const TrainSection& t = config.train;
  if (t.seq_len > model.max_position_embeddings)
    c.fail(fmt::format("train.seq_len is {}, but model.max_position_embeddings {}", t.seq_len,
                       model.max_position_embeddings),
           fmt::format("--train.seq_len {} or --model.max_position_embeddings {}",
                       model.max_position_embeddings, t.seq_len));
  if (t.seq_len <= model.num_nextn_predict_layers)
    c.fail(
        fmt::format(
            "train.seq_len is {} with {} depths of multi-token prediction (model.num_nextn_predict_layers)",
            t.seq_len, model.num_nextn_predict_layers),
        "depth k predicts k tokens further: the sequence must be longer than the number of depths");
  return model;
}

std::vector<fields::Line> list_run_config() {
  const Json v3 = model_config_json(ModelConfig{.yarn = YarnConfig{}}, "bfloat16");
  std::vector<fields::Line> lines;
  for (const ModelKey& k : kModelKeys) {
    const Json& value = v3.at(k.key);
    lines.push_back({std::string("model.") + k.key, value.is_object() ? "YaRN" : value.dump(), k.meaning});
  }
  const RunConfig defaults;
  for (const auto& section : {list_fields(defaults.tokenizer, "tokenizer."),
                              list_fields(defaults.data, "data."), list_fields(defaults.train, "train."),
                              list_fields(defaults.guard, "guard.")})
    lines.insert(lines.end(), section.begin(), section.end());
  return lines;
}

}  // namespace cachalot
