// cachalot eval text: bits per byte of texts, and which of multi-token prediction's drafts hold.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "base/progress.h"
#include "base/thread_pool.h"
#include "cli/common_options.h"
#include "cli/eval_commands.h"
#include "cli/load_progress.h"
#include "cli/terminal.h"
#include "train/model_score.h"

namespace cachalot::cli {

namespace {

struct Options {
  std::string model, out, device = "cpu", precision = "f32";
  std::vector<std::string> input;
  ModelScoreOptions score;
  int threads = 0;
  bool drop_mtp = false, json = false;
};

// "NAME=PATH", or a path, which is named for its last part.
NamedPaths named(const std::vector<std::string>& input) {
  NamedPaths texts;
  for (const std::string& word : input) {
    const size_t equals = std::filesystem::exists(word) ? std::string::npos : word.find('=');
    std::string name = word.substr(0, equals == std::string::npos ? 0 : equals), path = word;
    if (equals != std::string::npos) path = word.substr(equals + 1);
    if (equals == std::string::npos) {
      std::filesystem::path last = std::filesystem::path(word).lexically_normal();
      if (!last.has_filename()) last = last.parent_path();
      name = last.stem().string();
    }
    if (name.empty() || path.empty())
      throw Error(fmt::format("--input {}: not NAME=PATH and no path", word))
          .hint("give --input english=texts/en.txt");
    texts.of[name].push_back(path);
  }
  return texts;
}

void run(const Options& o) {
  ModelScoreOptions options = o.score;
  options.texts = named(o.input);
  options.precision = parse_precision(o.precision);
  options.drafts = !o.drop_mtp;
  options.loading = show_loading();
  std::unique_ptr<Progress> progress;
  options.progress = [&](int64_t done, int64_t all) {
    if (!progress) progress = std::make_unique<Progress>(std::cerr, "windows", all);
    progress->update(done);
  };
  ThreadPool pool(o.threads > 0 ? o.threads : available_cpus());
  const auto device = open_device(o.device, {.threads = o.threads});
  const std::atomic<bool>& stop = stop_on_signals("");
  const auto score = score_model(*device, o.model, options, &pool, stop);
  if (!score)
    throw Error("stopped before all of the text was scored").hint("begin again; less text is faster");
  if (progress) progress->finish();
  Json json = held_out_json(score->result);
  json["task"] = "text";
  json["window"] = score->window;
  json["precision"] = o.precision;
  const std::string text = json.dump(2) + "\n";
  write_out(o.json ? text : model_score_table(score->result));  // first: a full disk must not cost the result
  if (!o.out.empty()) write_file_atomic(o.out, text);
}

}  // namespace

void add_eval_text(CLI::App& group) {
  auto o = std::make_shared<Options>();
  auto* c =
      group.add_subcommand("text", "bits per byte of texts, and which of MTP's drafts would be accepted");
  c->add_option("--model", o->model, "model directory or run directory")->required();
  c->add_option(
       "--input", o->input,
       "[NAME=]PATH of a text file or a folder of token shards, any number; those of one NAME are one set")
      ->required();
  c->add_option(
       "--window", o->score.window,
       "tokens that are scored together: each sees those of its window before it [the model's context, "
       "at most 2048]")
      ->check(in_range(1, 1 << 30));
  c->add_option("--together", o->score.together, "windows in one pass")
      ->check(in_range(1, 4096))
      ->capture_default_str();
  c->add_flag("--drop-mtp", o->drop_mtp, "leave the MTP layers out");
  c->add_option("--precision", o->precision, kPrecisions)->capture_default_str();
  add_device(*c, o->device);
  add_threads(*c, o->threads);
  c->add_option("--out", o->out, "also write the result as JSON into this file")->check(file_in_a_folder());
  c->add_flag("--json", o->json, "print JSON instead of the table");
  c->callback([o] { run(*o); });
}

}  // namespace cachalot::cli
