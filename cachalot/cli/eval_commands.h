// The subcommands of `cachalot eval`, one file each; cli/eval.cc lists them in the order of --help.
#pragma once

namespace CLI {
class App;
}

namespace cachalot::cli {

void add_eval_text(CLI::App& group);    // cli/eval_text.cc
void add_eval_needle(CLI::App& group);  // cli/eval_needle.cc

}  // namespace cachalot::cli
