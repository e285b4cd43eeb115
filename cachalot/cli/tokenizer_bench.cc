#include "cli/tokenizer_bench.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/cpu.h"
#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "base/thread_pool.h"
#include "cli/common_options.h"
#include "cli/terminal.h"
#include "data/tokenizer.h"

namespace cachalot::cli {

namespace {

struct Options {
  std::string tokenizer;
  std::vector<std::string> files;
  int threads = 0;
  double seconds = 2;
  bool plain = false;
  std::string json;
};

double now(clockid_t clock) {
  timespec t{};
  clock_gettime(clock, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

// One thread: its own time, whatever else runs on the machine. Several: the wall's.
double seconds_of(const Tokenizer& tokenizer, std::string_view text, EncodeOptions options, size_t* tokens) {
  const clockid_t clock = options.pool ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID;
  const double start = now(clock);
  *tokens = tokenizer.encode(text, options).size();
  return now(clock) - start;
}

// Median over runs for about `budget` seconds, three at least.
double median_seconds(const Tokenizer& tokenizer, std::string_view text, EncodeOptions options,
                      double budget) {
  std::vector<double> runs;
  size_t tokens = 0;
  for (double spent = 0; runs.size() < 3 || spent < budget; spent += runs.back())
    runs.push_back(seconds_of(tokenizer, text, options, &tokens));
  std::nth_element(runs.begin(), runs.begin() + ptrdiff_t(runs.size() / 2), runs.end());
  return runs[runs.size() / 2];
}

void bench(const Options& o) {
  const int threads = o.threads > 0 ? o.threads : available_cpus();
  ThreadPool pool(threads);
  Json rows = Json::array();
  write_out(fmt::format(
      "{}, MB (10^6 bytes) and thousands of tokens a second\n{:<28}{:>9}{:>10}{:>20}{:>20}{:>20}\n",
      cpu_model_name(), "file", "MB", "bytes/tok", "1 thread, first", "1 thread, again",
      fmt::format("{} threads, again", threads)));
  for (const std::string& file : o.files) {
    const std::string text = read_file(file);
    if (text.empty()) throw Error(fmt::format("{} is empty", file)).hint("pass files with text");
    const Tokenizer tokenizer = Tokenizer::load(o.tokenizer);  // that remembers nothing of the file before
    const EncodeOptions one{.parse_special = !o.plain}, all{.parse_special = !o.plain, .pool = &pool};
    size_t tokens = 0;
    const double first = seconds_of(tokenizer, text, one, &tokens);
    const double again = median_seconds(tokenizer, text, one, o.seconds);
    const double parallel = median_seconds(tokenizer, text, all, o.seconds);
    const double bytes = double(text.size()), count = double(tokens);
    rows.push_back({{"file", file},
                    {"bytes", text.size()},
                    {"tokens", tokens},
                    {"threads", threads},
                    {"first_bytes_per_second", bytes / first},
                    {"bytes_per_second", bytes / again},
                    {"tokens_per_second", count / again},
                    {"parallel_bytes_per_second", bytes / parallel},
                    {"parallel_tokens_per_second", count / parallel}});
    const auto rate = [&](double seconds) {
      return fmt::format("{:.1f} {:.0f}K", bytes / seconds * 1e-6, count / seconds * 1e-3);
    };
    const std::string name = file.size() <= 26 ? file : "..." + file.substr(file.size() - 23);
    write_out(fmt::format("{:<28}{:>9.1f}{:>10.2f}{:>20}{:>20}{:>20}\n", name, bytes * 1e-6, bytes / count,
                          rate(first), rate(again), rate(parallel)));
  }
  if (!o.json.empty())
    write_file_atomic(o.json, Json{{"processor", cpu_model_name()}, {"files", rows}}.dump(1) + "\n");
}

}  // namespace

void add_tokenizer_bench(CLI::App& group) {
  auto o = std::make_shared<Options>();
  auto* c = group.add_subcommand(
      "bench",
      "measure how fast files are encoded: by one thread that meets the text for the first time, by one\n"
      "that has encoded it before and remembers its words (both in that thread's CPU time), and by all\n"
      "threads (in time of the wall); medians but the first");
  c->add_option("--tokenizer", o->tokenizer, "tokenizer.json, or the directory of one")->required();
  c->add_option("files", o->files, "text files, each a text of its own")->required();
  add_threads(*c, o->threads, "; of the last column");
  c->add_option("--seconds", o->seconds, "time for each median")
      ->check(in_range(0.01, 3600))
      ->capture_default_str();
  c->add_flag("--plain", o->plain, "treat names such as <｜User｜> in the text as ordinary text");
  c->add_option("--json", o->json, "write the rates, in bytes and tokens a second, to this file as well")
      ->check(file_in_a_folder());
  c->callback([o] { bench(*o); });
}

}  // namespace cachalot::cli
