// The subcommands of `cachalot data`, one file each; cli/data.cc lists them in the order of --help.
#pragma once

namespace CLI {
class App;
}

namespace cachalot::cli {

void add_data_clean(CLI::App& group);     // cli/data_clean.cc
void add_data_needles(CLI::App& group);   // cli/data_needles.cc: needles, needle-contexts
void add_data_tokenize(CLI::App& group);  // cli/data_tokenize.cc: tokenize, inspect

}  // namespace cachalot::cli
