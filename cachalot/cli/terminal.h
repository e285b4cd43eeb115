// What every command needs of the terminal: standard streams that report their errors, and Ctrl-C that ends
// cleanly.
#pragma once

#include <atomic>
#include <string>
#include <string_view>

namespace cachalot::cli {

// Before anything is opened: a standard stream that the caller has closed (2>&-) would else share its number
// with a file, and messages would go into that. Reading and writing such streams fails, messages are lost.
void occupy_standard_streams();

// Writes and flushes standard output. Error when it cannot (full disk, closed pipe).
void write_out(std::string_view bytes);

// The whole of standard input; says on a terminal that it waits for `what` ("the prompt") and how to end.
std::string read_standard_input(const char* what);

// From now on the first SIGINT, SIGTERM or SIGHUP (a terminal that was closed; not under nohup) sets the
// returned flag and prints `message` (empty: nothing) to standard error; a second SIGINT or SIGTERM ends the
// process at once. `message` must live as long as the process.
const std::atomic<bool>& stop_on_signals(const char* message);

// For work that is worth more than what is told of it: a reader of the output who has gone away does not end
// the process, and a file that grows beyond a limit (ulimit -f) is an error of that file.
void survive_lost_output();

// At the end: what was printed has been written. Error when not, but after survive_lost_output().
void finish_output();

// For PretrainOptions: tells the report of a hang; ends the process with kExitRetryHere. The training thread
// hangs, so that nothing can be unwound, and the newest checkpoint is complete.
void tell_hang(const std::string& report);
[[noreturn]] void end_hung();

}  // namespace cachalot::cli
