// cachalot data needles | needle-contexts: documents to learn the needle task from, as JSONL for `data
// tokenize`; and at which contexts shards look needles up.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

#include "base/error.h"
#include "base/files.h"
#include "base/rng.h"
#include "cli/common_options.h"
#include "cli/data_commands.h"
#include "data/jsonl.h"
#include "tasks/needle.h"
#include "tasks/needle_census.h"

namespace cachalot::cli {

namespace {

struct Avoided {
  std::vector<int64_t> lengths;
  double margin = 0.1;
};

struct Options {
  std::string haystack, tokenizer, out;
  int64_t documents = 1000, shortest = 64, longest = 256, needles = 4;
  double hay = 0.5;
  uint64_t seed = 1;
  Avoided avoid;
};

struct ContextsOptions {
  std::vector<std::string> shards;
  std::string tokenizer;
  Avoided avoid;
};

bool avoids(const std::string& document, const Tokenizer& tokenizer, const Avoided& avoid) {
  if (avoid.lengths.empty()) return true;
  const std::vector<int64_t> contexts =
      lookup_contexts(tokenizer, tokenizer.encode(document, {.parse_special = false}));
  return std::none_of(contexts.begin(), contexts.end(), [&](int64_t context) {
    return std::any_of(avoid.lengths.begin(), avoid.lengths.end(),
                       [&](int64_t length) { return is_near(context, length, avoid.margin); });
  });
}

// Document i. What comes near an avoided length is drawn anew.
std::string make_document(const Options& o, const Haystack& haystack, uint64_t i) {
  constexpr uint64_t kMostDraws = 200;
  for (uint64_t again = 0; again < kMostDraws; ++again) {
    const uint64_t number = i + (again << 32);
    const auto draw = [&](uint64_t stream, int64_t low, int64_t high) {
      return low + int64_t(random_below(o.seed, stream, number, uint64_t(high - low + 1)));
    };
    const NeedleCase c{.tokens = draw(100, o.shortest, o.longest), .seed = o.seed, .number = number};
    std::string document = make_needle_document(haystack, c, draw(101, 1, o.needles), o.hay);
    if (avoids(document, haystack.tokenizer(), o.avoid)) return document;
  }
  throw Error(fmt::format("{} documents of {} to {} tokens came within {} of {} tokens", kMostDraws,
                          o.shortest, o.longest, o.avoid.margin, fmt::join(o.avoid.lengths, ", ")))
      .hint("leave room between --shortest and --longest for what --avoid allows");
}

void run(const Options& o) {
  if (o.shortest > o.longest)
    throw Error(fmt::format("--shortest is {} and --longest {}", o.shortest, o.longest)).hint("swap them");
  const Tokenizer tokenizer = Tokenizer::load(o.tokenizer);
  const Haystack haystack(read_file(o.haystack), tokenizer);
  std::string jsonl;
  for (int64_t i = 0; i < o.documents; ++i) {
    jsonl += "{\"text\": ";
    append_json_string(make_document(o, haystack, uint64_t(i)), jsonl);
    jsonl += "}\n";
  }
  write_file_atomic(o.out, jsonl);
  fmt::print("{}: {} documents of {} to {} tokens, each with up to {} needles\n", o.out, o.documents,
             o.shortest, o.longest, o.needles);
}

void run_contexts(const ContextsOptions& o) {
  const Tokenizer tokenizer = Tokenizer::load(o.tokenizer);
  const TokenData data = open_token_data(o.shards);
  if (data.train.empty())
    throw Error(fmt::format("{}: every token is held out from training", fmt::join(o.shards, ", ")))
        .hint("cachalot data tokenize --held-out 0.01, or name other shards");
  data.train.front().shards().front().require_tokenizer(tokenizer, o.tokenizer);
  const NeedleCensus census = take_needle_census(data.train, tokenizer, o.avoid.lengths, o.avoid.margin);
  std::string table = fmt::format("{:<12} {:>9} {:>9} {:>15}", "part", "documents", "lookups", "contexts");
  for (const int64_t length : o.avoid.lengths) table += fmt::format(" {:>8}", fmt::format("at {}", length));
  for (const NeedleCensus::Part& p : census.parts) {
    table += fmt::format("\n{:<12} {:>9} {:>9} {:>15}", p.name, p.documents, p.lookups,
                         p.lookups ? fmt::format("{} to {}", p.shortest, p.longest) : "none");
    for (const int64_t n : p.near) table += fmt::format(" {:>8}", n);
  }
  fmt::print("{}\n", table);
  if (o.avoid.lengths.empty()) return;
  const std::string lengths = fmt::format("{}", fmt::join(o.avoid.lengths, ", "));
  if (census.near() > 0)
    throw Error(fmt::format("{} lookups have a context within {:g} % of {} tokens", census.near(),
                            100 * o.avoid.margin, lengths))
        .hint("make documents with `cachalot data needles --avoid`, and shards of those alone");
  fmt::print("no lookup has a context within {:g} % of {} tokens\n", 100 * o.avoid.margin, lengths);
}

void add_avoid(CLI::App& command, Avoided& avoid, const std::string& what) {
  auto* lengths = command.add_option("--avoid", avoid.lengths, what)
                      ->delimiter(',')
                      ->check(in_range(16, 1 << 30));
  command.add_option("--margin", avoid.margin, "how near is near: a share of the length")
      ->check(in_range(0.0, 0.99))
      ->needs(lengths)
      ->capture_default_str();
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
  c->add_option("--out", o->out, "JSONL file to write")->required()->check(file_in_a_folder());
  c->add_option("--documents", o->documents, "how many")
      ->check(in_range(1, 100000000))
      ->capture_default_str();
  c->add_option("--shortest", o->shortest, "tokens of a document, at least about")
      ->check(in_range(16, 1 << 24))
      ->capture_default_str();
  c->add_option("--longest", o->longest, "tokens of a document, at most about")
      ->check(in_range(16, 1 << 24))
      ->capture_default_str();
  c->add_option("--needles", o->needles, "of a document, at most; each is asked for at its end")
      ->check(in_range(1, 50))
      ->capture_default_str();
  c->add_option("--hay", o->hay, "share of a document that stays hay: fewer needles where they are more")
      ->check(in_range(0.0, 0.99))
      ->capture_default_str();
  add_avoid(*c, o->avoid, "tokens of context, with commas, near which no needle is asked for");
  c->add_option("--seed", o->seed, "the same seed gives the same documents")
      ->check(at_least(0))
      ->capture_default_str();
  c->callback([o] { run(*o); });

  auto contexts = std::make_shared<ContextsOptions>();
  c = group.add_subcommand("needle-contexts",
                           "tell from the tokens of shards at which contexts they look needles up");
  c->add_option("shards", contexts->shards, "folders of shards, or single ones")->required();
  c->add_option("--tokenizer", contexts->tokenizer, "tokenizer.json, or the directory of one")->required();
  add_avoid(*c, contexts->avoid, "tokens of context, with commas: fail if a lookup is near one");
  c->callback([contexts] { run_contexts(*contexts); });
}

}  // namespace cachalot::cli
