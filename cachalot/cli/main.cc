// The program: parses the command line, runs one subcommand, turns exceptions into messages and exit codes.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "base/error.h"
#include "cli/commands.h"
#include "train/machine_error.h"

namespace {

constexpr int kUserError = 1, kInternalError = 2;

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("cachalot: DeepSeek-V3 as one program, from text to tokens.");
  app.set_version_flag("--version", "cachalot 0.1.0");
  app.require_subcommand(1);
  app.get_formatter()->column_width(34);
  cachalot::cli::add_tokenizer(app);
  cachalot::cli::add_data(app);
  cachalot::cli::add_pretrain(app);
  cachalot::cli::add_extend(app);
  cachalot::cli::add_report(app);
  cachalot::cli::add_generate(app);
  cachalot::cli::add_forward(app);
  cachalot::cli::add_convert(app);
  cachalot::cli::add_eval(app);
  cachalot::cli::add_bench(app);
  cachalot::cli::add_doctor(app);
  try {
    app.parse(argc, argv);  // runs the subcommand's callback
    return 0;
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : kUserError;  // --help and --version are no errors
  } catch (const cachalot::MachineError& e) {
    fmt::print(stderr, "cachalot: {}\n  try: {}\n", e.what(), e.hint());
    return cachalot::kExitDrainNode;
  } catch (const cachalot::Error& e) {
    fmt::print(stderr, "cachalot: {}\n", e.what());
    if (!e.hint().empty()) fmt::print(stderr, "  try: {}\n", e.hint());
    return kUserError;
  } catch (const std::exception& e) {
    fmt::print(stderr, "cachalot: internal error: {}\n  This is a bug of cachalot's, not yours.\n", e.what());
    return kInternalError;
  }
}
