#include "cli/terminal.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <unistd.h>

#include <cstdio>

namespace cachalot::cli {
namespace {

TEST(TerminalDeathTest, AFileNeverTakesThePlaceOfAClosedStandardStream) {
  const auto open_without_streams = [] {
    for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::close(fd);
    occupy_standard_streams();
    const int file = ::open("/dev/null", O_WRONLY);
    const bool right =
        file > STDERR_FILENO && std::fputs("x", stderr) >= 0 && ::write(STDOUT_FILENO, "x", 1) < 0;
    ::_exit(right ? 0 : 1);
  };
  EXPECT_EXIT(open_without_streams(), testing::ExitedWithCode(0), "");
}

TEST(TerminalDeathTest, OneControlDEndsWhatIsTyped) {
  const auto type_a_line = [] {
    int keyboard = -1, terminal = -1;
    ::alarm(10);  // would else wait for a second one for ever
    if (::openpty(&keyboard, &terminal, nullptr, nullptr, nullptr) != 0) ::_exit(2);
    ::dup2(terminal, STDIN_FILENO);
    if (::write(keyboard, "call me\n\x04", 9) != 9) ::_exit(3);
    ::_exit(read_standard_input("text") == "call me\n" ? 0 : 1);
  };
  EXPECT_EXIT(type_a_line(), testing::ExitedWithCode(0), "reading text from the terminal; Ctrl-D ends it");
}

}  // namespace
}  // namespace cachalot::cli
