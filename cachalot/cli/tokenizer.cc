// cachalot tokenizer train | encode | decode | bench.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "base/progress.h"
#include "base/text.h"
#include "base/thread_pool.h"
#include "cli/commands.h"
#include "cli/common_options.h"
#include "cli/terminal.h"
#include "cli/tokenizer_bench.h"
#include "data/bpe_trainer.h"
#include "data/documents.h"
#include "data/json_fields.h"
#include "data/tokenizer.h"

namespace cachalot::cli {

namespace {

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// The whole of `file`, or of standard input when `file` is "" or "-".
std::string read_input(const std::string& file) {
  if (!file.empty() && file != "-") return read_file(file);
  return read_standard_input("text");
}

// Calls line(text, "name:number") for each line that is not blank.
template <class Line> void for_each_line(const std::string& file, const Line& on_line) {
  const bool standard = file.empty() || file == "-";
  std::ifstream stream;
  if (!standard) {
    stream.open(file, std::ios::binary);
    if (!stream) throw Error(fmt::format("{}: cannot be opened", file)).hint("does the file exist?");
  }
  std::istream& in = standard ? std::cin : stream;
  int64_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    on_line(line, fmt::format("{}:{}", standard ? "standard input" : file, number));
  }
  if (in.bad())
    throw Error(fmt::format("{}: reading stopped after line {}", standard ? "standard input" : file, number));
}

// The field of a JSON line.
const Json& need_field(const Json& line, const char* field, const std::string& where) {
  if (!line.is_object() || !line.contains(field))
    throw Error(fmt::format("{}: no field \"{}\"", where, field))
        .hint(fmt::format("a line is an object such as {}", field == std::string_view("text")
                                                                ? R"({"text": "Call me Ishmael."})"
                                                                : R"({"ids": [1, 2, 3]})"));
  return line.at(field);
}

// Appends "1,2,3".
void append_ids(const std::vector<int32_t>& ids, char separator, std::string& out) {
  char digits[16];
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i > 0) out += separator;
    out.append(digits, std::to_chars(digits, digits + sizeof digits, ids[i]).ptr);
  }
}

std::string ids_json(const std::vector<int32_t>& ids) {
  std::string json = "{\"ids\":[";
  append_ids(ids, ',', json);
  return json + "]}\n";
}

int thread_count(int asked) { return asked > 0 ? asked : available_cpus(); }

// {"text"}; text that is not UTF-8, which JSON cannot hold, has U+FFFD for each wrong byte, and "hex" beside
// it.
std::string text_json(const std::string& bytes) {
  Json json = Json::object();
  const std::string text = utf8_lossy(bytes);
  json["text"] = text;
  if (text != bytes) {
    std::string hex;
    for (const char byte : bytes) hex += fmt::format("{:02x}", uint8_t(byte));
    json["hex"] = hex;
  }
  return json.dump() + "\n";
}

// One id of a JSON line or of the command line.
int32_t narrow_id(int64_t id, const std::string& where) {
  if (id < 0 || id > INT32_MAX)
    throw Error(fmt::format("{}: {} is no token id", where, id)).hint("ids are whole numbers from 0 on");
  return int32_t(id);
}

std::vector<int32_t> parse_ids(const std::string& text, const std::string& where) {
  std::vector<int32_t> ids;
  for (size_t at = 0; (at = text.find_first_not_of(" \t\r\n,", at)) != std::string::npos;) {
    const size_t end = std::min(text.find_first_of(" \t\r\n,", at), text.size());
    const std::string word = text.substr(at, end - at);
    if (word.size() > 10 || word.find_first_not_of("0123456789") != std::string::npos)
      throw Error(fmt::format("{}: \"{}\" is no token id", where, utf8_lossy(word.substr(0, 40))))
          .hint("ids are whole numbers with spaces between, as `cachalot tokenizer encode` prints them");
    ids.push_back(narrow_id(std::stoll(word), where));
    at = end;
  }
  return ids;
}

constexpr int64_t kWorthARate = 100'000;  // bytes; of less, starting threads takes most of the time

void summarise(int64_t tokens, int64_t bytes, double seconds) {
  fmt::print(stderr, "{} tokens, {} bytes", tokens, bytes);
  if (tokens > 0) fmt::print(stderr, ", {:.2f} bytes a token", double(bytes) / double(tokens));
  if (bytes >= kWorthARate && seconds > 0) fmt::print(stderr, ", {}/s", human_bytes(double(bytes) / seconds));
  fmt::print(stderr, "\n");
}

struct TrainOptions {
  std::vector<std::string> input, special;
  int64_t vocab_size = 0, min_count = 2;
  int threads = 0;
  std::string out;
};

// A folder, or JSONL, packed or not: many texts (data/documents.h); everything else is one.
bool holds_documents(const std::string& input) {
  return std::filesystem::is_directory(input) || input.find(".jsonl") != std::string::npos ||
         input.find(".ndjson") != std::string::npos;
}

// A model, a run and shards are worth nothing with another tokenizer than their own.
void refuse_owned_tokenizer(const std::string& out) {
  const std::filesystem::path path = out, folder = path.extension() == ".json" ? path.parent_path() : path;
  for (const char* owner : {"config.json", "shards.json"})
    if (std::filesystem::exists(folder / owner) && std::filesystem::exists(folder / "tokenizer.json"))
      throw Error(
          fmt::format("{} holds a tokenizer that belongs to the {} beside it", folder.string(), owner))
          .hint("choose another --out");
}

void train(const TrainOptions& o) {
  const Stopwatch watch;
  refuse_owned_tokenizer(o.out);
  ThreadPool pool(thread_count(o.threads));
  ProgressStyle style = progress_style(std::cerr);
  style.line_share = 1;  // in a log now and then, by time alone
  std::optional<Progress> bar;
  BpeTrainOptions options{.vocab_size = o.vocab_size,
                          .min_count = o.min_count,
                          .pool = &pool,
                          .progress = [&](int64_t tokens, int64_t of) {
                            if (!bar) bar.emplace(std::cerr, "learn, tokens", of, style);
                            bar->update(tokens);
                          }};
  if (!o.special.empty()) options.special_tokens = o.special;
  BpeTrainer trainer(options);
  int64_t bytes = 0, files = 0;
  bar.emplace(std::cerr, "count, MB of text", 0, style);
  for (const std::string& input : o.input) {
    bar->update(bytes / 1'000'000, fmt::format("{} of {} inputs", files++, o.input.size()));
    if (!holds_documents(input)) {
      const std::string text = read_input(input);
      trainer.add_text(text);
      bytes += int64_t(text.size());
      continue;
    }
    DocumentReader reader(find_inputs({input}), {});
    for (Document document; reader.next(document);) {
      trainer.add_text(document.text);
      bytes += int64_t(document.text.size());
      bar->update(bytes / 1'000'000, fmt::format("{} of {} inputs", files - 1, o.input.size()));
    }
  }
  const auto end_bar = [&] {
    if (bar && style.terminal) bar->finish();
    bar.reset();
  };
  bar->update(bytes / 1'000'000);
  end_bar();
  const TrainedBpe trained = trainer.train();
  end_bar();
  const std::string file = save_tokenizer(trained, o.out);
  fmt::print(stderr, "{}: {} tokens from {} of text in {}\n", file, trained.vocab_size,
             human_bytes(double(bytes)), human_seconds(watch.seconds()));
  if (trained.vocab_size < o.vocab_size)
    fmt::print(stderr, "  {} were asked for, but no further pair of tokens occurs {} times\n", o.vocab_size,
               o.min_count);
}

struct EncodeCommand {
  std::string tokenizer, input, text;
  bool has_text = false, jsonl = false, plain = false;
  int threads = 0;
};

// The lines of a batch, encoded by all threads; written in their order.
class LineEncoder {
 public:
  LineEncoder(const Tokenizer& tokenizer, EncodeOptions options, ThreadPool& pool)
      : tokenizer_(tokenizer), options_(options), pool_(pool) {}

  void add(const std::string& line, const std::string& where) {
    lines_.push_back({.json = line, .where = where});
    bytes_ += line.size();
    if (bytes_ >= kBatch) write();
  }

  void write() {
    pool_.parallel_ranges(int64_t(lines_.size()), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) run(lines_[size_t(i)]);
    });
    std::string out;
    for (const Line& line : lines_) {
      if (line.error) {  // the lines before it are written
        write_out(out);
        throw Error(*line.error);
      }
      out += line.out;
      tokens += line.tokens;
      bytes += line.bytes;
    }
    write_out(out);
    lines_.clear();
    bytes_ = 0;
  }

  int64_t tokens = 0, bytes = 0;  // of what was written

 private:
  static constexpr size_t kBatch = 4 << 20;  // bytes of lines
  static constexpr int64_t kGrain = 16;
  struct Line {
    std::string json, where, out = {};
    int64_t tokens = 0, bytes = 0;
    std::optional<Error> error = {};
  };

  void run(Line& line) const {
    try {
      const Json json = parse_json(line.json, line.where);
      const Json& text = need_field(json, "text", line.where);
      if (!text.is_string()) throw_kind(line.where + ": text", text, "a string");
      const std::string& bytes = text.get_ref<const std::string&>();
      const std::vector<int32_t> ids = tokenizer_.encode(bytes, options_);
      line.out = ids_json(ids);
      line.tokens = int64_t(ids.size());
      line.bytes = int64_t(bytes.size());
    } catch (const Error& e) {
      line.error = e;
    }
  }

  const Tokenizer& tokenizer_;
  EncodeOptions options_;
  ThreadPool& pool_;
  std::vector<Line> lines_;
  size_t bytes_ = 0;
};

void encode(const EncodeCommand& o) {
  const Tokenizer tokenizer = Tokenizer::load(o.tokenizer);
  ThreadPool pool(thread_count(o.threads));
  if (o.jsonl) {
    if (o.has_text)
      throw Error("--jsonl reads lines, not the text on the command line").hint("leave the text out");
    const Stopwatch watch;
    LineEncoder lines(tokenizer, {.parse_special = !o.plain}, pool);
    for_each_line(o.input,
                  [&](const std::string& line, const std::string& where) { lines.add(line, where); });
    lines.write();
    return summarise(lines.tokens, lines.bytes, watch.seconds());
  }
  const std::string text = o.has_text ? o.text : read_input(o.input);
  const Stopwatch watch;
  const std::vector<int32_t> ids = tokenizer.encode(text, {.parse_special = !o.plain, .pool = &pool});
  const double seconds = watch.seconds();
  std::string out;
  append_ids(ids, ' ', out);
  write_out(out + "\n");
  summarise(int64_t(ids.size()), int64_t(text.size()), seconds);
}

struct DecodeCommand {
  std::string tokenizer, input;
  std::vector<std::string> ids;
  bool jsonl = false, skip_special = false;
};

void decode(const DecodeCommand& o) {
  const Tokenizer tokenizer = Tokenizer::load(o.tokenizer);
  const Stopwatch watch;
  int64_t tokens = 0, bytes = 0;
  bool open_line = false;
  const auto run = [&](const std::vector<int32_t>& ids, const std::string& where) {
    try {
      std::string text = tokenizer.decode(ids, {.skip_special = o.skip_special});
      open_line = !text.empty() && text.back() != '\n';
      tokens += int64_t(ids.size());
      bytes += int64_t(text.size());
      return text;
    } catch (const Error& e) {
      throw Error(fmt::format("{}: {}", where, e.what())).hint(e.hint());
    }
  };
  if (o.jsonl) {
    if (!o.ids.empty())
      throw Error("--jsonl reads lines, not the ids on the command line").hint("leave the ids out");
    for_each_line(o.input, [&](const std::string& line, const std::string& where) {
      const Json json = parse_json(line, where);
      const Json& list = need_field(json, "ids", where);
      if (!list.is_array()) throw_kind(where + ": ids", list, "an array");
      std::vector<int32_t> ids;
      for (const Json& id : list) {
        if (!id.is_number_integer() || (id.is_number_unsigned() && id.get<uint64_t>() > INT64_MAX))
          throw Error(
              fmt::format("{}: \"ids\" holds {}, which is no token id", where, id.dump().substr(0, 40)))
              .hint("ids are whole numbers from 0 on");
        ids.push_back(narrow_id(id.get<int64_t>(), where));
      }
      write_out(text_json(run(ids, where)));
    });
  } else if (!o.ids.empty()) {
    write_out(
        run(parse_ids(fmt::format("{}", fmt::join(o.ids, " ")), "the command line"), "the command line"));
  } else {
    const std::string where = o.input.empty() || o.input == "-" ? "standard input" : o.input;
    write_out(run(parse_ids(read_input(o.input), where), where));
  }
  // Nothing is added to the text, but what follows on a terminal begins a line of its own.
  if (open_line && !o.jsonl && isatty(STDOUT_FILENO)) fmt::print(stderr, "\n");
  summarise(tokens, bytes, watch.seconds());
}

}  // namespace

void add_tokenizer(CLI::App& app) {
  auto* group =
      app.add_subcommand("tokenizer", "train a tokenizer; turn text into token ids and back; measure it");
  group->require_subcommand(1);

  auto t = std::make_shared<TrainOptions>();
  auto* c = group->add_subcommand("train",
                                  "learn a byte-level BPE vocabulary from text and write a tokenizer.json\n"
                                  "that Hugging Face's tokenizers library reads too");
  c->add_option(
       "--input", t->input,
       "text files, each a text of its own; folders and JSONL files of documents; - is standard input")
      ->required();
  c->add_option("--vocab-size", t->vocab_size, "tokens in all: special ones, 256 bytes, merges")
      ->required()
      ->check(at_least(0));
  c->add_option("--out", t->out,
                "directory, or a file ending in .json; tokenizer_config.json is written beside")
      ->required();
  c->add_option("--special", t->special,
                "special tokens, ids 0, 1, ...; the first begins a text, the second ends it\n"
                "(default: those of DeepSeek-V3)");
  c->add_option("--min-count", t->min_count, "occurrences that make a pair a token")
      ->check(at_least(1))
      ->capture_default_str();
  add_threads(*c, t->threads, "; they do not change the result");
  c->callback([t] { train(*t); });

  auto e = std::make_shared<EncodeCommand>();
  c = group->add_subcommand("encode", "print the token ids of a text, without a begin-of-text token");
  c->add_option("--tokenizer", e->tokenizer, "tokenizer.json, or the directory of one")->required();
  auto* text = c->add_option("text", e->text, "the text; without it, --input or standard input is read");
  auto* input = c->add_option("--input", e->input, "file to read; - is standard input");
  text->excludes(input);
  c->add_flag("--jsonl", e->jsonl, "read lines {\"text\": \"...\"}, write lines {\"ids\": [...]}");
  c->add_flag("--plain", e->plain,
              "treat names such as <｜User｜> in the text as ordinary text (untrusted input)");
  add_threads(*c, e->threads, "; they do not change the result");
  c->callback([e, text] {
    e->has_text = text->count() > 0;
    encode(*e);
  });

  auto d = std::make_shared<DecodeCommand>();
  c = group->add_subcommand("decode", "print the text of token ids, byte for byte, with nothing added");
  c->add_option("--tokenizer", d->tokenizer, "tokenizer.json, or the directory of one")->required();
  auto* ids = c->add_option("ids", d->ids, "the ids; without them, --input or standard input is read");
  input = c->add_option("--input", d->input, "file of ids to read; - is standard input");
  ids->excludes(input);
  c->add_flag("--jsonl", d->jsonl,
              "read lines {\"ids\": [...]}, write lines {\"text\": \"...\"}; where the bytes are not\n"
              "UTF-8, \"text\" has U+FFFD for them and \"hex\" holds them all");
  c->add_flag("--skip-special", d->skip_special, "leave out tokens that tokenizer.json flags special");
  c->callback([d] { decode(*d); });

  add_tokenizer_bench(*group);
}

}  // namespace cachalot::cli
