#include "cli/terminal.h"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "base/error.h"
#include "train/machine_error.h"

namespace cachalot::cli {

namespace {

std::atomic<bool> stop_requested{false};
static_assert(std::atomic<bool>::is_always_lock_free);  // as signal handlers need it
const char* stop_message = "";

extern "C" void request_stop(int signal) {
  if (stop_requested.exchange(true)) _exit(128 + signal);
  [[maybe_unused]] const ssize_t ignored = write(STDERR_FILENO, stop_message, std::strlen(stop_message));
}

}  // namespace

void tell_hang(const std::string& report) {
  fmt::print(stderr,
             "\ncachalot: {}  the process ends with exit code {}: the same command goes on from the newest "
             "checkpoint\n",
             report, kExitRetryHere);
  std::fflush(stderr);
}

void end_hung() { _exit(kExitRetryHere); }

void write_out(std::string_view bytes) {
  if (std::fwrite(bytes.data(), 1, bytes.size(), stdout) != bytes.size() || std::fflush(stdout) != 0)
    throw Error("the output cannot be written").hint("is the disk full, or the reading program gone?");
}

std::string read_standard_input(const char* what) {
  if (isatty(STDIN_FILENO)) fmt::print(stderr, "reading {} from the terminal; Ctrl-D ends it\n", what);
  std::string text;
  char block[1 << 16];
  while (const size_t n = std::fread(block, 1, sizeof block, stdin)) text.append(block, n);
  if (std::ferror(stdin)) throw Error("standard input cannot be read");
  return text;
}

const std::atomic<bool>& stop_on_signals(const char* message) {
  stop_message = message;
  struct sigaction action{};
  action.sa_handler = request_stop;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
  return stop_requested;
}

}  // namespace cachalot::cli
