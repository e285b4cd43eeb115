// cachalot eval text | needle: measure what a model can do.
#include <CLI/CLI.hpp>

#include "cli/commands.h"
#include "cli/eval_commands.h"

namespace cachalot::cli {

void add_eval(CLI::App& app) {
  auto* group = app.add_subcommand("eval", "measure what a model can do");
  group->require_subcommand(1);
  add_eval_text(*group);
  add_eval_needle(*group);
}

}  // namespace cachalot::cli
