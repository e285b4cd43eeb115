#include "train/pretrain.h"

#include <fmt/format.h>
#include <fmt/ostream.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <future>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/cpu.h"
#include "base/files.h"
#include "base/text.h"
#include "base/thread_pool.h"
#include "config/fields.h"
#include "config/params.h"
#include "data/bpe_trainer.h"
#include "data/corpus.h"
#include "model/load.h"
#include "train/checkpoint_writer.h"
#include "train/dry_run.h"
#include "train/init_from.h"
#include "train/resume.h"
#include "train/run_directory.h"
#include "train/step_plan.h"
#include "train/telemetry.h"
#include "train/trainer.h"
#include "train/training_data.h"
#include "train/training_loop.h"
#include "train/watchdog.h"

namespace cachalot {

namespace fs = std::filesystem;

namespace {

// Learns the tokens from what will be trained on, not from what is held out.
TrainedBpe train_tokenizer(const RunConfig& config, ThreadPool& pool) {
  BpeTrainer trainer({.vocab_size = config.tokenizer.vocab_size, .pool = &pool});
  for (const std::string& file : config.data.files) {
    const std::string text = read_file(file);
    trainer.add_text(std::string_view(text).substr(0, training_bytes(text, config.data.held_out)));
  }
  return trainer.train();
}

// What --overwrite removes must not be what the new run begins with.
void require_outside(const std::string& run_dir, const RunConfig& config) {
  const fs::path replaced = fs::weakly_canonical(run_dir);
  const auto require = [&](const char* what, const std::string& path) {
    const fs::path below = fs::weakly_canonical(path).lexically_relative(replaced);
    if (!below.empty() && *below.begin() != "..")
      throw Error(fmt::format("{} in {} are to be used by the run that replaces it", what, run_dir))
          .hint("--run-dir for another place, or a copy of them elsewhere");
  };
  if (!config.train.init_from.empty())
    require("the weights", resolve_model_directory(config.train.init_from));
  if (!config.tokenizer.path.empty()) require("the tokens", config.tokenizer.path);
}

// What to do about a file of a run that is damaged or gone.
std::string copies_of_run(const std::string& run_dir, const std::string& file) {
  return fmt::format("every checkpoint has a copy of it: {}/checkpoints/step-.../{}", run_dir, file);
}

// The tokenizer that a run uses, and how it gets into the run directory. A new one is kept in memory until
// then: another process may begin there at the same time, and a dry run writes nothing.
class RunTokenizer {
 public:
  RunTokenizer(const RunConfig& config, const std::string& run_dir, bool resume, ThreadPool& pool)
      : path_(config.tokenizer.path), origin_(path_) {
    const std::string& init_from = config.train.init_from;
    if (resume) {
      if (!path_.empty()) require_same(path_, run_dir);
      path_ = run_dir, origin_ = "the run's";
    }
    if (path_.empty() && !config.data.shards.empty())
      path_ = tokenizer_of_shards(config.data.shards), origin_ = "the one of the shards";
    if (path_.empty() && !init_from.empty() && has_tokenizer(init_from))
      path_ = resolve_model_directory(init_from), origin_ = "the one of " + init_from;
    if (!path_.empty()) {
      tokenizer_.emplace(resume ? load_of_run(run_dir) : Tokenizer::load(path_));
    } else {
      path_ = origin_ = "learned from the text";
      learn(config, pool);
    }
    if (!resume && !init_from.empty() && has_tokenizer(init_from))
      require_same_tokens(*tokenizer_, init_from);
  }
  const Tokenizer& get() const { return *tokenizer_; }
  const std::string& path() const { return path_; }  // of one that was learned: "learned from the text"
  const std::string& origin() const { return origin_; }
  void save(const std::string& directory) const {
    if (learned_) {
      save_tokenizer(*learned_, directory);
      return;
    }
    const fs::path json = json_of(path_);
    write_file_atomic(directory + "/tokenizer.json", read_file(json.string()));
    const fs::path config = json.parent_path() / "tokenizer_config.json";
    if (fs::exists(config))
      write_file_atomic(directory + "/tokenizer_config.json", read_file(config.string()));
  }

 private:
  // By way of files that are there for this only.
  void learn(const RunConfig& config, ThreadPool& pool) {
    if (config.tokenizer.vocab_size == 0)
      throw Error(fmt::format("{} has no tokenizer, and tokenizer gives neither path nor vocab_size",
                              config.train.init_from))
          .hint("name the tokenizer of these weights: --tokenizer.path");
    learned_ = train_tokenizer(config, pool);
    std::error_code code;
    const fs::path folder = fs::temp_directory_path(code);
    if (code)
      throw Error(fmt::format("there is no folder for temporary files: {}", code.message()))
          .hint("set TMPDIR to one");
    const AtomicDirectory scratch((folder / fmt::format("cachalot-{}.tokenizer", getpid())).string());
    save_tokenizer(*learned_, scratch.path());
    tokenizer_.emplace(Tokenizer::load(scratch.path()));
  }
  static Tokenizer load_of_run(const std::string& run_dir) {
    try {
      return Tokenizer::load(run_dir);
    } catch (const Error& e) {
      throw Error(e.what()).hint(copies_of_run(run_dir, "model/tokenizer.json"));
    }
  }
  static fs::path json_of(const fs::path& path) {
    return fs::is_directory(path) ? path / "tokenizer.json" : path;
  }
  static void require_same(const std::string& given, const std::string& run_dir) {
    if (read_file(json_of(given).string()) == read_file(run_dir + "/tokenizer.json")) return;
    throw Error(fmt::format("{} is another tokenizer than the run in {} has", given, run_dir))
        .hint(fmt::format("--tokenizer.path {}/tokenizer.json, or another --run-dir", run_dir));
  }

  std::string path_, origin_;
  std::optional<TrainedBpe> learned_;
  std::optional<Tokenizer> tokenizer_;
};

std::string resolved_json(RunConfig config, const ModelConfig& model) {
  config.model.json =
      model_config_json(model, config.train.precision == "f32" ? "float32" : "bfloat16").dump();
  config.train.micro_batch = config.train.micro_batch_sequences();
  return write_fields(config).dump(2) + "\n";
}

// What the run in `run_dir` was begun with, compared with what it shall go on with (train/resume.h).
std::vector<std::string> compare_with_run(const std::string& resolved, const std::string& run_dir) {
  const std::string path = run_dir + "/config.json";
  Json json;
  try {
    json = read_json_file(path);
  } catch (const Error& e) {
    throw Error(e.what()).hint(copies_of_run(run_dir, "config.json"));
  }
  RunConfig was;  // fields that a version before did not have get their defaults
  read_fields(was, json, path);
  return compare_configs(write_fields(was), parse_json(resolved, "the configuration"), run_dir);
}

void print_start(std::ostream& out, const RunConfig& config, const ModelConfig& model,
                 const RunTokenizer& tokenizer, const TokenData& data, const PlannedData& planned,
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
  fmt::print(out, "tokenizer  {} tokens, {}\n", tokenizer.get().vocab_size(), tokenizer.origin());
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
  const StepPlan steps(t);
  const int64_t first = steps.batch(1), last = steps.batch(steps.steps());
  const double passes = double(steps.rows()) / double(rows);
  fmt::print(out, "training   {} steps of {} x {} = {} tokens, {} times the text\n           {} on {}\n",
             steps.steps(), first == last ? fmt::format("{}", last) : fmt::format("{} to {}", first, last),
             t.seq_len, count(steps.tokens()),
             passes < 0.1 ? fmt::format("{:.2g}", passes) : fmt::format("{:.1f}", passes), t.precision,
             device.name());
  if (!held_out.windows().empty())
    fmt::print(out, "held out   every token once, in {} windows of up to {} targets\n",
               held_out.windows().size(), t.seq_len);
  if (const std::vector<std::string> sets = held_out.sets(); sets.size() > 1)
    fmt::print(out, "           {} sets, each scored: {}\n", sets.size(), fmt::join(sets, ", "));
  fmt::print(out,
             "memory     {} needed, {} free\n           weights {}, gradients {}, optimizer {},\n"
             "           activations {}, tables {}\n",
             bytes(plan.total()), bytes(device.free_bytes()), bytes(plan.weights), bytes(plan.gradients),
             bytes(plan.optimizer), bytes(plan.arena), bytes(plan.tables));
  if (t.ema_decay > 0)
    fmt::print(out, "average    of the weights, decay {}, {} in memory of the host\n", t.ema_decay,
               bytes(4 * parameter_count(parameter_table(model))));
  fmt::print(out, "run        {}\n", run_dir);
  out << std::flush;
}

// What a reader of the run's report wants to know of where it ran.
void write_machine(const std::string& run_dir, const Device& device, const std::string& meters) {
  char host[256] = "";
  gethostname(host, sizeof host - 1);
  const Json machine{{"device", device.name()},
                     {"processor", cpu_model_name()},
                     {"cpus", available_cpus()},
                     {"host", host},
                     {"measured", meters}};
  write_file_atomic(run_dir + "/machine.json", machine.dump(2) + "\n");
}

// The disk may be what hangs: nothing waits for it but a thread that nobody waits for.
void tell_of_hang(const std::string& run_dir, const std::string& report, const PretrainOptions& options) {
  options.on_hang(report);
  std::promise<void> written;
  const std::future<void> done = written.get_future();
  std::thread([file = run_dir + "/hang.txt", report, written = std::move(written)]() mutable {
    try {
      write_file_atomic(file, report);
    } catch (const Error&) {  // a full disk, say: the terminal has it
    }
    written.set_value();
  }).detach();
  constexpr auto kPatience = std::chrono::seconds(3);
  done.wait_for(kPatience);
  if (options.end_hung) options.end_hung();
}

std::string describe(const Snapshot& snapshot) {
  switch (snapshot.place()) {
    case Snapshot::Place::device:
      return fmt::format("from a copy on the device, {}, while training goes on",
                         human_bytes(double(snapshot.bytes())));
    case Snapshot::Place::host:
      return fmt::format("from a copy in memory of the host, {}, while training goes on",
                         human_bytes(double(snapshot.bytes())));
    case Snapshot::Place::nowhere:
      return "without a copy, for which there is no memory: training waits meanwhile";
  }
  CHECK(false);
}

// Of waits that should not be seen: "3.2 ms", or seconds from one on.
std::string milliseconds(double seconds) {
  return seconds < 1 ? fmt::format("{:.3g} ms", 1000 * seconds) : human_seconds(seconds);
}

void print_end(std::ostream& out, const LoopResult& done, int64_t steps, const Telemetry& telemetry) {
  if (done.stopped) {
    fmt::print(out, "stopped at step {} of {}; saved {}\nthe same command goes on from there\n", done.steps,
               steps, done.checkpoint);
    out << std::flush;
    return;
  }
  if (done.here == 0)
    fmt::print(out,
               "complete   all {} steps were done before; --overwrite begins anew, a larger budget goes on\n",
               done.steps);
  const double in_steps = telemetry.seconds_in_steps();
  const std::string curve = telemetry.curve();
  if (!curve.empty()) fmt::print(out, "\n{}\n", curve);
  if (done.held_out)
    fmt::print(
        out, "held out   {:.4f} bits per byte (loss {:.4f} nats a token; {} tokens, {} bytes, each once)\n",
        done.held_out->bits_per_byte(), done.held_out->loss(), done.held_out->tokens, done.held_out->bytes);
  if (done.here > 0)
    fmt::print(out, "trained    {} tokens in {} steps, {}; {} tokens/s\n",
               human_count(double(done.tokens_here)), done.here, human_seconds(in_steps),
               human_count(double(done.tokens_here) / std::max(in_steps, 1e-9)));
  if (done.saved > 0)
    fmt::print(out, "saving     {} checkpoint{}; training waited {} in all ({:.2g} %), {} at most\n",
               done.saved, done.saved > 1 ? "s" : "", milliseconds(done.stall),
               100 * done.stall / std::max(in_steps + done.stall, 1e-9), milliseconds(done.longest_stall));
  fmt::print(out, "saved      {}\n", done.checkpoint);
  out << std::flush;
}

}  // namespace

PretrainResult pretrain(const RunConfig& given, const PretrainOptions& options, std::ostream& out,
                        const std::atomic<bool>& stop) {
  RunConfig config = given;
  const TrainSection& t = config.train;
  const std::string& run_dir = options.run_dir;
  const bool resume = RunDirectory::look(run_dir) == RunDirectory::Holds::run && !options.overwrite;
  if (!options.require_resume && !resume && !options.overwrite) RunDirectory::require_free(run_dir);
  if (options.overwrite) require_outside(run_dir, config);
  if (options.require_resume && !resume)
    throw Error(fmt::format("{} holds no run to resume", run_dir))
        .hint("leave --resume out to begin one, or name another --run-dir");
  // What is wrong with the model should show before the minutes that a tokenizer may take.
  if (config.tokenizer.path.empty() && config.data.shards.empty())
    resolve_model(config, 258, 1, options.config_path);

  ThreadPool threads(t.threads ? int(t.threads) : available_cpus());  // of the text
  RunTokenizer run_tokenizer(config, run_dir, resume, threads);
  const Tokenizer& tokenizer = run_tokenizer.get();
  const ModelConfig model =
      resolve_model(config, tokenizer.vocab_size(), tokenizer.eos_id().value_or(0), options.config_path);
  if (!t.init_from.empty() && !resume) require_same_shapes(model, t.init_from);
  const std::string resolved = resolved_json(config, model);
  std::vector<std::string> changes;
  if (resume) changes = compare_with_run(resolved, run_dir);
  const TokenData data = load_training_data(config.data, tokenizer, run_tokenizer.path(), &threads);
  const PlannedData planned = plan_data(data, config.data, t, model.num_nextn_predict_layers);
  const HeldOut held_out(data.held_out, tokenizer, t.seq_len,
                         load_validation(config.data, data, tokenizer, run_tokenizer.path(), &threads));

  const DeviceOptions device_options{.threads = int(t.threads)};
  const auto device = options.open ? options.open(options.device, device_options)
                                   : open_device(options.device, device_options);
  const MemoryPlan plan = Trainer::plan(model, t);
  print_start(out, config, model, run_tokenizer, data, planned, held_out, *device, plan, run_dir);
  if (options.dry_run) print_disk(out, model, config, run_dir);
  plan.require_fit(*device, t);

  if (options.dry_run) {
    print_dry_run(out, model, config, *device, plan, options.device,
                  resume ? RunDirectory::newest_step(run_dir) : 0);
    return {};
  }
  if (stop) {
    fmt::print(out, "stopped before the first step; nothing to save\n");
    return {.stopped = true};
  }
  const RunDirectory run(run_dir,
                         resume              ? RunDirectory::Open::resume
                         : options.overwrite ? RunDirectory::Open::overwrite
                                             : RunDirectory::Open::fresh,
                         {.last = t.keep_last, .every = t.keep_every});
  std::optional<Checkpoint> checkpoint;
  const auto tell = [&](const std::string& line) { out << line << std::endl; };
  const BitsIdentity bits = BitsIdentity::of(*device);
  if (resume) {
    checkpoint = newest_checkpoint(run, tell);
    if (checkpoint && !options.allow_different_bits) require_same_bits(checkpoint->state().bits, bits);
    // Other data are refused here, before anything of the run is written.
    if (checkpoint) planned.loader->seek(cursor_of(*checkpoint), checkpoint->state().step);
    for (const std::string& change : changes) tell("changed    " + change);
    tell(checkpoint ? fmt::format("resumed    from {}", checkpoint->directory())
                    : "resumed    from the beginning: there is no checkpoint yet");
  } else {
    run_tokenizer.save(run.path());
  }
  run.write_config(resolved);  // last: with it the folder is a run

  Activity activity;
  const auto followed = open_followed_device(*device, activity);
  Stream s(*followed);
  Trainer trainer(s, model, t, plan.arena);
  const auto begin = [&] {
    trainer.init();
    if (!t.init_from.empty()) initialize_from(s, trainer, t.init_from);
  };
  if (!checkpoint) begin();
  Telemetry telemetry(out, options.style, run.metrics_path(), t,
                      checkpoint ? checkpoint->state().metrics_bytes : 0);
  Meters meters(model, t, *device, options.device);
  fmt::print(out, "measuring  {}\n", meters.describe());
  write_machine(run.path(), *device, meters.describe());
  telemetry.use(std::move(meters));
  telemetry.write_tensorboard(run.path() + "/tb", trainer.expert_layers());
  if (checkpoint && telemetry.last_step() != checkpoint->state().step)
    tell(
        fmt::format("WARNING: {} ends with step {}, the checkpoint is of step {}: the lines between are lost",
                    run.metrics_path(), telemetry.last_step(), checkpoint->state().step));
  CheckpointWriter writer(*device, trainer,
                          {.run = &run,
                           .model = &model,
                           .config = resolved,
                           .storage = trainer.params().recipe().weight,
                           .progress = [&] { ++activity.progress; }});
  fmt::print(out, "saving     {}, {}\n",
             t.save_every > 0 ? fmt::format("every {} steps", t.save_every)
                              : "at the end only (--train.save_every N: also on the way)",
             describe(writer.snapshot()));
  std::optional<Watchdog> watchdog;
  if (options.on_hang && config.guard.hang_seconds > 0)
    watchdog.emplace(activity, Watchdog::Options{.least_seconds = config.guard.hang_seconds,
                                                 .factor = config.guard.hang_factor,
                                                 .on_hang = [&](const std::string& report) {
                                                   tell_of_hang(run_dir, report, options);
                                                 }});
  TrainingLoop loop({.config = &config,
                     .run = &run,
                     .device = device.get(),
                     .stream = &s,
                     .trainer = &trainer,
                     .loader = planned.loader.get(),
                     .held_out = &held_out,
                     .telemetry = &telemetry,
                     .writer = &writer,
                     .activity = &activity,
                     .watchdog = watchdog ? &*watchdog : nullptr,
                     .restart = begin,
                     .bits = bits});
  if (resume) loop.resume(checkpoint);
  PretrainResult result{.resumed_from = checkpoint ? checkpoint->state().step : 0};
  checkpoint.reset();
  const LoopResult done = loop.run(stop);
  result.steps = done.steps;
  result.stopped = done.stopped;
  result.last_loss = done.last_loss;
  result.held_out = done.held_out;
  result.checkpoint = done.checkpoint;
  print_end(out, done, StepPlan(t).steps(), telemetry);
  return result;
}

}  // namespace cachalot
