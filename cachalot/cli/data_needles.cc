// cachalot data needles: documents to learn the needle task from, as JSONL for `data tokenize`.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "base/error.h"
#include "base/files.h"
#include "base/rng.h"
#include "cli/data_commands.h"
#include "data/jsonl.h"
#include "tasks/needle.h"

namespace cachalot::cli {

namespace {

struct Options {
  std::string haystack, tokenizer, out;
  int64_t documents = 1000, shortest = 64, longest = 256, needles = 4;
  double hay = 0.5;
  uint64_t seed = 1;
};

void run(const Options& o) {
  if (o.shortest > o.longest)
    throw Error(fmt::format("--shortest is {} and --longest {}", o.shortest, o.longest)).hint("swap them");
  const Tokenizer tokenizer = Tokenizer::load(o.tokenizer);
  const Haystack haystack(read_file(o.haystack), tokenizer);
  std::string jsonl;
  for (int64_t i = 0; i < o.documents; ++i) {
    const auto draw = [&](uint64_t stream, int64_t low, int64_t high) {
      return low + int64_t(random_below(o.seed, stream, uint64_t(i), uint64_t(high - low + 1)));
    };
    const NeedleCase c{.tokens = draw(100, o.shortest, o.longest), .seed = o.seed, .number = uint64_t(i)};
    jsonl += "{\"text\": ";
    append_json_string(make_needle_document(haystack, c, draw(101, 1, o.needles), o.hay), jsonl);
    jsonl += "}\n";
  }
  write_file_atomic(o.out, jsonl);
  fmt::print("{}: {} documents of {} to {} tokens, each with up to {} needles\n", o.out, o.documents,
             o.shortest, o.longest, o.needles);
}

}  // namespace

void add_data_needles(CLI::App& group) {
  auto o = std::make_shared<Options>();
  auto* c =
      group.add_subcommand("needles", "make documents to learn the needle task from (cachalot eval needle)");
  c->add_option("--haystack", o->haystack, "text file that hides the needles")->required();
  c->add_option("--tokenizer", o->tokenizer,
                "tokenizer.json, or the directory of one: lengths count its tokens")
      ->required();
  c->add_option("--out", o->out, "JSONL file to write")->required();
  c->add_option("--documents", o->documents, "how many")
      ->check(CLI::Range(1, 100000000))
      ->capture_default_str();
  c->add_option("--shortest", o->shortest, "tokens of a document, at least about")
      ->check(CLI::Range(16, 1 << 24))
      ->capture_default_str();
  c->add_option("--longest", o->longest, "tokens of a document, at most about")
      ->check(CLI::Range(16, 1 << 24))
      ->capture_default_str();
  c->add_option("--needles", o->needles, "of a document, at most; each is asked for at its end")
      ->check(CLI::Range(1, 50))
      ->capture_default_str();
  c->add_option("--hay", o->hay, "share of a document that stays hay: fewer needles where they are more")
      ->check(CLI::Range(0.0, 0.99))
      ->capture_default_str();
  c->add_option("--seed", o->seed, "the same seed gives the same documents")->capture_default_str();
  c->callback([o] { run(*o); });
}

}  // namespace cachalot::cli
