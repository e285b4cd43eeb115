#include "cli/program.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <new>
#include <system_error>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/misuse.h"
#include "cli/terminal.h"
#include "train/machine_error.h"

namespace cachalot::cli {

namespace {

int fail(int code, const std::string& what, const std::string& hint) {
  // Not fmt::print, which throws where standard error is a file on a full disk.
  std::fputs(
      fmt::format("cachalot: {}\n{}", what, hint.empty() ? "" : fmt::format("  try: {}\n", hint)).c_str(),
      stderr);
  return code;
}

}  // namespace

void add_commands(CLI::App& app) {
  add_tokenizer(app);
  add_data(app);
  add_pretrain(app);
  add_extend(app);
  add_report(app);
  add_generate(app);
  add_forward(app);
  add_convert(app);
  add_eval(app);
  add_bench(app);
  add_doctor(app);
}

int run_program(int argc, const char* const* argv) {
  try {
    CLI::App app("cachalot: DeepSeek-V3 as one program, from text to tokens.", "cachalot");
    app.set_version_flag("--version", "cachalot " CACHALOT_VERSION);
    app.require_subcommand(1);
    app.get_formatter()->column_width(34);
    add_commands(app);
    try {
      app.parse(argc, argv);  // runs the subcommand's callback
    } catch (const CLI::ParseError& e) {
      if (e.get_exit_code() != 0) throw misuse(app, e);
      app.exit(e);  // prints --help or --version
    }
    finish_output();
    return kDone;
  } catch (const MachineError& e) {
    return fail(kExitDrainNode, e.what(), e.hint());
  } catch (const Error& e) {
    return fail(kUserError, e.what(), e.hint());
  } catch (const std::system_error& e) {  // of files, for one, by way of std::filesystem
    return fail(kUserError, e.what(), "");
  } catch (const std::bad_alloc&) {
    return fail(kUserError, "there is not enough memory", "cachalot doctor tells how much there is");
  } catch (const std::exception& e) {
    return fail(kInternalError,
                fmt::format("internal error: {}\n  This is a bug of cachalot's, not yours.", e.what()), "");
  }
}

}  // namespace cachalot::cli
