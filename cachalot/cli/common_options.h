// What the options of several commands have in common.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace cachalot::cli {

// Bounds of a number, both included. Not a number is in no range (in CLI::Range it is in all).
CLI::Validator in_range(double low, double high);
CLI::Validator at_least(double low);

// --threads; `more` goes on after "threads; 0: all that the machine or container allows".
CLI::Option* add_threads(CLI::App& command, int& threads, const std::string& more = "");

// --device, one that computes; `more` goes on after the names.
CLI::Option* add_device(CLI::App& command, std::string& device, const std::string& more = "");

// Of a file that is written when the work is done: its folder is there already.
CLI::Validator file_in_a_folder();

}  // namespace cachalot::cli
