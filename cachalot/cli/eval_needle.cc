// cachalot eval needle: what a model can find in a long context.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "base/progress.h"
#include "base/text.h"
#include "cli/common_options.h"
#include "cli/eval_commands.h"
#include "cli/load_progress.h"
#include "cli/terminal.h"
#include "config/precision.h"
#include "eval/needle_grid.h"
#include "model/load.h"

namespace cachalot::cli {

namespace {

struct Needle {
  std::string model, haystack, out, device = "cpu", precision = "f32";
  NeedleGridOptions grid;
  int64_t depths = 11, together = 8, prefill_chunk = 256;
  int threads = 0;
  bool json = false;
};

void run_needle(const Needle& o) {
  const std::string directory = resolve_model_directory(o.model);
  ModelConfig config = load_model_config(directory);
  const Precision precision = parse_precision(o.precision);
  NeedleGridOptions options = o.grid;
  if (options.lengths.empty())
    for (int64_t n = std::min<int64_t>(256, config.max_position_embeddings);
         n <= config.max_position_embeddings; n *= 2)
      options.lengths.push_back(n);
  options.depths = NeedleGridOptions::even_depths(o.depths);
  const int64_t longest = *std::max_element(options.lengths.begin(), options.lengths.end());
  const int64_t context = config.max_position_embeddings;
  config.max_position_embeddings = std::max(context, longest);  // beyond it: to see what it is worth there

  const Tokenizer tokenizer = Tokenizer::load(directory);
  const Haystack haystack(read_file(o.haystack), tokenizer);
  for (const int64_t length : options.lengths)
    make_needle_prompt(haystack, {.tokens = length, .seed = o.grid.seed});

  const auto device = open_device(o.device, {.threads = o.threads});
  Stream stream(*device);
  const LoadedModel model =
      load_model(stream, directory, precision, {.drop_mtp = true, .progress = show_loading()});
  config.num_nextn_predict_layers = model.config.num_nextn_predict_layers;
  Engine engine(*device, config, *model.params,
                {.max_context = longest, .max_sequences = o.together, .prefill_chunk = o.prefill_chunk});
  std::unique_ptr<Progress> progress;
  NeedleGrid grid = run_needle_grid(
      engine, haystack, options,
      [&](int64_t done, int64_t of) {
        if (!progress) progress = std::make_unique<Progress>(std::cerr, "needles", of);
        progress->update(done, "");
      },
      stop_on_signals(""));
  if (progress) progress->finish();
  grid.context = context;
  const std::string json = needle_json(grid, options).dump(2) + "\n";
  write_out(o.json ? json : needle_table(grid));  // first: a full disk must not cost the result
  if (!o.out.empty()) write_file_atomic(o.out, json);
}

}  // namespace

void add_eval_needle(CLI::App& group) {
  auto o = std::make_shared<Needle>();
  auto* c = group.add_subcommand("needle", "find a line hidden in a long text, over lengths and depths");
  c->add_option("--model", o->model, "model directory or run directory")->required();
  c->add_option("--haystack", o->haystack,
                "text file that hides the needles; best one that was not trained on")
      ->required();
  c->add_option(
       "--lengths", o->grid.lengths,
       "tokens of the context, with commas; beyond the model's own is allowed [256, 512, ... its own]")
      ->delimiter(',')
      ->check(in_range(32, 1 << 30));
  c->add_option("--depths", o->depths, "places of the needle, from the first line to the last")
      ->check(in_range(1, 1001))
      ->capture_default_str();
  c->add_option("--cases", o->grid.cases, "needles for every length and depth")
      ->check(in_range(1, 1000000))
      ->capture_default_str();
  c->add_option("--distractors", o->grid.distractors, "further lines of the same kind that nobody asks for")
      ->check(in_range(0, 50))
      ->capture_default_str();
  c->add_option("--seed", o->grid.seed, "the same seed hides the same needles")
      ->check(at_least(0))
      ->capture_default_str();
  c->add_option("--precision", o->precision, kPrecisions)->capture_default_str();
  add_device(*c, o->device);
  add_threads(*c, o->threads);
  c->add_option("--together", o->together, "cases that run at the same time")
      ->check(in_range(1, 4096))
      ->capture_default_str();
  c->add_option("--prefill-chunk", o->prefill_chunk, "tokens of a prompt that run together")
      ->check(in_range(1, 1 << 20))
      ->capture_default_str();
  c->add_option("--out", o->out, "also write the result as JSON into this file")->check(file_in_a_folder());
  c->add_flag("--json", o->json, "print JSON instead of the table");
  c->callback([o] { run_needle(*o); });
}

}  // namespace cachalot::cli
