// What every command needs of the terminal: standard streams that report their errors, and Ctrl-C that ends
// cleanly.
#pragma once

#include <atomic>
#include <string>
#include <string_view>

namespace cachalot::cli {

// Writes and flushes standard output. Error when it cannot (full disk, closed pipe).
void write_out(std::string_view bytes);

// The whole of standard input; says on a terminal that it waits for `what` ("the prompt") and how to end.
std::string read_standard_input(const char* what);

// From now on the first SIGINT or SIGTERM sets the returned flag and prints `message` (empty: nothing) to
// standard error; the second one ends the process at once. `message` must live as long as the process.
const std::atomic<bool>& stop_on_signals(const char* message);

// For PretrainOptions: tells the report of a hang; ends the process with kExitRetryHere. The training thread
// hangs, so that nothing can be unwound, and the newest checkpoint is complete.
void tell_hang(const std::string& report);
[[noreturn]] void end_hung();

}  // namespace cachalot::cli
