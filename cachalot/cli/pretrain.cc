// cachalot pretrain CONFIG [--run-dir DIR] [--resume|--overwrite] [--init-from MODEL] [--threads N]
//   [--device cpu|cuda[:N]|ref] [--train.lr 1e-4 ...]
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
#include "train/pretrain.h"

namespace cachalot::cli {

namespace {

constexpr const char* kInitFrom = "init-from";

struct Options {
  std::string config, run_dir, device = "cpu";
  bool overwrite = false, resume = false, allow_different_bits = false, dry_run = false;
  int threads = -1;
  FieldTexts fields;  // and --init-from's
};

void strip_slashes(std::string& path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
}

void run(const Options& o, const CLI::App& command) {
  Overrides overrides = given_fields(command, o.fields);
  for (auto& [key, text] : overrides)
    if (key == kInitFrom) key = "train.init_from";
  if (o.threads >= 0) overrides.emplace_back("train.threads", std::to_string(o.threads));

  RunConfig config = load_run_config(o.config, overrides);
  strip_slashes(config.train.init_from);  // "base/" is "base" when the run is resumed
  PretrainOptions options{.config_path = o.config,
                          .run_dir = o.run_dir,
                          .overwrite = o.overwrite,
                          .require_resume = o.resume,
                          .allow_different_bits = o.allow_different_bits,
                          .device = o.device,
                          .dry_run = o.dry_run,
                          .style = progress_style(std::cout),
                          .on_hang = tell_hang,
                          .end_hung = end_hung};
  if (options.run_dir.empty()) options.run_dir = "runs/" + std::filesystem::path(o.config).stem().string();
  strip_slashes(options.run_dir);
  survive_lost_output();
  pretrain(config, options, std::cout,
           stop_on_signals("\nstopping: finishing the step and saving; once more to stop at once\n"));
}

}  // namespace

void add_pretrain(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* c = app.add_subcommand("pretrain", "train a model on text files or token shards");
  c->add_option("CONFIG", o->config, "training configuration, like configs/nano.json")->required();
  c->add_option("--run-dir", o->run_dir, "where the run is written [runs/<name of CONFIG>]");
  CLI::Option* resume =
      c->add_flag("--resume", o->resume,
                  "the run that is there goes on, which needs no flag; with it, there must be one");
  c->add_flag("--overwrite", o->overwrite, "replace the run that is there")->excludes(resume);
  c->add_flag("--allow-different-bits", o->allow_different_bits,
              "resume with another program, instruction set or GPU");
  c->add_option(fmt::format("--{}", kInitFrom), o->fields[kInitFrom],
                "begin with the weights of this run or model directory [train.init_from]")
      ->take_last();
  c->add_flag("--dry-run", o->dry_run, "tell what the run would take (memory, disk, time) and end");
  c->add_option("--threads", o->threads, "threads of the cpu device, 0: all [train.threads]")
      ->check(in_range(0, 4096));
  add_device(*c, o->device);

  for (const fields::Line& line : list_run_config()) {
    const std::string section = line.key.substr(0, line.key.find('.'));
    add_field_option(*c, line, o->fields,
                     fmt::format("\"{}\" in CONFIG, and on the command line{}", section,
                                 section == "model" ? "; in brackets: DeepSeek-V3's" : ""));
  }
  c->callback([o, c] { run(*o, *c); });
}

}  // namespace cachalot::cli
