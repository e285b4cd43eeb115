#include "cli/terminal.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <iostream>

#include "base/error.h"
#include "train/machine_error.h"

namespace cachalot::cli {

namespace {

std::atomic<bool> stop_requested{false};
static_assert(std::atomic<bool>::is_always_lock_free);  // as signal handlers need it
const char* stop_message = "";
bool output_may_be_lost = false;

extern "C" void request_stop(int signal) {
  const bool again = stop_requested.exchange(true);
  if (again && signal == SIGHUP) return;  // shell and kernel may both say that the terminal is gone
  if (again) _exit(128 + signal);
  [[maybe_unused]] const ssize_t ignored = write(STDERR_FILENO, stop_message, std::strlen(stop_message));
}

[[noreturn]] void lost_output() {
  throw Error("the output cannot be written").hint("is the disk full, or the reading program gone?");
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

void occupy_standard_streams() {
  constexpr int kHow[] = {O_WRONLY, O_RDONLY, O_RDWR};  // of standard input, output, error
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd)
    if (::fcntl(fd, F_GETFD) < 0) [[maybe_unused]] const int lowest = ::open("/dev/null", kHow[fd]);
}

void write_out(std::string_view bytes) {
  if (std::fwrite(bytes.data(), 1, bytes.size(), stdout) != bytes.size() || std::fflush(stdout) != 0)
    lost_output();
}

std::string read_standard_input(const char* what) {
  if (isatty(STDIN_FILENO)) fmt::print(stderr, "reading {} from the terminal; Ctrl-D ends it\n", what);
  std::string text;
  char block[1 << 16];
  size_t n = 0;
  do text.append(block, n = std::fread(block, 1, sizeof block, stdin));
  while (n == sizeof block);  // at the end it is less; reading on would ask a terminal for a second Ctrl-D
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
  struct sigaction hangup{};
  if (sigaction(SIGHUP, nullptr, &hangup) == 0 && hangup.sa_handler != SIG_IGN)  // which nohup has set
    sigaction(SIGHUP, &action, nullptr);
  return stop_requested;
}

void survive_lost_output() {
  output_may_be_lost = true;
  struct sigaction ignore{};
  ignore.sa_handler = SIG_IGN;
  for (const int signal : {SIGPIPE, SIGXFSZ}) sigaction(signal, &ignore, nullptr);
}

void finish_output() {
  if (output_may_be_lost) return;
  std::cout.flush();
  if (!std::cout || std::ferror(stdout)) lost_output();
  write_out("");
}

}  // namespace cachalot::cli
