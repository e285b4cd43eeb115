#include "data/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "base/error.h"
#include "base/files.h"
#include "base/thread_pool.h"
#include "data/bpe_encoder.h"
#include "data/byte_level.h"
#include "data/json_fields.h"
#include "data/pre_tokenizer.h"

namespace cachalot {

namespace {

constexpr int64_t kMaxId = (1 << 20) - 1;   // the largest public vocabulary has 262,144; ids size a table
constexpr size_t kMaxAddedBytes = 1 << 10;  // of one added token; bounds the time of a search at one place
constexpr size_t kChunk = 1 << 17;          // bytes that one thread encodes at a time
constexpr size_t kLargeText = 8 * kChunk;   // of a batch: a longer one is encoded by all threads

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
template <class Value> using StringMap = std::unordered_map<std::string, Value, StringHash, std::equal_to<>>;

// Finds added tokens in a text: the leftmost, and of several that begin there the longest.
class AddedTokens {
 public:
  void add(std::string content, int32_t id) { entries_.push_back({std::move(content), id}); }
  void finish() {
    std::sort(entries_.begin(), entries_.end(), [](auto& a, auto& b) { return a.content < b.content; });
    for (const Entry& e : entries_) begins_[uint8_t(e.content[0])] = true;
    one_begin_ = !entries_.empty() && entries_.front().content[0] == entries_.back().content[0];
  }
  // Calls token(id) and text(view) for what is found and what is between, in order.
  template <class Token, class Text>
  void cut(std::string_view text, const Token& on_token, const Text& on_text) const {
    size_t done = 0;
    for (size_t at = next_begin(text, 0); at < text.size();) {
      const Entry* found = longest(text.substr(at));
      if (!found) {
        at = next_begin(text, at + 1);
        continue;
      }
      if (at > done) on_text(text.substr(done, at - done));
      on_token(found->id);
      done = at + found->content.size();
      at = next_begin(text, done);
    }
    if (done < text.size()) on_text(text.substr(done));
  }

 private:
  struct Entry {
    std::string content;
    int32_t id;
  };
  // The first place from `at` on where an added token may begin.
  size_t next_begin(std::string_view text, size_t at) const {
    if (entries_.empty()) return text.size();
    if (one_begin_) return std::min(text.find(entries_.front().content[0], at), text.size());
    while (at < text.size() && !begins_[uint8_t(text[at])]) ++at;
    return at;
  }
  // Narrows the sorted entries to those that share ever longer prefixes with the text.
  const Entry* longest(std::string_view text) const {
    const Entry* found = nullptr;
    auto low = entries_.begin(), high = entries_.end();
    for (size_t depth = 0; low != high; ++depth) {
      if (low->content.size() == depth) found = &*low++;
      if (depth == text.size()) break;
      const auto byte = [depth](const Entry& e) { return uint8_t(e.content[depth]); };
      const uint8_t wanted = uint8_t(text[depth]);
      low = std::partition_point(low, high, [&](const Entry& e) { return byte(e) < wanted; });
      high = std::partition_point(low, high, [&](const Entry& e) { return byte(e) == wanted; });
    }
    return found;
  }
  std::vector<Entry> entries_;
  std::array<bool, 256> begins_{};
  bool one_begin_ = false;  // all begin with the same byte
};

// Workers that wait for a thread to use them: as many as ever encoded at the same time.
class WorkerPool {
 public:
  class Loan {  // gives its worker back at the end
   public:
    Loan(WorkerPool& pool, const BpeModel& model) : pool_(pool) {
      {
        const std::lock_guard lock(pool_.mutex_);
        if (!pool_.idle_.empty()) {
          worker_ = std::move(pool_.idle_.back());
          pool_.idle_.pop_back();
        }
      }
      if (!worker_) worker_ = std::make_unique<BpeWorker>(model);
    }
    ~Loan() {
      const std::lock_guard lock(pool_.mutex_);
      pool_.idle_.push_back(std::move(worker_));
    }
    Loan(const Loan&) = delete;
    BpeWorker& operator*() const { return *worker_; }

   private:
    WorkerPool& pool_;
    std::unique_ptr<BpeWorker> worker_;
  };

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<BpeWorker>> idle_;
};

// The id in a field of tokenizer.json. `of` names the token in messages.
int32_t read_id(const Json& value, const std::string& path, std::string_view of) {
  if (!value.is_number_integer())
    throw_kind(fmt::format("{}: the id of {}", path, in_quotes(of)), value, "a whole number");
  const bool huge = value.is_number_unsigned() && value.get<uint64_t>() > uint64_t(kMaxId);
  if (huge || value.get<int64_t>() < 0)
    throw Error(fmt::format("{}: the id of {} is {}; ids must be in 0 to {}", path, in_quotes(of),
                            value.dump(), kMaxId));
  return value.get<int32_t>();
}

}  // namespace

struct Tokenizer::Tables {
  enum class Origin : uint8_t { none, vocab, added };
  struct Token {
    std::string bytes;
    Origin origin = Origin::none;
    bool special = false;
  };
  std::vector<Token> tokens;  // by id
  StringMap<int32_t> ids;     // by content
  std::array<int32_t, 256> byte_ids{};
  BpeModel bpe;
  AddedTokens added_first, added_second;
  std::optional<PreTokenizer> pre_tokenizer;
  std::optional<int32_t> bos, eos;
  bool add_bos = false;

  void add_token(const std::string& content, int32_t id, Token token, const std::string& path);
  void read_vocab(const JsonObject& model);
  void read_merges(const JsonObject& model);
  void read_added(const Json& list, const std::string& path);
  void read_config(const std::string& path);
  int32_t need_id(std::string_view content, const std::string& path) const;

  mutable WorkerPool workers;

  // A text between added tokens, or (text empty) an added token.
  struct Segment {
    std::string_view text;
    int32_t token = -1;
  };
  template <class OnToken, class OnText>
  void cut(std::string_view text, bool parse_special, const OnToken& on_token, const OnText& on_text) const {
    if (!parse_special) return on_text(text);
    added_first.cut(text, on_token,
                    [&](std::string_view rest) { added_second.cut(rest, on_token, on_text); });
  }
  void encode_text(std::string_view text, BpeWorker& worker, IdBuffer& ids) const;
  void encode_all(std::string_view text, bool parse_special, IdBuffer& ids) const;
  std::vector<int32_t> encode_parallel(std::string_view text, bool parse_special, ThreadPool& pool) const;
};

void Tokenizer::Tables::add_token(const std::string& content, int32_t id, Token token,
                                  const std::string& path) {
  if (content.empty()) throw Error(fmt::format("{}: id {} is an empty token", path, id));
  if (size_t(id) >= tokens.size()) tokens.resize(size_t(id) + 1);
  if (tokens[id].origin != Origin::none)
    throw Error(fmt::format("{}: id {} belongs to both {} and {}", path, id, in_quotes(tokens[id].bytes),
                            in_quotes(token.bytes)));
  tokens[id] = std::move(token);
  ids.emplace(content, id);
}

int32_t Tokenizer::Tables::need_id(std::string_view content, const std::string& path) const {
  const auto at = ids.find(content);
  if (at == ids.end()) throw Error(fmt::format("{}: no token {} in model.vocab", path, in_quotes(content)));
  return at->second;
}

void Tokenizer::Tables::read_vocab(const JsonObject& model) {
  const Json& vocab = model.need("vocab");
  const std::string path = model.path("vocab");
  if (!vocab.is_object()) throw_kind(path, vocab, "an object");
  const auto& entries = vocab.get_ref<const Json::object_t&>();
  ids.reserve(entries.size());
  for (const auto& [content, id] : entries) {
    std::optional<std::string> bytes = read_bytes(content);
    add_token(content, read_id(id, path, content),
              {bytes ? std::move(*bytes) : content, Origin::vocab, false}, path);
  }
  for (int byte = 0; byte < 256; ++byte) {
    const std::string content = write_bytes(std::string(1, char(byte)));
    const auto at = ids.find(content);
    if (at == ids.end())
      throw Error(fmt::format("{} lacks {}, the token of byte 0x{:02x}", path, in_quotes(content), byte))
          .hint(
              "a byte-level vocabulary holds all 256 bytes; without one, text with that byte would be lost");
    byte_ids[size_t(byte)] = at->second;
  }
}

void Tokenizer::Tables::read_merges(const JsonObject& model) {
  const Json& list = model.need("merges");
  const std::string path = model.path("merges");
  if (!list.is_array()) throw_kind(path, list, "an array");
  if (list.size() > BpeModel::kMaxMerges)
    throw Error(
        fmt::format("{} has {} entries; at most {} are supported", path, list.size(), BpeModel::kMaxMerges));
  bpe = BpeModel(list.size());
  for (size_t byte = 0; byte < 256; ++byte) bpe.set_byte(uint8_t(byte), byte_ids[byte]);
  std::string joined;
  for (size_t i = 0; i < list.size(); ++i) {
    const Json& entry = list[i];
    std::string_view left, right;
    if (entry.is_string()) {  // "left right"
      const std::string_view text = entry.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos)
        throw Error(fmt::format("{}[{}] is {}; it must be two tokens with one space between", path, i,
                                in_quotes(text)));
      left = text.substr(0, space), right = text.substr(space + 1);
    } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string()) {
      left = entry[0].get_ref<const std::string&>(), right = entry[1].get_ref<const std::string&>();
    } else {
      throw Error(fmt::format("{}[{}] is {}; it must be \"left right\" or [\"left\", \"right\"]", path, i,
                              in_quotes(entry.dump())));
    }
    joined.assign(left).append(right);
    const auto need = [&](std::string_view content) {  // the path is only spelled out for a message
      const auto at = ids.find(content);
      return at != ids.end() ? at->second : need_id(content, fmt::format("{}[{}]", path, i));
    };
    const int32_t token = need(joined);
    if (!bpe.add_merge(need(left), need(right), token))
      throw Error(
          fmt::format("{}[{}] repeats the merge of {} and {}", path, i, in_quotes(left), in_quotes(right)));
  }
  std::vector<std::string_view> bytes;
  for (const Token& token : tokens) bytes.push_back(token.bytes);
  bpe.finish(bytes);
}

void Tokenizer::Tables::read_added(const Json& list, const std::string& path) {
  if (!list.is_array()) throw_kind(path, list, "an array");
  for (size_t i = 0; i < list.size(); ++i) {
    const JsonObject entry(list[i], fmt::format("{}[{}]", path, i));
    entry.refuse_unknown({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
    const std::string content(entry.need_string("content"));
    const int32_t id = read_id(entry.need("id"), entry.path("id"), content);
    if (content.size() > kMaxAddedBytes)
      throw Error(fmt::format("{} has {} bytes; at most {} are supported", entry.path("content"),
                              content.size(), kMaxAddedBytes));
    for (const std::string_view flag : {"single_word", "lstrip", "rstrip"}) entry.refuse_other(flag, "false");
    const bool special = entry.boolean("special", false);
    const auto known = ids.find(content);
    if (known == ids.end()) {
      add_token(content, id, {content, Origin::added, special}, entry.path());
    } else {  // the entry names a token of the vocabulary
      Token& token = tokens[known->second];
      if (known->second != id)
        throw Error(fmt::format("{}: {} has id {} here and id {} before", entry.path(), in_quotes(content),
                                id, known->second));
      if (token.origin == Origin::added)
        throw Error(fmt::format("{}: {} is listed twice", entry.path(), in_quotes(content)));
      if (token.bytes != content)
        throw Error(fmt::format("{}: {} is a token of model.vocab that stands for the bytes of {}",
                                entry.path(), in_quotes(content), in_quotes(token.bytes)))
            .hint("text with either could not be told apart after encoding; rename the added token");
      token.origin = Origin::added;
      token.special = special;
    }
    // The library searches the text for the tokens that a normalizer may not touch, then searches the
    // normalized rest for the others. Our normalizer does nothing, but the order shows.
    (entry.boolean("normalized", !special) ? added_second : added_first).add(content, id);
  }
  added_first.finish();
  added_second.finish();
}

std::shared_ptr<Tokenizer::Tables> Tokenizer::read_tables(std::string_view json, const std::string& what) {
  const Json document = parse_json(json, what);
  const JsonObject root(document, what);
  root.refuse_unknown({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
                       "post_processor", "decoder", "model"});
  root.refuse_other("version", R"("1.0")");
  root.refuse_other("truncation", "null");
  root.refuse_other("padding", "null");
  if (const Json* normalizer = root.find("normalizer")) {
    const JsonObject object(*normalizer, root.path("normalizer"));
    if (const std::string_view type = object.need_string("type"); type != "Sequence")
      throw Error(
          fmt::format("{} is {}; cachalot supports no normalizer", object.path("type"), in_quotes(type)));
    object.refuse_unknown({"type", "normalizers"});
    object.refuse_other("normalizers", "[]");
  }
  // The post-processor adds tokens around the text, which encode() leaves to its caller, and moves offsets.
  if (const Json* post = root.find("post_processor")) (void)JsonObject(*post, root.path("post_processor"));
  const JsonObject decoder(root.need("decoder"), root.path("decoder"));
  if (const std::string_view type = decoder.need_string("type"); type != "ByteLevel")
    throw Error(fmt::format("{} is {}; cachalot supports ByteLevel", decoder.path("type"), in_quotes(type)));

  const JsonObject model(root.need("model"), root.path("model"));
  if (const std::string_view type = model.need_string("type"); type != "BPE")
    throw Error(fmt::format("{} is {}; cachalot supports BPE", model.path("type"), in_quotes(type)));
  model.refuse_unknown({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                        "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"});
  model.refuse_other("dropout", "null");
  model.refuse_other("continuing_subword_prefix", R"("")");
  model.refuse_other("end_of_word_suffix", R"("")");
  model.refuse_other("byte_fallback", "false");
  model.refuse_other("ignore_merges", "false");
  // Every byte has a token, so nothing is ever unknown.
  if (model.find("unk_token")) (void)model.need_string("unk_token");
  (void)model.boolean("fuse_unk", false);

  auto tables = std::make_shared<Tables>();
  tables->read_vocab(model);
  tables->read_merges(model);
  if (const Json* added = root.find("added_tokens")) tables->read_added(*added, root.path("added_tokens"));
  tables->pre_tokenizer.emplace(root.need("pre_tokenizer"), root.path("pre_tokenizer"));
  return tables;
}

void Tokenizer::Tables::read_config(const std::string& path) {
  const Json document = read_json_file(path);
  const JsonObject config(document,
                          path);  // its other fields (chat template, classes, ...) are not ours to judge
  const auto token = [&](std::string_view key) -> std::optional<int32_t> {
    const Json* value = config.find(key);
    if (!value) return std::nullopt;
    const std::string content(value->is_object() ? JsonObject(*value, config.path(key)).need_string("content")
                                                 : config.need_string(key));
    const auto at = ids.find(content);
    if (at == ids.end())
      throw Error(fmt::format("{} is {}, which the tokenizer.json beside it does not have", config.path(key),
                              in_quotes(content)))
          .hint("the two files must come from the same tokenizer");
    return at->second;
  };
  bos = token("bos_token");
  eos = token("eos_token");
  add_bos = config.boolean("add_bos_token", false);
}

Tokenizer Tokenizer::parse(std::string_view json, const std::string& what) {
  return Tokenizer(read_tables(json, what));
}

Tokenizer Tokenizer::load(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code ignored;  // what is no directory is read as a file, which reports what is wrong
  const fs::path file = fs::is_directory(path, ignored) ? fs::path(path) / "tokenizer.json" : fs::path(path);
  auto tables = read_tables(read_file(file.string()), file.string());
  const fs::path config = file.parent_path() / "tokenizer_config.json";
  if (fs::exists(config, ignored)) tables->read_config(config.string());
  return Tokenizer(std::move(tables));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  if (options.pool && text.size() > kChunk)
    return tables_->encode_parallel(text, options.parse_special, *options.pool);
  IdBuffer ids;
  tables_->encode_all(text, options.parse_special, ids);
  return {ids.data(), ids.data() + ids.size()};
}

std::vector<std::vector<int32_t>> Tokenizer::encode_batch(std::span<const std::string_view> texts,
                                                          EncodeOptions options) const {
  std::vector<std::vector<int32_t>> result(texts.size());
  std::vector<std::pair<size_t, size_t>> jobs;  // texts [first, second)
  size_t bytes = kChunk;                        // of the last job; full, so that the first text begins one
  for (size_t i = 0; i < texts.size(); ++i) {
    if (texts[i].size() > kLargeText) {  // worth all threads by itself
      result[i] = encode(texts[i], options);
      bytes = kChunk;
      continue;
    }
    if (bytes >= kChunk) jobs.push_back({i, i}), bytes = 0;
    jobs.back().second = i + 1;
    bytes += texts[i].size();
  }
  const auto run = [&](int64_t job) {
    IdBuffer ids;
    for (size_t i = jobs[size_t(job)].first; i < jobs[size_t(job)].second; ++i) {
      ids.clear();
      tables_->encode_all(texts[i], options.parse_special, ids);
      result[i].assign(ids.data(), ids.data() + ids.size());
    }
  };
  if (options.pool) options.pool->parallel_for(int64_t(jobs.size()), run);
  else
    for (size_t job = 0; job < jobs.size(); ++job) run(int64_t(job));
  return result;
}

void Tokenizer::Tables::encode_all(std::string_view text, bool parse_special, IdBuffer& ids) const {
  const WorkerPool::Loan worker(workers, bpe);
  (void)ids.room(text.size() / 4 + 1);
  cut(
      text, parse_special, [&](int32_t token) { ids.push_back(token); },
      [&](std::string_view plain) { encode_text(plain, *worker, ids); });
}

// The text is cut where neither a piece nor an added token can be, so the parts may be encoded by any thread.
std::vector<int32_t> Tokenizer::Tables::encode_parallel(std::string_view text, bool parse_special,
                                                        ThreadPool& pool) const {
  std::vector<Segment> segments;
  std::vector<size_t> jobs = {0};  // job i is the segments from jobs[i] to jobs[i + 1]
  size_t bytes = 0;
  const auto add = [&](Segment segment) {
    bytes += segment.text.size() + 1;
    segments.push_back(segment);
    if (bytes >= kChunk) jobs.push_back(segments.size()), bytes = 0;
  };
  cut(
      text, parse_special, [&](int32_t token) { add({.token = token}); },
      [&](std::string_view plain) {
        while (!plain.empty()) {
          const size_t size = pre_tokenizer->safe_cut(plain, kChunk);
          add({.text = plain.substr(0, size)});
          plain.remove_prefix(size);
        }
      });
  if (jobs.back() != segments.size()) jobs.push_back(segments.size());

  std::vector<IdBuffer> parts(jobs.size() - 1);
  pool.parallel_for(int64_t(parts.size()), [&](int64_t job) {
    const WorkerPool::Loan worker(workers, bpe);
    IdBuffer& ids = parts[size_t(job)];
    for (size_t i = jobs[size_t(job)]; i < jobs[size_t(job) + 1]; ++i) {
      if (segments[i].text.empty()) ids.push_back(segments[i].token);
      else encode_text(segments[i].text, *worker, ids);
    }
  });
  size_t count = 0;
  for (const IdBuffer& part : parts) count += part.size();
  std::vector<int32_t> result;
  result.reserve(count);
  for (const IdBuffer& part : parts) result.insert(result.end(), part.data(), part.data() + part.size());
  return result;
}

void Tokenizer::Tables::encode_text(std::string_view text, BpeWorker& worker, IdBuffer& ids) const {
  const char* const text_end = text.data() + text.size();
  // Pieces cut by hand are views into the text; others may be copies with a space before.
  if (pre_tokenizer->by_hand())
    pre_tokenizer->pieces(text, [&](std::string_view piece) { worker.encode(piece, text_end, ids); });
  else
    pre_tokenizer->pieces(
        text, [&](std::string_view piece) { worker.encode(piece, piece.data() + piece.size(), ids); });
}

std::string Tokenizer::decode(std::span<const int32_t> ids, DecodeOptions options) const {
  std::string text;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size() || tables_->tokens[ids[i]].origin == Tables::Origin::none)
      throw Error(fmt::format("id {} at place {} is no token; the tokenizer has ids 0 to {}", ids[i], i,
                              vocab_size() - 1))
          .hint("were these ids made with another tokenizer?");
    const Tables::Token& token = tables_->tokens[ids[i]];
    if (!(options.skip_special && token.special)) text += token.bytes;
  }
  return text;
}

int64_t Tokenizer::vocab_size() const { return int64_t(tables_->tokens.size()); }

std::string_view Tokenizer::token_bytes(int32_t id) const {
  return 0 <= id && id < vocab_size() ? std::string_view(tables_->tokens[id].bytes) : std::string_view();
}

std::optional<int32_t> Tokenizer::find(std::string_view content) const {
  const auto at = tables_->ids.find(content);
  return at == tables_->ids.end() ? std::nullopt : std::optional(at->second);
}

bool Tokenizer::is_special(int32_t id) const {
  return 0 <= id && id < vocab_size() && tables_->tokens[id].special;
}

std::optional<int32_t> Tokenizer::bos_id() const { return tables_->bos; }
std::optional<int32_t> Tokenizer::eos_id() const { return tables_->eos; }
bool Tokenizer::add_bos() const { return tables_->add_bos; }

}  // namespace cachalot
