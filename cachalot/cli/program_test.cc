#include "cli/program.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "base/files.h"
#include "cli/read_errors.h"
#include "train/extend.h"

namespace cachalot::cli {
namespace {

namespace fs = std::filesystem;

std::string source_root() {
  const char* root = std::getenv("CACHALOT_SOURCE");
  return root ? root : ".";
}

struct Outcome {
  int code = 0;
  std::string error;  // what was written to standard error
};

Outcome run(const std::vector<std::string>& words) {
  std::vector<const char*> argv{"cachalot"};
  for (const std::string& word : words) argv.push_back(word.c_str());
  testing::internal::CaptureStderr();
  testing::internal::CaptureStdout();
  Outcome outcome;
  outcome.code = run_program(int(argv.size()), argv.data());
  testing::internal::GetCapturedStdout();
  outcome.error = testing::internal::GetCapturedStderr();
  return outcome;
}

// A user's error: its exit code, what it says, and that it says what to do.
void expect_refused(const std::vector<std::string>& words, const std::string& says) {
  std::string line = "cachalot";
  for (const std::string& word : words) line += " " + word;
  const Outcome outcome = run(words);
  EXPECT_EQ(outcome.code, kUserError) << line << "\n" << outcome.error;
  EXPECT_NE(outcome.error.find(says), std::string::npos) << line << "\n" << outcome.error;
  EXPECT_NE(outcome.error.find("\n  try: "), std::string::npos) << line << "\n" << outcome.error;
}

struct Command {
  const CLI::App* app = nullptr;
  std::vector<std::string> path;            // {"data", "clean"}
  std::vector<const CLI::Option*> options;  // those of its groups, too
};

void add_options_of(const CLI::App& app, std::vector<const CLI::Option*>& options) {
  for (const CLI::Option* option : app.get_options()) options.push_back(option);
  for (const CLI::App* group : app.get_subcommands([](const CLI::App* a) { return a->get_name().empty(); }))
    add_options_of(*group, options);
}

// The commands below `app`; groups of them are none.
void find_commands(const CLI::App& app, const std::vector<std::string>& path, std::vector<Command>& found) {
  const auto below = app.get_subcommands([](const CLI::App* a) { return !a->get_name().empty(); });
  if (below.empty()) {
    found.push_back({.app = &app, .path = path, .options = {}});
    add_options_of(app, found.back().options);
  }
  for (const CLI::App* command : below) {
    std::vector<std::string> longer = path;
    longer.push_back(command->get_name());
    find_commands(*command, longer, found);
  }
}

class Program : public testing::Test {
 protected:
  Program() {
    add_commands(app_);
    find_commands(app_, {}, commands_);
  }
  CLI::App app_;
  std::vector<Command> commands_;
};

// The flag that `text` begins with ("--max-seqs" of "--max-seqs INT …"); "" where it begins with none. Written
// by hand: g++ 12's <regex> does not compile under the sanitizers with warnings as errors.
std::string flag_at(std::string_view text) {
  if (!text.starts_with("--")) return "";
  size_t end = 2;
  const auto in_a_name = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.';
  };
  while (end < text.size() && in_a_name(text[end])) ++end;
  while (end > 2 && !std::isalnum(static_cast<unsigned char>(text[end - 1])))
    --end;  // the stop of a sentence
  return end > 2 ? std::string(text.substr(0, end)) : "";
}

// The flags that --help has a line for, which begins "  -m,--model" or "  --model".
std::set<std::string> flags_listed(const std::string& help) {
  std::set<std::string> found;
  std::istringstream lines(help);
  for (std::string line; std::getline(lines, line);) {
    const size_t begin = line.find_first_not_of(' ');
    if (begin == 0 || begin == std::string::npos) continue;
    std::string_view entry = std::string_view(line).substr(begin);
    if (entry.size() > 3 && entry[0] == '-' && entry[2] == ',') entry.remove_prefix(3);
    if (const std::string flag = flag_at(entry); !flag.empty()) found.insert(flag);
  }
  return found;
}

// The flags that it speaks of, wherever.
std::set<std::string> flags_named(const std::string& help) {
  std::set<std::string> found;
  for (size_t at = help.find("--"); at != std::string::npos; at = help.find("--", at + 2))
    if (const std::string flag = flag_at(std::string_view(help).substr(at)); !flag.empty())
      found.insert(flag);
  return found;
}

std::string joined(const std::vector<std::string>& path) {
  std::string name = "cachalot";
  for (const std::string& word : path) name += " " + word;
  return name;
}

std::vector<std::string> with(std::vector<std::string> words, const std::vector<std::string>& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

TEST_F(Program, HelpOfEveryCommandListsEveryOptionItParsesAndNoOther) {
  ASSERT_GT(commands_.size(), 15u);
  std::set<std::string> all;
  for (const Command& c : commands_)
    for (const CLI::Option* option : c.options)
      for (const std::string& name : option->get_lnames()) all.insert("--" + name);
  for (const Command& c : commands_) {
    const std::string help = c.app->help(), where = joined(c.path);
    std::set<std::string> parsed, hidden;
    for (const CLI::Option* option : c.options)
      for (const std::string& name : option->get_lnames())
        (option->get_group().empty() ? hidden : parsed).insert("--" + name);
    EXPECT_EQ(flags_listed(help), parsed) << where;
    for (const std::string& flag : flags_named(help))
      EXPECT_TRUE(all.contains(flag)) << where << " --help speaks of " << flag;
    for (const std::string& flag : hidden)  // these are refused with a word on what to give instead
      EXPECT_TRUE(c.path == std::vector<std::string>{"extend"} && is_planned_by_extend(flag.substr(2)))
          << where << " hides " << flag;
    for (const CLI::Option* option : c.options)
      EXPECT_FALSE(option->get_description().empty()) << where << " " << option->get_name();
  }
}

TEST_F(Program, WhatNoCommandKnowsIsNamedFirstAndTheNearestNameBesideIt) {
  for (const Command& c : commands_)
    expect_refused(with(c.path, {"--no-such-flag"}),
                   joined(c.path).substr(9) + " does not know --no-such-flag");
  expect_refused({"generate", "--modle", "x"}, "try: did you mean --model?");
  expect_refused({"generate", "--promt=x"}, "try: did you mean --prompt?");  // of a group of options
  expect_refused({"pretrain", "c.json", "--train.lrr", "3"}, "try: did you mean --train.lr?");
  expect_refused({"pretrain", "c.json", "--warmup_steps", "3"}, "try: did you mean --train.warmup_steps?");
  expect_refused({"data", "clean", "--dedup.memry", "3"}, "try: did you mean --dedup.memory?");
  expect_refused({"pretrian"}, "there is no command pretrian\n  try: did you mean pretrain?");
  expect_refused({"--verion"}, "there is no option --verion\n  try: did you mean --version?");
  expect_refused({"data", "tokenise"}, "try: did you mean tokenize?");
  expect_refused({"doctor", "extra"}, "doctor does not know extra");
}

TEST_F(Program, WhatIsMissingIsNamed) {
  expect_refused({}, "subcommand is required");
  expect_refused({"data"}, "data: A subcommand is required");
  for (const Command& c : commands_) {
    std::set<std::string> required;
    for (const CLI::Option* option : c.options) {
      if (option->get_group().empty()) continue;  // hidden
      if (option->get_required()) required.insert(option->get_name());
      // Fields of configurations are all added by the same lines (cli/field_options.cc): one command's do.
      if (option->get_name().find('.') != std::string::npos && c.path[0] != "data") continue;
      if (option->get_items_expected_min() > 0 && !option->get_lnames().empty())  // it takes a value
        expect_refused(with(c.path, {"--" + option->get_lnames()[0]}), option->get_lnames()[0]);
    }
    if (required.empty()) continue;
    const Outcome nothing = run(c.path);
    EXPECT_EQ(nothing.code, kUserError) << joined(c.path);
    EXPECT_TRUE(std::any_of(required.begin(), required.end(), [&](const std::string& name) {
      return nothing.error.find(name + " is required") != std::string::npos;
    })) << nothing.error;
  }
}

// Before anything is read: the values stand alone on their command lines.
TEST_F(Program, NumbersOutOfTheirRangeAreRefused) {
  int numbers = 0;
  for (const Command& c : commands_)
    for (const CLI::Option* option : c.options) {
      const std::string type = option->get_type_name();
      const bool whole = type.starts_with("INT") || type.starts_with("UINT");
      if ((!whole && !type.starts_with("FLOAT")) || option->get_lnames().empty()) continue;
      const std::string name = "--" + option->get_lnames()[0];
      for (const char* value : {"-1", "many", "nan", whole ? "1.5" : "-inf"})
        expect_refused(with(c.path, {name + "=" + std::string(value)}), name);
      ++numbers;
    }
  EXPECT_GT(numbers, 40);
  expect_refused({"eval", "text", "--model", ".", "--input", "=x"}, "--input =x: not NAME=PATH and no path");
  expect_refused({"eval", "needle", "--lengths", "64,31"}, "--lengths: 31 is given; it must be from 32 to");
  expect_refused({"generate", "--top-p", "1.01"}, "--top-p: 1.01 is given; it must be from 0 to 1");
  expect_refused({"convert", "--max-shard-size", "0"}, "--max-shard-size");
}

TEST_F(Program, OptionsThatExcludeOrNeedOthersAreRefusedWithAWord) {
  const std::string model = source_root() + "/tests/golden/nano/model";
  expect_refused({"generate", "--model", model, "--prompt", "a", "--tokens", "1"}, "--tokens");
  expect_refused({"generate", "--model", model, "--tokens", "1", "--stop", "a"}, "--stop excludes --tokens");
  expect_refused({"data", "needle-contexts", "shards", "--tokenizer", "t", "--margin", "0.2"},
                 "--margin requires --avoid");
  expect_refused({"pretrain", "c.json", "--resume", "--overwrite"}, "--resume excludes --overwrite");
  expect_refused({"tokenizer", "encode", "--tokenizer", "t", "some text", "--input", "file"}, "excludes");
  expect_refused({"convert", "--from", model, "--to", "x", "--dtype", "bf16", "--scale-fmt", "ue8m0"},
                 "--scale-fmt ue8m0 is given with --dtype bf16");
  const std::string stages = source_root() + "/configs/small-extend.json";
  expect_refused({"extend", stages, "--model", model, "--train.steps", "5"},
                 "train.steps is not for the stages of an extension");
  expect_refused({"data", "inspect", model, "--document", "3"}, "--document is for a .tok file");
}

TEST_F(Program, FilesThatAreNotThereAreNamed) {
  const std::string model = source_root() + "/tests/golden/nano/model";
  const std::string tokenizer = source_root() + "/tests/data/tokenizer";
  const std::string gone = "/no/such/thing";
  expect_refused({"pretrain", gone}, gone);
  expect_refused({"extend", gone, "--model", model}, gone);
  expect_refused({"report", gone}, gone);
  expect_refused({"generate", "--model", gone, "--prompt", "a"}, gone);
  expect_refused({"forward", "--model", model, "--tokens", gone, "--out", "x"}, gone);
  expect_refused({"convert", "--from", gone, "--to", "x", "--dtype", "f32"}, gone);
  expect_refused({"bench", "--config", gone}, gone);
  expect_refused({"data", "clean", "--input", gone, "--out", "x"}, gone);
  expect_refused({"data", "tokenize", "--input", gone, "--tokenizer", tokenizer, "--out", "x"}, gone);
  expect_refused({"data", "inspect", gone}, gone);
  expect_refused({"data", "needles", "--haystack", gone, "--tokenizer", tokenizer, "--out", "x"}, gone);
  expect_refused({"data", "needle-contexts", gone, "--tokenizer", tokenizer}, gone);
  expect_refused({"tokenizer", "train", "--input", gone, "--vocab-size", "300", "--out", "x"}, gone);
  expect_refused({"tokenizer", "encode", "--tokenizer", gone, "text"}, gone);
  expect_refused({"tokenizer", "decode", "--tokenizer", tokenizer, "--input", gone}, gone);
  expect_refused({"tokenizer", "bench", "--tokenizer", tokenizer, gone}, gone);
}

TEST_F(Program, WhatAModelDoesNotTakeIsRefused) {
  const std::string model = source_root() + "/tests/golden/nano/model";
  const auto generate = [&](const std::vector<std::string>& more, const std::string& says) {
    expect_refused(with({"generate", "--model", model, "--max-new-tokens", "1"}, more), says);
  };
  generate({"--tokens", "1,,2"}, "is no token id");
  generate({"--tokens", "1 2"}, "a comma is missing after 1");
  generate({"--tokens", "1000000"}, "token 1000000");
  generate({"--tokens", "1", "--speculate", "9"}, "speculation of depth 9");
  generate({"--tokens", "1", "--max-context", "100000000"}, "a context of 100000000 tokens");
  generate({"--tokens", "1", "--top-p", "0"}, "top-p is 0");
  generate({"--tokens", "1", "--precision", "fp4"}, "fp4");
  generate({"--tokens", "1", "--cache", "int8"}, "int8");
  generate({"--tokens", "1", "--device", "tpu"}, "tpu");
  expect_refused({"bench", "gem"}, "try: did you mean gemm?");
  const std::string text = source_root() + "/tests/data/text/shakespeare.txt";
  expect_refused({"tokenizer", "train", "--input", text, "--out", "x", "--vocab-size", "5"},
                 "try: --vocab-size between 258 and");
  expect_refused(
      {"tokenizer", "train", "--input", text, "--out", "x", "--vocab-size", "300", "--special", "a"},
      "cannot be a special token");
  const std::string tokenizer = source_root() + "/tests/data/tokenizer";
  expect_refused({"tokenizer", "encode", "--tokenizer", tokenizer, "--jsonl", "text"}, "--jsonl reads lines");
  expect_refused({"tokenizer", "decode", "--tokenizer", tokenizer, "x7"}, "\"x7\" is no token id");
}

TEST_F(Program, TheTokenizerOfAModelIsNotReplaced) {
  const std::string folder = testing::TempDir() + "tokenizer-of-model-" + std::to_string(::getpid());
  fs::create_directory(folder);
  write_file_atomic(folder + "/text.txt", "The whale is out of sight.");
  const std::vector<std::string> train{"tokenizer",    "train", "--input", folder + "/text.txt",
                                       "--vocab-size", "260",   "--out",   folder};
  EXPECT_EQ(run(train).code, kDone);
  EXPECT_EQ(run(train).code, kDone);  // one's own may be trained again
  write_file_atomic(folder + "/config.json", "{}");
  const std::string before = read_file(folder + "/tokenizer.json");
  expect_refused(train, "belongs to the config.json beside it");
  EXPECT_EQ(read_file(folder + "/tokenizer.json"), before);
  fs::remove_all(folder);
}

TEST_F(Program, ShardsThatAreAllHeldOutHaveNoContexts) {
  const std::string tokenizer = source_root() + "/tests/data/tokenizer";
  const std::string folder = testing::TempDir() + "held-out-" + std::to_string(::getpid());
  fs::create_directory(folder);
  write_file_atomic(folder + "/text.txt", "The whale is out of sight.");
  const std::vector<std::string> tokenize{
      "data",       "tokenize", "--input", folder + "/text.txt", "--tokenizer", tokenizer,
      "--held-out", "0.999999", "--out",   folder + "/shards"};
  EXPECT_EQ(run(tokenize).code, kDone);
  expect_refused({"data", "needle-contexts", folder + "/shards", "--tokenizer", tokenizer},
                 "every token is held out from training");
  fs::remove_all(folder);
}

// std::filesystem throws what is no Error.
TEST_F(Program, WhatTheFileSystemRefusesIsNoBugOfOurs) {
  const Outcome outcome = run({"generate", "--model", std::string(5000, 'x'), "--prompt", "a"});
  EXPECT_EQ(outcome.code, kUserError) << outcome.error;
  EXPECT_NE(outcome.error.find("name too long"), std::string::npos) << outcome.error;
  EXPECT_EQ(outcome.error.find("bug"), std::string::npos) << outcome.error;
}

using ProgramDeathTest = Program;

TEST_F(ProgramDeathTest, OutputThatCannotBeWrittenIsAnError) {
  const auto version_to_full_disk = [] {
    ::dup2(::open("/dev/full", O_WRONLY), STDOUT_FILENO);
    const char* argv[] = {"cachalot", "--version"};
    ::_exit(run_program(2, argv));
  };
  EXPECT_EXIT(version_to_full_disk(), testing::ExitedWithCode(kUserError), "the output cannot be written");
}

TEST_F(ProgramDeathTest, AMessageThatCannotBeWrittenLeavesTheExitCode) {
  const auto error_to_full_disk = [] {
    ::dup2(::open("/dev/full", O_WRONLY), STDERR_FILENO);
    const char* argv[] = {"cachalot", "no-such-command"};
    ::_exit(run_program(2, argv));
  };
  EXPECT_EXIT(error_to_full_disk(), testing::ExitedWithCode(kUserError), "");
}

TEST_F(ProgramDeathTest, APageThatCannotBeReadNamesItsFile) {
  const std::string path = testing::TempDir() + "cut-" + std::to_string(::getpid());
  std::ofstream(path) << std::string(3 * 4096, 'x');
  const auto read_what_was_cut = [&] {
    report_read_errors();
    const MappedFile file(path);
    fs::resize_file(path, 4096);
    ::_exit(file.view()[2 * 4096]);  // 'x' if nobody noticed
  };
  EXPECT_EXIT(read_what_was_cut(), testing::ExitedWithCode(kUserError),
              "cut-.* cannot be read any more.*\n  try: ");
  fs::remove(path);
}

}  // namespace
}  // namespace cachalot::cli
