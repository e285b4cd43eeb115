// cachalot report: one page of a run, also while it goes on.
#include <fmt/format.h>
#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <ctime>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/common_options.h"
#include "cli/load_progress.h"
#include "cli/prompt.h"
#include "cli/terminal.h"
#include "data/tokenizer.h"
#include "infer/engine.h"
#include "infer/generation_config.h"
#include "model/load.h"
#include "train/config.h"
#include "train/newest_model.h"
#include "train/report.h"
#include "train/run_directory.h"
#include "train/step_plan.h"

namespace cachalot::cli {

namespace {

namespace fs = std::filesystem;

struct Options {
  std::string run, out, device = "cpu", precision = "bf16";
  std::vector<std::string> prompts;
  int64_t samples = 2, new_tokens = 120;
  int threads = 0;
};

using Samples = std::vector<std::pair<std::string, std::string>>;  // prompt, what follows

// Texts by the model in `directory`, drawn on `device`.
Samples draw_samples(const Options& o, Device& device, const std::string& directory) {
  const ModelConfig config = load_model_config(directory);
  const Tokenizer tokenizer = Tokenizer::load(directory);
  const GenerationConfig wishes = load_generation_config(directory, config);
  std::vector<Request> requests;
  std::vector<std::string> prompts = o.prompts;
  prompts.resize(std::max(prompts.size(), size_t(o.samples)));  // the others begin a document
  for (size_t i = 0; i < prompts.size(); ++i) {
    Request r;
    r.prompt = encode_prompt(tokenizer, config, prompts[i]);
    r.max_new_tokens = std::min(o.new_tokens, config.max_position_embeddings - int64_t(r.prompt.size()));
    r.sampling = {.temperature = 0.8, .top_p = 0.95, .top_k = 0, .seed = uint64_t(i + 1)};
    r.end_tokens = wishes.end_tokens;
    requests.push_back(std::move(r));
  }
  Stream stream(device);
  const LoadedModel model = load_model(stream, directory, parse_precision(o.precision),
                                       {.drop_mtp = true, .progress = show_loading()});
  const EngineOptions options = checked(model.config, {.max_context = config.max_position_embeddings});
  Engine engine(device, model.config, *model.params, options);
  Samples samples;
  for (size_t i = 0; i < requests.size(); ++i) {
    check(requests[i], model.config, options, "a prompt of the report");
    const Completion c = engine.generate(requests[i], [](size_t, std::span<const int32_t>) { return true; });
    std::string text;
    for (const int32_t id : c.tokens) text += tokenizer.token_bytes(id);
    samples.emplace_back(prompts[i], utf8_lossy(text));
  }
  return samples;
}

// By the newest checkpoint; none when the run has not saved one yet.
Samples samples_of_run(const Options& o) {
  Samples samples;
  if (RunDirectory::newest_step(o.run) == 0 || (o.samples == 0 && o.prompts.empty())) return samples;
  const auto device = open_device(o.device, {.threads = o.threads});
  read_newest_model(o.run,
                    [&](const std::string& directory) { samples = draw_samples(o, *device, directory); });
  return samples;
}

std::string read_if_there(const std::string& path) { return fs::exists(path) ? read_file(path) : ""; }

void run(const Options& o) {
  const std::string metrics = o.run + "/metrics.jsonl";
  if (!fs::exists(metrics))
    throw Error(fmt::format("{} holds no metrics.jsonl", o.run))
        .hint("give the directory that `cachalot pretrain` wrote: its --run-dir");
  ReportInput in;
  in.log = read_run_log(metrics);
  const fs::path run = fs::absolute(o.run).lexically_normal();  // "." has a name, too
  in.title = (run.has_filename() ? run : run.parent_path()).filename().string();
  in.config_json = read_if_there(o.run + "/config.json");
  in.machine_json = read_if_there(o.run + "/machine.json");
  if (!in.config_json.empty()) {
    try {
      in.total_steps = StepPlan(load_run_config(o.run + "/config.json", {}).train).steps();
    } catch (const Error& e) {  // the curves are there all the same
      fmt::print(stderr, "cachalot: {}: the page does not know how long the run is\n", e.what());
    }
  }
  in.goes_on = RunDirectory::is_locked(o.run);
  in.now = double(std::time(nullptr));
  struct stat file{};
  if (stat(metrics.c_str(), &file) == 0) in.written = double(file.st_mtime);
  in.samples = samples_of_run(o);
  const std::string out = o.out.empty() ? o.run + "/report.html" : o.out;
  write_file_atomic(out, report_html(in));
  fmt::print(out.starts_with("/dev/") ? stderr : stdout,  // not into the page
             "written    {}: {} steps, {} events\n", out, in.log.step.size(), in.log.events.size());
}

}  // namespace

void add_report(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* c = app.add_subcommand("report",
                               "one page of a training run: curves, experts, samples; also while it runs");
  c->add_option("RUN", o->run, "the run directory of cachalot pretrain")->required();
  c->add_option("--out", o->out, "the page [RUN/report.html]")->check(file_in_a_folder());
  c->add_option("--prompt", o->prompts, "continue this text on the page; may be repeated")
      ->allow_extra_args(false);
  c->add_option("--samples", o->samples,
                "texts by the newest checkpoint, those of --prompt included; 0: only those")
      ->check(in_range(0, 64))
      ->capture_default_str();
  c->add_option("--max-new-tokens", o->new_tokens, "of each sample")
      ->check(in_range(1, 1 << 20))
      ->capture_default_str();
  c->add_option("--precision", o->precision, kPrecisions)->capture_default_str();
  add_device(*c, o->device, "; draws the samples");
  add_threads(*c, o->threads);
  c->callback([o] { run(*o); });
}

}  // namespace cachalot::cli
