#include "cli/program.h"
#include "cli/read_errors.h"
#include "cli/terminal.h"

int main(int argc, char** argv) {
  cachalot::cli::occupy_standard_streams();
  cachalot::cli::report_read_errors();
  return cachalot::cli::run_program(argc, argv);
}
