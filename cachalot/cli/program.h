// The command line as a whole: its subcommands, and what the caller of a wrong one is told.
#pragma once

namespace CLI {
class App;
}

namespace cachalot::cli {

void add_commands(CLI::App& app);  // in the order of --help

// Parses the command line and runs one subcommand. What goes wrong becomes a message on standard error, with
// a line that says what to do, and the exit code that is returned (train/machine_error.h knows two more):
constexpr int kDone = 0, kUserError = 1, kInternalError = 2;
int run_program(int argc, const char* const* argv);

}  // namespace cachalot::cli
