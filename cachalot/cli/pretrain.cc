// cachalot pretrain CONFIG [--run-dir DIR] [--resume|--overwrite] [--init-from MODEL] [--threads N]
//   [--device cpu|cuda[:N]|ref] [--train.lr 1e-4 ...]
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <map>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/terminal.h"
#include "cli/unknown_option.h"
#include "config/fields.h"
#include "train/pretrain.h"

namespace cachalot::cli {

namespace {

constexpr const char* kInitFrom = "init-from";

struct Options {
  std::string config, run_dir, device = "cpu";
  bool overwrite = false, resume = false, allow_different_bits = false, dry_run = false;
  int threads = -1;
  std::string init_from;
  std::map<std::string, std::string> overrides;  // by dotted key
};

void strip_slashes(std::string& path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
}

void run(const Options& o, const CLI::App& command) {
  // In the order given, so that the last of two wins.
  Overrides overrides;
  for (const CLI::Option* option : command.parse_order()) {
    std::string key = option->get_name().substr(2);
    if (key == kInitFrom) key = "train.init_from";
    if (const auto it = o.overrides.find(key); it != o.overrides.end())
      overrides.emplace_back(key, option->get_name().substr(2) == kInitFrom ? o.init_from : it->second);
  }
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
  c->add_option(fmt::format("--{}", kInitFrom), o->init_from,
                "begin with the weights of this run or model directory [train.init_from]")
      ->take_last();
  c->add_flag("--dry-run", o->dry_run, "tell what the run would take (memory, disk, time) and end");
  c->add_option("--threads", o->threads, "threads of the cpu device, 0: all [train.threads]")
      ->check(CLI::Range(0, 4096));
  c->add_option("--device", o->device, "cpu, cuda or cuda:N, or ref: slow and exact")->capture_default_str();

  for (const fields::Line& line : list_run_config()) {
    const std::string section = line.key.substr(0, line.key.find('.'));
    std::string& value = o->overrides[line.key];
    c->add_option("--" + line.key, value, fmt::format("{} [{}]", line.meaning, line.value))
        ->group(fmt::format("\"{}\" in CONFIG, and on the command line{}", section,
                            section == "model" ? "; in brackets: DeepSeek-V3's" : ""))
        ->type_name("")
        ->allow_extra_args(false)
        ->take_last();
  }
  c->allow_extras();  // to name the nearest one
  c->callback([o, c] {
    refuse_unknown_options(*c);
    run(*o, *c);
  });
}

}  // namespace cachalot::cli
