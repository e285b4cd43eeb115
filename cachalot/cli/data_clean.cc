// cachalot data clean: documents in, cleaned documents and a report out.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "base/error.h"
#include "base/progress.h"
#include "base/text.h"
#include "base/thread_pool.h"
#include "cli/common_options.h"
#include "cli/data_commands.h"
#include "cli/field_options.h"
#include "cli/terminal.h"
#include "config/fields.h"
#include "data/clean.h"

namespace cachalot::cli {

namespace {

struct Options {
  std::vector<std::string> input, evaluation;
  std::string out, config;
  int threads = 0;
  bool overwrite = false, skip_corrupt = false, profile = false;
  FieldTexts fields;
};

CleanOptions resolve(const Options& o, const CLI::App& command) {
  Json json = o.config.empty() ? Json::object() : read_json_file(o.config);
  for (const auto& [key, text] : given_fields(command, o.fields)) fields::override_key(json, key, text);
  CleanOptions options;
  read_fields(options, json, o.config);
  return options;
}

std::string amount(const Json& tally) {
  return fmt::format("{} documents, {}", human_count(tally.at("documents").get<double>()),
                     human_bytes(tally.at("bytes").get<double>()));
}

void summarise(const Json& report, const std::string& out) {
  const auto files = report.at("run").at("inputs").get<int64_t>();
  fmt::print("read  {}, {} file{}\nkept  {}\n", amount(report.at("read")), files, files == 1 ? "" : "s",
             amount(report.at("kept")));
  for (const auto& [reason, tally] : report.at("dropped").items())
    fmt::print("  {:<34} {}\n", reason, amount(tally));
  const Json& duplicates = report.at("duplicates");
  if (const auto n = duplicates.at("documents").get<int64_t>())
    fmt::print("  {:<34} {} documents ({} exact, {} near), {}\n", "duplicates", n,
               duplicates.at("exact").get<int64_t>(), duplicates.at("near").get<int64_t>(),
               human_bytes(duplicates.at("bytes").get<double>()));
  for (const Json& problem : report.at("problems")) fmt::print("damaged: {}\n", problem.get<std::string>());
  fmt::print("what went and why, with samples: {}/report.html\n", out);
  if (report.at("kept").at("documents") == 0)
    fmt::print(
        "nothing was kept: a rule that does not suit the text can be turned off, as --filters.c4.on false\n");
}

void run(const Options& o, const CLI::App& command) {
  const CleanOptions options = resolve(o, command);
  CleanRequest request{.input = find_inputs(o.input),
                       .evaluation = o.evaluation,
                       .out = o.out,
                       .threads = o.threads > 0 ? o.threads : available_cpus(),
                       .overwrite = o.overwrite,
                       .skip_corrupt = o.skip_corrupt};
  while (request.out.size() > 1 && request.out.back() == '/') request.out.pop_back();
  std::unique_ptr<Progress> bar;
  std::string stage;
  CleanProgress progress{
      .stop = &stop_on_signals("\nstopping; run the same again to go on; once more to stop at once\n")};
  progress.update = [&](const char* name, int64_t done, int64_t total, const std::string& extra) {
    if (stage != name) {
      if (bar) bar->finish();
      stage = name;
      bar = std::make_unique<Progress>(std::cerr, name, total);
    }
    bar->update(done, extra);
  };
  const CleanResult result = clean_documents(request, options, progress);
  if (bar && result.finished) bar->finish();
  bar.reset();
  if (!result.finished) {
    fmt::print(stderr, "stopped; the same command goes on from here\n");
    return;
  }
  if (result.was_finished) fmt::print("{} was finished before; nothing was done\n", request.out);
  summarise(result.report, request.out);
  if (o.profile) {
    double sum = 0;
    for (const auto& [what, seconds] : result.seconds) sum += seconds;
    fmt::print("seconds of all threads, this run\n");
    for (const auto& [what, seconds] : result.seconds)
      fmt::print("  {:<12} {:9.2f}  {:4.1f} %\n", what, seconds, 100 * seconds / std::max(sum, 1e-9));
  }
}

}  // namespace

void add_data_clean(CLI::App& group) {
  auto o = std::make_shared<Options>();
  auto* c = group.add_subcommand("clean",
                                 "read text and JSONL (also .gz, .zst), filter it, remove duplicates and\n"
                                 "evaluation items; write JSONL in parts, report.json and report.html");
  c->add_option("--input", o->input, "files or folders, each as path or part=path")->required();
  c->add_option("--out", o->out, "folder for the result; the same command again goes on where it was stopped")
      ->required();
  c->add_option(
      "--decontaminate", o->evaluation,
      "files or folders of evaluation items (JSON, JSONL, text): documents that hold one are dropped");
  c->add_option("--config", o->config, "JSON file with the settings below");
  add_threads(*c, o->threads, "; they do not change the result");
  c->add_flag("--overwrite", o->overwrite, "throw away what an earlier run left in --out");
  c->add_flag("--skip-corrupt", o->skip_corrupt, "go on after a damaged archive; the report names it");
  c->add_flag("--profile", o->profile, "say where the time went");
  c->footer(
      "Parquet is not read. To convert it, with Python's pyarrow:\n"
      "  python3 -c 'import pyarrow.parquet as p, json, sys; [print(json.dumps(r)) for f in sys.argv[1:]\n"
      "    for b in p.ParquetFile(f).iter_batches() for r in b.to_pylist()]' *.parquet | zstd > "
      "out.jsonl.zst\n"
      "docs/data.md explains the rules and where their numbers come from.");
  for (const fields::Line& line : list_fields(CleanOptions{}))
    add_field_option(*c, line, o->fields, "in --config, and on the command line");
  c->callback([o, c] { run(*o, *c); });
}

}  // namespace cachalot::cli
