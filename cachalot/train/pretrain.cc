#include "train/pretrain.h"

#include <fmt/format.h>
#include <fmt/ostream.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/files.h"
#include "base/text.h"
#include "base/thread_pool.h"
#include "config/fields.h"
#include "config/params.h"
#include "data/bpe_trainer.h"
#include "data/corpus.h"
#include "model/load.h"
#include "train/run_directory.h"
#include "train/schedule.h"
#include "train/telemetry.h"
#include "train/trainer.h"
#include "train/training_data.h"

namespace cachalot {

namespace fs = std::filesystem;

namespace {

constexpr int kMostSkippedSteps = 10;

// Learns the tokens from what will be trained on, not from what is held out.
TrainedBpe train_tokenizer(const RunConfig& config, ThreadPool& pool) {
  BpeTrainer trainer({.vocab_size = config.tokenizer.vocab_size, .pool = &pool});
  for (const std::string& file : config.data.files) {
    const std::string text = read_file(file);
    trainer.add_text(std::string_view(text).substr(0, training_bytes(text, config.data.held_out)));
  }
  return trainer.train();
}

// The tokenizer that a run uses, and how it gets into the run directory. A new one lives in a folder beside
// it until then, which is gone when the run does not come about.
class RunTokenizer {
 public:
  RunTokenizer(const RunConfig& config, const std::string& run_dir, ThreadPool& pool)
      : path_(config.tokenizer.path) {
    if (path_.empty() && !config.data.shards.empty()) path_ = tokenizer_of_shards(config.data.shards);
    if (!path_.empty()) {
      tokenizer_.emplace(Tokenizer::load(path_));
      return;
    }
    scratch_.emplace(run_dir + ".tokenizer");
    path_ = scratch_->path();
    save_tokenizer(train_tokenizer(config, pool), path_);
    tokenizer_.emplace(Tokenizer::load(path_));
  }
  const Tokenizer& get() const { return *tokenizer_; }
  const std::string& path() const { return path_; }
  void move_to(const std::string& directory) {
    const fs::path from(path_), json = fs::is_directory(from) ? from / "tokenizer.json" : from;
    write_file_atomic(directory + "/tokenizer.json", read_file(json.string()));
    const fs::path config = json.parent_path() / "tokenizer_config.json";
    if (fs::exists(config))
      write_file_atomic(directory + "/tokenizer_config.json", read_file(config.string()));
    scratch_.reset();
  }

 private:
  std::string path_;
  std::optional<AtomicDirectory> scratch_;
  std::optional<Tokenizer> tokenizer_;
};

// Trained tokens of each part so far, when there are several.
std::vector<std::pair<std::string, int64_t>> part_tokens(const Loader& loader, const TrainSection& t) {
  std::vector<std::pair<std::string, int64_t>> tokens;
  if (loader.parts().size() == 1) return tokens;
  const std::vector<int64_t> rows = loader.part_rows(loader.cursor().next_row);
  for (size_t i = 0; i < rows.size(); ++i) tokens.emplace_back(loader.parts()[i].name(), rows[i] * t.seq_len);
  return tokens;
}

std::string resolved_json(RunConfig config, const ModelConfig& model) {
  config.model.json =
      model_config_json(model, config.train.precision == "f32" ? "float32" : "bfloat16").dump();
  config.train.micro_batch = config.train.micro_batch_sequences();
  return write_fields(config).dump(2) + "\n";
}

void print_start(std::ostream& out, const RunConfig& config, const ModelConfig& model,
                 const Tokenizer& tokenizer, const TokenData& data, const PlannedData& planned,
                 const HeldOut& held_out, const Device& device, const MemoryPlan& plan,
                 const std::string& run_dir) {
  const auto bytes = [](int64_t n) { return human_bytes(double(n)); };
  const auto count = [](int64_t n) { return human_count(double(n)); };
  const TrainSection& t = config.train;
  const auto tokens = [](const std::vector<TokenStream>& parts) {
    int64_t sum = 0;
    for (const TokenStream& p : parts) sum += p.tokens();
    return sum;
  };
  int64_t text_bytes = 0;
  for (const TokenStream& p : data.train) text_bytes += p.text_bytes();
  fmt::print(out, "text       {} tokens to train on, {:.2f} bytes each; {} held out\n",
             count(tokens(data.train)), double(text_bytes) / double(tokens(data.train)),
             count(tokens(data.held_out)));
  const auto& mixture = planned.mixture.parts;
  for (size_t i = 0; i < mixture.size() && mixture.size() > 1; ++i)
    fmt::print(out, "           {:<16} {:>6} tokens, {:5.1f} % of the run, passed {:.3g} times\n",
               mixture[i].name, count(planned.loader->parts()[i].tokens()), 100 * mixture[i].share,
               mixture[i].epochs);
  if (config.data.packing == "best_fit") {
    double fill = 0;
    for (size_t i = 0; i < mixture.size(); ++i) fill += mixture[i].share * planned.loader->sampler(i).fill();
    fmt::print(out, "           whole documents share rows (best fit), which are {:.2f} % full\n",
               100 * fill);
  }
  fmt::print(out, "tokenizer  {} tokens, {}\n", tokenizer.vocab_size(),
             !config.tokenizer.path.empty() ? config.tokenizer.path
             : config.data.shards.empty()   ? "learned from the text"
                                            : "the one of the shards");
  std::string parts = fmt::format("{} layers", model.num_hidden_layers);
  if (model.has_experts(model.layers_with_mtp() - 1))
    parts += fmt::format(" ({} dense), {} of {} experts{}",
                         std::min(model.first_k_dense_replace, model.num_hidden_layers),
                         model.num_experts_per_tok, model.n_routed_experts,
                         model.n_shared_experts ? fmt::format(" and {} shared", model.n_shared_experts) : "");
  if (model.num_nextn_predict_layers) parts += fmt::format(", MTP depth {}", model.num_nextn_predict_layers);
  fmt::print(out, "model      {} parameters, {} active a token\n           {}\n",
             count(parameter_count(parameter_table(model))), count(active_parameter_count(model)), parts);
  int64_t rows = 0;  // of one pass over everything
  for (size_t i = 0; i < mixture.size(); ++i) rows += planned.loader->sampler(i).rows_per_epoch();
  fmt::print(out, "training   {} steps of {} x {} = {} tokens, {:.1f} times the text\n           {} on {}\n",
             t.total_steps(), t.batch, t.seq_len, count(t.total_steps() * t.tokens_per_step()),
             double(t.total_steps() * t.batch) / double(rows), t.precision, device.name());
  if (!held_out.windows().empty())
    fmt::print(out, "held out   every token once, in {} windows of up to {} targets\n",
               held_out.windows().size(), t.seq_len);
  fmt::print(out,
             "memory     {} needed, {} free\n           weights {}, gradients {}, optimizer {},\n"
             "           activations {}, tables {}\n",
             bytes(plan.total()), bytes(device.free_bytes()), bytes(plan.weights), bytes(plan.gradients),
             bytes(plan.optimizer), bytes(plan.arena), bytes(plan.tables));
  fmt::print(out, "run        {}\n", run_dir);
  out << std::flush;
}

}  // namespace

PretrainResult pretrain(const RunConfig& config, const PretrainOptions& options, std::ostream& out,
                        const std::atomic<bool>& stop) {
  const TrainSection& t = config.train;
  RunDirectory::require_usable(options.run_dir, options.overwrite);
  // What is wrong with the model should show before the minutes that a tokenizer may take.
  if (config.tokenizer.path.empty() && config.data.shards.empty())
    resolve_model(config, 258, 1, options.config_path);

  ThreadPool threads(t.threads ? int(t.threads) : available_cpus());  // of the text
  RunTokenizer run_tokenizer(config, options.run_dir, threads);
  const Tokenizer& tokenizer = run_tokenizer.get();
  const TokenData data = load_training_data(config.data, tokenizer, run_tokenizer.path(), &threads);
  const ModelConfig model =
      resolve_model(config, tokenizer.vocab_size(), tokenizer.eos_id().value_or(0), options.config_path);
  const PlannedData planned = plan_data(data, config.data, t, model.num_nextn_predict_layers);
  Loader& loader = *planned.loader;
  const HeldOut held_out(data.held_out, tokenizer, t.seq_len);

  const auto device = open_device(options.device, {.threads = int(t.threads)});
  const MemoryPlan plan = Trainer::plan(model, t);
  print_start(out, config, model, tokenizer, data, planned, held_out, *device, plan, options.run_dir);
  plan.require_fit(*device, t);

  if (stop) {
    fmt::print(out, "stopped before the first step; nothing to save\n");
    return {.stopped = true};
  }
  const RunDirectory run(options.run_dir, options.overwrite);
  run.write_config(resolved_json(config, model));
  run_tokenizer.move_to(run.path());

  Stream s(*device);
  Trainer trainer(s, model, t, plan.arena);
  trainer.init();
  const Schedule schedule{
      .lr = t.lr, .min_lr = t.min_lr, .warmup_steps = t.warmup_steps, .total_steps = t.total_steps()};
  Telemetry telemetry(out, options.style, run.metrics_path(), t);
  PretrainResult result;
  int64_t saved_step = 0;
  const auto save = [&](int64_t step) {
    if (step == saved_step) return;
    result.checkpoint = run.save_checkpoint(step, [&](const std::string& directory) {
      save_model(s, trainer.params(), model, [&](size_t i) { return trainer.optimizer().master(i); },
                 directory, {.storage = trainer.params().recipe().weight, .tokenizer_directory = run.path()});
    });
    saved_step = step;
  };

  int skipped = 0;
  while (result.steps < t.total_steps() && (result.steps == 0 || !stop)) {
    const int64_t step = result.steps + 1;
    telemetry.step_begins();
    const LoadedBatch batch = loader.next();
    const StepMetrics m = trainer.step(batch.rows, schedule.at(step));
    telemetry.step_ends();
    result.steps = step;
    result.last_loss = m.loss;

    std::optional<HeldOut::Result> score;
    const bool last = step == t.total_steps();
    if (last) save(step);  // before the evaluation: whatever happens now, the work is safe
    if (last || (t.eval_every > 0 && step % t.eval_every == 0))
      score = held_out.score(trainer, last ? 0 : t.eval_sequences, stop);
    if (last) result.held_out = score;
    telemetry.step(step, m, score, part_tokens(loader, t));

    skipped = m.updated ? 0 : skipped + 1;
    if (skipped == kMostSkippedSteps) {
      save(step);
      throw Error(
          fmt::format(
              "the norm of the gradient was not finite in {} steps in a row, {} the last; the weights as "
              "they were before are in {}",
              kMostSkippedSteps, step, result.checkpoint))
          .hint("a lower --train.lr, a longer --train.warmup_steps or a smaller --train.clip");
    }
    if (!last && t.save_every > 0 && step % t.save_every == 0) save(step);
  }
  telemetry.finish();
  result.stopped = result.steps < t.total_steps();
  if (result.stopped) {
    save(result.steps);
    fmt::print(out, "stopped at step {} of {}; saved {}\n", result.steps, t.total_steps(), result.checkpoint);
    out << std::flush;
    return result;
  }
  const int64_t tokens = result.steps * t.tokens_per_step();
  const double rate = double(tokens) / std::max(telemetry.seconds_in_steps(), 1e-9);
  fmt::print(out, "\n{}\n", telemetry.curve());
  if (result.held_out)
    fmt::print(out,
               "held out   {:.4f} bits per byte (loss {:.4f} nats a token; {} tokens, {} bytes, each once)\n",
               result.held_out->bits_per_byte(), result.held_out->loss(), result.held_out->tokens,
               result.held_out->bytes);
  fmt::print(out, "trained    {} tokens in {} steps, {}; {} tokens/s\n", human_count(double(tokens)),
             result.steps, human_seconds(telemetry.seconds()), human_count(rate));
  fmt::print(out, "saved      {}\n", result.checkpoint);
  out << std::flush;
  return result;
}

}  // namespace cachalot
