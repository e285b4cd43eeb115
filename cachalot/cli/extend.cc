// cachalot extend CONFIG --model RUN [--run-dir DIR] [--extend.factor 40 ...]: longer contexts, by stages.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <memory>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/common_options.h"
#include "cli/field_options.h"
#include "cli/terminal.h"
#include "config/fields.h"
#include "train/extend.h"
#include "train/pretrain.h"
#include "train/run_directory.h"

namespace cachalot::cli {

namespace {

struct Options {
  std::string config, model, run_dir, device = "cpu";
  bool overwrite = false, allow_different_bits = false, dry_run = false;
  FieldTexts fields;
};

void run(const Options& o, const CLI::App& command) {
  std::string run_dir =
      o.run_dir.empty() ? "runs/" + std::filesystem::path(o.config).stem().string() : o.run_dir;
  while (run_dir.size() > 1 && run_dir.back() == '/') run_dir.pop_back();
  std::vector<RunConfig> runs = plan_extension(load_extend_config(o.config, given_fields(command, o.fields)),
                                               o.model, run_dir, o.config);

  const std::atomic<bool>& stop =
      stop_on_signals("\nstopping: finishing the step and saving; once more to stop at once\n");
  survive_lost_output();
  for (size_t i = 0; i < runs.size(); ++i) {
    const std::string directory = stage_directory(run_dir, i);
    std::cout << fmt::format("{}stage {} of {}: {} steps with contexts of {}\n", i ? "\n" : "", i + 1,
                             runs.size(), runs[i].train.steps, runs[i].train.seq_len)
              << std::flush;
    if (!o.dry_run) std::filesystem::create_directories(run_dir);
    else if (RunDirectory::look(directory) != RunDirectory::Holds::run)
      runs[i].train.init_from = o.model;  // the stage before may not be there, and has these shapes
    const PretrainResult result = pretrain(runs[i],
                                           {.config_path = o.config,
                                            .run_dir = directory,
                                            .overwrite = o.overwrite,
                                            .allow_different_bits = o.allow_different_bits,
                                            .device = o.device,
                                            .dry_run = o.dry_run,
                                            .style = progress_style(std::cout),
                                            .on_hang = tell_hang,
                                            .end_hung = end_hung},
                                           std::cout, stop);
    if (result.stopped) return;
  }
  if (!o.dry_run)
    std::cout << fmt::format("extended   {}/model\n", stage_directory(run_dir, runs.size() - 1))
              << std::flush;
}

}  // namespace

void add_extend(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* c = app.add_subcommand("extend", "train a model on with longer contexts, under YaRN, in stages");
  c->add_option("CONFIG", o->config, "like configs/small-extend.json: \"extend\", \"data\", \"train\"")
      ->required();
  c->add_option("--model", o->model, "run or model directory whose model is extended")->required();
  c->add_option("--run-dir", o->run_dir, "where stage-1, stage-2, ... are written [runs/<name of CONFIG>]");
  c->add_flag("--overwrite", o->overwrite, "replace stages that are there; else they go on where they stand");
  c->add_flag("--allow-different-bits", o->allow_different_bits,
              "resume with another program, instruction set or GPU");
  c->add_flag("--dry-run", o->dry_run, "tell what each stage would take (memory, disk, time) and end");
  add_device(*c, o->device);
  for (const fields::Line& line : list_fields(ExtendConfig{})) {
    const bool planned = is_planned_by_extend(line.key);  // refused, with a word on what to give instead
    add_field_option(*c, line, o->fields,
                     planned ? ""
                             : fmt::format("\"{}\" in CONFIG, and on the command line",
                                           line.key.substr(0, line.key.find('.'))));
  }
  c->callback([o, c] { run(*o, *c); });
}

}  // namespace cachalot::cli
