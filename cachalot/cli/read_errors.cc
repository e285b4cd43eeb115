#include "cli/read_errors.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdint>
#include <cstring>

#include "cli/program.h"

namespace cachalot::cli {

namespace {

// Everything here runs inside a signal handler: no memory is taken, and only what signal-safety(7) lists is
// called.

void say(const char* text) {
  [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, text, std::strlen(text));
}

// One hexadecimal number from `at` on; `at` is then behind it.
uint64_t read_hex(const char*& at) {
  uint64_t n = 0;
  for (;; ++at) {
    const int digit = *at >= '0' && *at <= '9' ? *at - '0' : *at >= 'a' && *at <= 'f' ? *at - 'a' + 10 : -1;
    if (digit < 0) return n;
    n = n << 4 | uint64_t(digit);
  }
}

// Lines of /proc/self/maps: "7f5a00000000-7f5a00021000 r--p 00000000 fe:01 1234    /path/of/file". nullptr:
// it is no line of a file, or not the one that holds `address`.
const char* path_at(const char* line, uint64_t address) {
  const uint64_t begin = read_hex(line);
  if (*line++ != '-') return nullptr;
  const uint64_t end = read_hex(line);
  return begin <= address && address < end ? std::strchr(line, '/') : nullptr;
}

// The file that is mapped at `address`; `line` holds it. nullptr: none is.
const char* find_file(uint64_t address, char* line, size_t most) {
  const int fd = ::open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return nullptr;
  const char* found = nullptr;
  char block[4096];
  size_t length = 0;
  for (ssize_t n; !found && ((n = ::read(fd, block, sizeof block)) > 0 || (n < 0 && errno == EINTR));)
    for (ssize_t i = 0; i < n && !found; ++i) {
      if (block[i] != '\n') {
        if (length + 1 < most) line[length++] = block[i];
        continue;
      }
      line[length] = '\0';
      length = 0;
      found = path_at(line, address);
    }
  ::close(fd);
  return found;
}

extern "C" void on_bus_error(int signal, siginfo_t* info, void*) {
  static std::atomic<bool> told{false};
  while (told.exchange(true)) ::pause();  // another thread tells, and ends the process
  static char line[PATH_MAX + 128];
  const char* const path = find_file(reinterpret_cast<uint64_t>(info->si_addr), line, sizeof line);
  const auto is_below = [&](const char* folder) {
    return std::strncmp(path, folder, std::strlen(folder)) == 0;
  };
  if (!path || is_below("/dev/") || is_below("/memfd:")) {  // no file's: as if nobody had asked
    ::signal(signal, SIG_DFL);
    return;
  }
  say("\ncachalot: ");
  say(path);
  say(" cannot be read any more: its disk failed, or the file became shorter\n"
      "  try: look at the disk, copy or download the file again; a run goes on from its newest checkpoint\n");
  ::_exit(kUserError);
}

}  // namespace

void report_read_errors() {
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, nullptr);
}

}  // namespace cachalot::cli
