// cachalot data tokenize | inspect: text into token shards, and what is in a shard.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <memory>

#include "base/error.h"
#include "base/progress.h"
#include "base/text.h"
#include "base/thread_pool.h"
#include "cli/common_options.h"
#include "cli/data_commands.h"
#include "cli/terminal.h"
#include "data/token_stream.h"
#include "data/tokenize.h"

namespace cachalot::cli {

namespace {

namespace fs = std::filesystem;

struct TokenizeCommand {
  std::vector<std::string> input;
  TokenizeOptions options;
  int64_t seed = 1;
  int threads = 0;
};

std::string quoted(const std::string& word) {
  return word.find_first_of(" '\"$*?(){}[]<>|&;\\") == std::string::npos ? word : "'" + word + "'";
}

// What makes the same shards again, in whatever folder.
std::string command_line(const TokenizeCommand& o) {
  const TokenizeOptions& t = o.options;
  std::string line = "cachalot data tokenize --input";
  for (const std::string& input : o.input) line += " " + quoted(input);
  line += " --tokenizer " + quoted(t.tokenizer_path);
  const TokenizeOptions usual;
  if (t.recipe.fim_rate > 0) line += fmt::format(" --fim-rate {}", t.recipe.fim_rate);
  if (t.recipe.split_rate > 0) line += fmt::format(" --split-rate {}", t.recipe.split_rate);
  if (t.held_out > 0) line += fmt::format(" --held-out {}", t.held_out);
  if (o.seed != 1) line += fmt::format(" --seed {}", o.seed);
  if (t.shard_tokens != usual.shard_tokens) line += fmt::format(" --shard-tokens {}", t.shard_tokens);
  if (t.reading.text_field != usual.reading.text_field)
    line += " --text-field " + quoted(t.reading.text_field);
  if (t.reading.format == DocumentFormat::lines) line += " --format lines";
  if (t.reading.format == DocumentFormat::text) line += " --format text";
  if (t.reading.format == DocumentFormat::jsonl) line += " --format jsonl";
  if (t.reading.encoding != usual.reading.encoding) line += " --encoding " + quoted(t.reading.encoding);
  if (t.reading.max_bytes != usual.reading.max_bytes)
    line += fmt::format(" --max-bytes {}", t.reading.max_bytes);
  return line;
}

void print_folder(const ShardFolder& folder) {
  struct Sum {
    int64_t shards = 0, documents = 0, tokens = 0, bytes = 0;
  };
  std::map<ShardKey, Sum> sums;
  for (const ShardEntry& s : folder.shards) {
    Sum& sum = sums[s.key()];
    ++sum.shards;
    sum.documents += s.documents;
    sum.tokens += s.tokens;
    sum.bytes += s.text_bytes;
  }
  fmt::print("{:<24} {:>7} {:>11} {:>9} {:>11} {:>12}\n", "part", "shards", "documents", "tokens", "text",
             "bytes/token");
  for (const auto& [key, s] : sums)
    fmt::print("{:<24} {:>7} {:>11} {:>9} {:>11} {:>12.2f}\n", key.part + (key.held_out ? " (held out)" : ""),
               s.shards, s.documents, human_count(double(s.tokens)), human_bytes(double(s.bytes)),
               double(s.bytes) / double(std::max<int64_t>(s.tokens, 1)));
  for (size_t i = 1; i < folder.dropped.size() && i < size_t(kDrops); ++i)
    if (folder.dropped[i] > 0) fmt::print("dropped {} records: {}\n", folder.dropped[i], drop_name(Drop(i)));
}

void run_tokenize(TokenizeCommand o) {
  TokenizeOptions& t = o.options;
  while (t.out.size() > 1 && t.out.back() == '/') t.out.pop_back();
  t.inputs = find_inputs(o.input);
  t.recipe.seed = uint64_t(o.seed);
  t.command = command_line(o);
  const Tokenizer tokenizer = Tokenizer::load(t.tokenizer_path);
  ThreadPool pool(o.threads > 0 ? o.threads : available_cpus());
  t.pool = &pool;
  const std::atomic<bool>& stop = stop_on_signals("\nstopping; the same command continues\n");
  std::unique_ptr<Progress> bar;
  const ProgressStyle style = progress_style(std::cerr);
  const auto start = std::chrono::steady_clock::now();
  const auto seconds = [&] {
    return std::max(1e-3, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  };
  const TokenizeResult result = tokenize(
      tokenizer, t,
      [&](const TokenizeProgress& p) {
        if (!bar) bar = std::make_unique<Progress>(std::cerr, "tokenize", p.total, style);
        bar->update(p.consumed, fmt::format("{} tokens, {}/s", human_count(double(p.tokens)),
                                            human_bytes(double(p.text_bytes) / seconds())));
      },
      stop);
  if (bar && !result.stopped) bar->finish();
  bar.reset();
  if (result.shards_before > 0) fmt::print("{} shards were there already\n", result.shards_before);
  if (result.stopped) {
    fmt::print("stopped with {} shards in {}; the same command continues:\n  {}\n",
               result.folder.shards.size(), t.out, result.folder.command);
    return;
  }
  print_folder(result.folder);
  fmt::print("{}: {} shards; this run made {} tokens of {} in {}, {}/s\n", t.out, result.folder.shards.size(),
             human_count(double(result.progress.tokens)), human_bytes(double(result.progress.text_bytes)),
             human_seconds(seconds()), human_bytes(double(result.progress.text_bytes) / seconds()));
}

struct InspectCommand {
  std::string path, tokenizer;
  int64_t document = 0, bytes = 500;
  bool no_verify = false;
};

std::string one_line(std::string_view text) {
  std::string out;
  for (const char c : text) c == '\n' ? void(out += "\\n") : c == '\r' ? void(out += "\\r") : void(out += c);
  return out;
}

void inspect_shard(const Shard& shard, const InspectCommand& o) {
  const ShardHeader& h = shard.header();
  fmt::print("{}\n", shard.name());
  fmt::print("  part         {}{}\n", utf8_lossy(h.part), h.held_out ? ", held out" : "");
  fmt::print("  tokens       {}, {} bytes each\n", h.tokens, h.token_bytes());
  fmt::print("  documents    {}\n", h.documents);
  fmt::print("  text         {} bytes, {:.2f} a token\n", h.text_bytes,
             double(h.text_bytes) / double(std::max<int64_t>(h.tokens, 1)));
  fmt::print("  tokenizer    {}: {} tokens, {} ends a text\n", tokenizer_id_text(h.tokenizer), h.vocab_size,
             h.end_of_text);
  fmt::print("  made by      {}\n", utf8_lossy(h.source));
  if (!o.no_verify) {
    shard.verify();
    fmt::print("  checksums    right\n");
  }
  if (h.documents == 0) return;
  if (o.document < 0 || o.document >= h.documents)
    throw Error(fmt::format("{} has documents 0 to {}, not {}", shard.name(), h.documents - 1, o.document))
        .hint(fmt::format("--document between 0 and {}", h.documents - 1));
  const int64_t begin = shard.document_begin(o.document), end = shard.document_end(o.document);
  // Enough tokens for the bytes: a token has one at least.
  std::vector<int32_t> ids(size_t(std::min(end - begin, std::max<int64_t>(0, o.bytes))));
  shard.read(begin, ids);
  const fs::path beside = fs::path(shard.name()).parent_path();
  const std::string tokenizer_path = !o.tokenizer.empty()                    ? o.tokenizer
                                     : fs::exists(beside / "tokenizer.json") ? beside.string()
                                                                             : "";
  fmt::print("  document {}: {} tokens\n", o.document, end - begin);
  if (tokenizer_path.empty()) {
    fmt::print("    {}\n", fmt::join(ids, " "));
    return;
  }
  const Tokenizer tokenizer = Tokenizer::load(tokenizer_path);
  shard.require_tokenizer(tokenizer, tokenizer_path);
  std::string text = tokenizer.decode(ids);
  if (int64_t(text.size()) > o.bytes)
    text.resize(utf8_complete_prefix(std::string_view(text).substr(0, size_t(o.bytes))));
  fmt::print("    {}\n", one_line(utf8_lossy(text)));
}

void inspect(const InspectCommand& o) {
  if (!fs::is_directory(o.path)) return inspect_shard(Shard::open(o.path), o);
  const auto folder = read_shard_folder(o.path);
  if (folder) print_folder(*folder);
  const TokenData data = open_token_data({o.path});
  if (o.no_verify) return;
  int64_t tokens = 0;
  for (const auto& side : {data.train, data.held_out})
    for (const TokenStream& stream : side) tokens += stream.tokens();
  Progress bar(std::cerr, "verify", tokens, progress_style(std::cerr));
  int64_t done = 0, shards = 0;
  for (const auto& side : {data.train, data.held_out})
    for (const TokenStream& stream : side)
      for (const Shard& s : stream.shards()) {
        s.verify();
        ++shards;
        bar.update(done += s.tokens());
      }
  bar.finish();
  fmt::print("{} tokens in {} shards: every checksum is right\n", tokens, shards);
}

}  // namespace

void add_data_tokenize(CLI::App& group) {
  auto o = std::make_shared<TokenizeCommand>();
  TokenizeOptions& t = o->options;
  auto* c = group.add_subcommand(
      "tokenize",
      "turn documents into checksummed token shards, with all cores; stopped or killed at any time,\n"
      "the same command continues, and makes anew what is missing or damaged");
  c->add_option("--input", o->input,
                "files or folders (text, JSONL, packed or not), each as path or part=path")
      ->required();
  c->add_option("--tokenizer", t.tokenizer_path, "tokenizer.json, or the directory of one")->required();
  c->add_option("--out", t.out, "folder of the shards")->required();
  c->add_option("--fim-rate", t.recipe.fim_rate,
                "share of the documents rearranged as prefix, suffix, middle; DeepSeek-V3: 0.1")
      ->check(in_range(0, 1))
      ->capture_default_str();
  c->add_option("--split-rate", t.recipe.split_rate,
                "share of the tokens that join punctuation and line ends which are split; DeepSeek-V3\n"
                "splits some, 0.1 is sensible")
      ->check(in_range(0, 1))
      ->capture_default_str();
  c->add_option("--held-out", t.held_out, "share of the documents kept from training, chosen by their text")
      ->check(in_range(0, 1))
      ->capture_default_str();
  c->add_option("--seed", o->seed, "of FIM, splitting and the choice of held-out documents")
      ->check(at_least(0))
      ->capture_default_str();
  c->add_option("--shard-tokens", t.shard_tokens, "a shard is closed when it has that many")
      ->check(at_least(1))
      ->capture_default_str();
  c->add_flag("--overwrite", t.overwrite, "replace what was written to --out with other settings");
  c->add_option("--format", t.reading.format,
                "auto, by the file's name; text: a file is a document; lines; jsonl")
      ->transform(
          CLI::CheckedTransformer(std::map<std::string, DocumentFormat>{{"auto", DocumentFormat::automatic},
                                                                        {"text", DocumentFormat::text},
                                                                        {"lines", DocumentFormat::lines},
                                                                        {"jsonl", DocumentFormat::jsonl}})
              .description(""))
      ->default_str("auto");
  c->add_option("--text-field", t.reading.text_field, "JSONL: the field with the text")
      ->capture_default_str();
  c->add_option("--encoding", t.reading.encoding, "of text that is not UTF-8")->capture_default_str();
  c->add_option("--max-bytes", t.reading.max_bytes, "longer documents are dropped, longer text files cut")
      ->check(at_least(1))
      ->capture_default_str();
  add_threads(*c, o->threads, "; they change no byte");
  c->callback([o] { run_tokenize(*o); });

  auto i = std::make_shared<InspectCommand>();
  c = group.add_subcommand("inspect",
                           "what a token shard or a folder of them holds; verifies every checksum");
  c->add_option("path", i->path, "a .tok file, or a folder of them")->required();
  auto* tokenizer =
      c->add_option("--tokenizer", i->tokenizer, "of a .tok file: to show text [the one beside the shard]");
  auto* document = c->add_option("--document", i->document, "of a .tok file: which document is shown")
                       ->check(at_least(0))
                       ->capture_default_str();
  auto* bytes = c->add_option("--bytes", i->bytes, "of a .tok file: how much of the document is shown")
                    ->check(at_least(0))
                    ->capture_default_str();
  c->add_flag("--no-verify", i->no_verify, "do not read all tokens");
  c->callback([=] {
    for (const CLI::Option* option : {tokenizer, document, bytes})
      if (option->count() > 0 && fs::is_directory(i->path))
        throw Error(fmt::format("{} is for a .tok file; {} is a folder", option->get_name(), i->path))
            .hint("name one of its shards");
    inspect(*i);
  });
}

}  // namespace cachalot::cli
