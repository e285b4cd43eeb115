#include "data/tokenize.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "base/rng.h"
#include "base/text.h"
#include "base/thread_pool.h"
#include "config/fields.h"
#include "data/folder_lock.h"
#include "data/prefetch.h"
#include "data/shard.h"

namespace cachalot {

namespace fs = std::filesystem;

namespace {

constexpr size_t kBatchBytes = size_t(8) << 20;
constexpr size_t kBatchRecords = 8192;
constexpr int64_t kTextPerShardToken = 128;
constexpr size_t kMostParts = 1000;  // each has an open file
constexpr size_t kMostPartName = 63;
constexpr uint64_t kHeldOutSeed = 0x68656c6400000000;  // see data/fim.cc

std::string reading_text(const ReadOptions& r) {
  return fmt::format("format {}, text {}, id {}, encoding {}, at most {} bytes", int(r.format), r.text_field,
                     r.id_field, r.encoding, r.max_bytes);
}

TokenizeSettings settings_of(const Tokenizer& tokenizer, const TokenizeOptions& o) {
  TokenizeSettings s{.tokenizer = tokenizer_id_text(tokenizer_id(tokenizer)),
                     .inputs = {},
                     .reading = utf8_lossy(reading_text(o.reading)),
                     .fim_rate = o.recipe.fim_rate,
                     .split_rate = o.recipe.split_rate,
                     .held_out = o.held_out,
                     .seed = int64_t(o.recipe.seed),
                     .shard_tokens = o.shard_tokens};
  for (const InputFile& f : o.inputs) {
    const std::string part = f.part_given ? f.part + "=" : "";
    s.inputs.push_back({utf8_lossy(part + f.path), file_bytes({f})});
  }
  return s;
}

// What differs between the settings of a folder and these, for a message. Inputs that it has not read yet may
// be others, and the one that it is in may have become longer: an archive that was cut and is now whole.
std::string difference(const ShardFolder& folder, const TokenizeSettings& is) {
  const TokenizeSettings& was = folder.settings;
  const Json a = write_fields(was), b = write_fields(is);
  for (const auto& [key, value] : a.items())
    if (key != "inputs" && value != b.at(key))
      return fmt::format("{} was {} and is {}", key, value.dump(), b.at(key).dump());
  const size_t read = folder.complete ? was.inputs.size() : size_t(folder.read_to.file);
  if (folder.complete ? was.inputs.size() != is.inputs.size() : is.inputs.size() <= read)
    return fmt::format("it had {} input files and has {}", was.inputs.size(), is.inputs.size());
  for (size_t i = 0; i < std::min(was.inputs.size(), read + 1); ++i) {
    const InputEntry &x = was.inputs[i], &y = is.inputs[i];
    if (i == read && folder.read_to.record == 0) break;
    if (x.path != y.path) return fmt::format("an input was {} and is {}", x.path, y.path);
    if (i == read ? y.bytes < x.bytes : y.bytes != x.bytes)
      return fmt::format("{} had {} bytes and has {}", x.path, x.bytes, y.bytes);
  }
  return "";
}

enum class Replace : uint8_t { no, yes };

// Beside the shards, so that they can be read without the original. Error: another tokenizer is there, and may
// not be replaced: it is a model's, say.
void copy_tokenizer(const std::string& path, const std::string& out, Replace replace) {
  const fs::path json = fs::is_directory(path) ? fs::path(path) / "tokenizer.json" : fs::path(path);
  for (const fs::path& from : {json, json.parent_path() / "tokenizer_config.json"}) {
    if (!fs::exists(from)) continue;
    const std::string to =
        (fs::path(out) / (from == json ? "tokenizer.json" : "tokenizer_config.json")).string();
    const std::string bytes = read_file(from.string());
    if (fs::exists(to)) {
      if (read_file(to) == bytes) continue;
      if (replace == Replace::no)
        throw Error(fmt::format("{} is there already and differs from {}", to, from.string()))
            .hint("choose another --out: an empty folder, or one of shards");
    }
    write_file_atomic(to, bytes);
  }
}

struct Item {
  TextPosition begin, end;  // without `bytes`, which is known once all before are parsed
  Record record;
};

struct Batch {
  std::vector<Item> items;
  int64_t consumed = 0;
};

// The records of all inputs from a place on, in batches.
class Records {
 public:
  Records(const TokenizeOptions& o, TextPosition from) : options_(o), file_(size_t(from.file)), from_(from) {
    for (size_t i = 0; i < file_; ++i) before_ += file_bytes({o.inputs[i]});
  }
  int64_t left() const { return file_bytes(options_.inputs) - before_; }  // on the disk, at the start
  std::optional<Batch> next() {
    Batch batch;
    size_t bytes = 0;
    while (bytes < kBatchBytes && batch.items.size() < kBatchRecords && file_ < options_.inputs.size()) {
      if (!reader_)
        reader_ =
            std::make_unique<RecordReader>(options_.inputs[file_], options_.reading,
                                           ReadPosition{.offset = from_.offset, .number = from_.record});
      Item item;
      item.begin = place();
      if (reader_->next(item.record)) {
        item.end = place();
        bytes += item.record.bytes.size();
        batch.items.push_back(std::move(item));
        continue;
      }
      consumed_ += file_bytes({options_.inputs[file_]});
      reader_.reset();
      from_ = {};
      ++file_;
    }
    if (batch.items.empty()) return std::nullopt;
    batch.consumed = consumed_ + (reader_ ? reader_->consumed() : 0);
    return batch;
  }

 private:
  TextPosition place() const {
    const ReadPosition p = reader_->position();
    return {.file = int64_t(file_), .record = p.number, .offset = p.offset};
  }
  const TokenizeOptions& options_;
  size_t file_;
  TextPosition from_;
  std::unique_ptr<RecordReader> reader_;
  int64_t before_ = 0, consumed_ = 0;  // bytes of files: passed over, read to the end
};

class Run {
 public:
  Run(const Tokenizer& tokenizer, const TokenizeOptions& options)
      : o_(options), encoder_(tokenizer, options.recipe), id_(tokenizer_id(tokenizer)) {
    folder_.settings = settings_of(tokenizer, options);
    folder_.command = utf8_lossy(options.command + " --out " + options.out);
    folder_.dropped.assign(kDrops, 0);
  }

  TokenizeResult run(const std::function<void(const TokenizeProgress&)>& report,
                     const std::atomic<bool>& stop) {
    TokenizeResult result;
    const Replace replace = fs::exists(fs::path(o_.out) / kShardFolderFile) ? Replace::yes : Replace::no;
    const TextPosition start = resume();  // refuses before anything is changed
    if (!o_.tokenizer_path.empty()) copy_tokenizer(o_.tokenizer_path, o_.out, replace);
    result.shards_before = int64_t(folder_.shards.size());
    if (!folder_.complete) {
      save();  // says at once what this folder is
      Records records(o_, start);
      progress_.total = records.left();
      text_bytes_ = start.bytes;
      Prefetcher<Batch> batches([&] { return records.next(); }, 2);
      while (auto batch = batches.next()) {
        if (!process(*batch, stop)) {
          result.stopped = true;
          break;
        }
        progress_.consumed = batch->consumed;
        report(progress_);
      }
      if (!result.stopped) {
        for (auto& [key, state] : keys_)
          if (state.writer) close(key, state);
        folder_.complete = true;
        save();
      }
    }
    if (!result.stopped) progress_.consumed = progress_.total;
    report(progress_);
    result.progress = progress_;
    result.folder = folder_;
    return result;
  }

 private:
  struct KeyState {
    TextPosition cursor;  // documents before are in shards that are there
    int64_t index = 0;    // of the shard that is open, or will be next
    std::unique_ptr<ShardWriter> writer;
    TextPosition begin, end;  // of its documents
  };

  struct Encoded {
    Drop drop = Drop::none;
    ShardKey key;
    std::vector<int32_t> ids;  // empty: the document is in a shard that is there
    int64_t bytes = 0;
  };

  // Takes over what an earlier run left; returns where reading begins.
  TextPosition resume() {
    auto before = read_shard_folder(o_.out);
    if (before) {
      const std::string changed = difference(*before, folder_.settings);
      const bool empty = before->shards.empty() && !before->complete;  // nothing would be lost
      if (!changed.empty() && !o_.overwrite && !empty)
        throw Error(fmt::format("{} was begun with other settings: {}", o_.out, changed))
            .hint(
                fmt::format("choose another --out, or give --overwrite to replace it, or go on as before: {}",
                            before->command));
      if (!changed.empty()) {
        fs::remove(fs::path(o_.out) / kShardFolderFile);  // first: without it the shards are no corpus
        for (const ShardEntry& s : before->shards) fs::remove(fs::path(o_.out) / s.file);
        before.reset();
      }
    }
    if (!before) return {};
    std::swap(folder_, *before);
    folder_.command = before->command;
    folder_.settings = before->settings;
    folder_.dropped.resize(size_t(kDrops), 0);

    TextPosition start = folder_.read_to;
    const auto missing = [&](const ShardKey& key, int64_t index, const TextPosition& begin) {
      missing_[{key, index}] = begin;
      if (begin < start) start = begin;
    };
    for (const OpenShard& s : folder_.open) missing({s.part, s.held_out}, s.index, s.begin);
    std::vector<ShardEntry> there;
    for (const ShardEntry& s : folder_.shards) {
      if (is_there(s)) {
        there_[{s.key(), s.index}] = s.end;
        there.push_back(s);
      } else {
        missing(s.key(), s.index, s.begin);
      }
    }
    if (there.size() != folder_.shards.size()) folder_.complete = false;
    folder_.shards = std::move(there);
    for (const auto& [id, end] : there_) keys_.try_emplace(id.first);
    for (const auto& [id, begin] : missing_) keys_.try_emplace(id.first);
    for (auto& [key, state] : keys_) pass_over(key, state);
    return start;
  }

  bool is_there(const ShardEntry& s) const {
    const std::string path = (fs::path(o_.out) / s.file).string();
    if (!fs::exists(path)) return false;
    try {
      return fmt::format("{:016x}", Shard::open(path).fingerprint()) == s.fingerprint;
    } catch (const Error&) {
      return false;
    }
  }

  void pass_over(const ShardKey& key, KeyState& state) const {
    for (auto it = there_.find({key, state.index}); it != there_.end();
         it = there_.find({key, state.index})) {
      state.cursor = it->second;
      ++state.index;
    }
  }

  Encoded encode(Item& item) const {
    Encoded e;
    Document document;
    std::string why;
    const InputFile& file = o_.inputs[size_t(item.begin.file)];
    e.drop = parse_record(file, o_.reading, item.record, document, &why);
    if (e.drop != Drop::none) return e;
    const bool held_out =
        o_.held_out > 0 && random_uniform(o_.recipe.seed ^ kHeldOutSeed,
                                          DocumentEncoder::identity(document.text), 0) < o_.held_out;
    e.key = {std::move(document.part), held_out};
    e.bytes = int64_t(document.text.size());
    const auto state = keys_.find(e.key);
    if (state == keys_.end() || item.begin >= state->second.cursor)
      e.ids = encoder_.encode(document.text, {.plain = held_out});
    return e;
  }

  bool process(Batch& batch, const std::atomic<bool>& stop) {
    std::vector<Encoded> encoded(batch.items.size());
    const auto body = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end && !stop; ++i) encoded[size_t(i)] = encode(batch.items[size_t(i)]);
    };
    if (o_.pool) o_.pool->parallel_ranges(int64_t(encoded.size()), 4, body);
    else body(0, int64_t(encoded.size()));
    if (stop) return false;
    for (size_t i = 0; i < encoded.size(); ++i) add(batch.items[i], encoded[i]);
    return true;
  }

  void add(Item& item, const Encoded& e) {
    const bool is_new = item.begin >= folder_.read_to;  // else counted by an earlier run
    item.begin.bytes = text_bytes_;
    if (e.drop == Drop::none) text_bytes_ += e.bytes;
    item.end.bytes = text_bytes_;
    if (is_new) {
      e.drop == Drop::none ? ++folder_.documents : ++folder_.dropped[size_t(e.drop)];
      folder_.read_to = item.end;
    }
    if (e.drop != Drop::none) return;
    KeyState& state = state_of(e.key);
    if (item.begin >= state.cursor) {
      CHECK(!e.ids.empty());
      if (!state.writer) open(e.key, state, item.begin);
      state.writer->add(e.ids, e.bytes);
      state.cursor = state.end = item.end;
      progress_.tokens += int64_t(e.ids.size());
      progress_.text_bytes += e.bytes;
      if (state.writer->header().tokens >= o_.shard_tokens) close(e.key, state);
    }
    if (text_bytes_ - oldest_ < kTextPerShardToken * o_.shard_tokens) return;
    for (auto& [key, other] : keys_)
      if (other.writer && text_bytes_ - other.begin.bytes >= kTextPerShardToken * o_.shard_tokens)
        close(key, other);
    find_oldest();
  }

  KeyState& state_of(const ShardKey& key) {
    const auto it = keys_.find(key);
    if (it != keys_.end()) return it->second;
    if (key.part.empty() || key.part.size() > kMostPartName)
      throw Error(fmt::format("a document belongs to part \"{}\"", utf8_lossy(key.part)))
          .hint(fmt::format("the name of a part has 1 to {} bytes; name it yourself: NAME=PATH",
                            kMostPartName));
    if (keys_.size() >= kMostParts)
      throw Error(
          fmt::format("the text belongs to more than {} parts, the last \"{}\"", kMostParts, key.part))
          .hint("parts are what a mixture gives weights to; name them yourself: NAME=PATH");
    return keys_[key];
  }

  void open(const ShardKey& key, KeyState& state, const TextPosition& begin) {
    state.writer =
        std::make_unique<ShardWriter>((fs::path(o_.out) / shard_file_name(key, state.index)).string(),
                                      ShardHeader{.vocab_size = encoder_.tokenizer().vocab_size(),
                                                  .end_of_text = encoder_.end_of_text(),
                                                  .tokenizer = id_,
                                                  .held_out = key.held_out,
                                                  .part = key.part,
                                                  .source = o_.command});
    state.begin = begin;
    missing_.erase({key, state.index});
    find_oldest();
  }

  void find_oldest() {
    oldest_ = INT64_MAX;
    for (const auto& [key, state] : keys_)
      if (state.writer) oldest_ = std::min(oldest_, state.begin.bytes);
  }

  void close(const ShardKey& key, KeyState& state) {
    const std::string file = shard_file_name(key, state.index);
    state.writer->finish();
    const ShardHeader header = state.writer->header();
    state.writer.reset();
    const std::string fingerprint =
        fmt::format("{:016x}", Shard::open((fs::path(o_.out) / file).string()).fingerprint());
    folder_.shards.push_back({.file = file,
                              .part = key.part,
                              .held_out = key.held_out,
                              .index = state.index,
                              .tokens = header.tokens,
                              .documents = header.documents,
                              .text_bytes = header.text_bytes,
                              .fingerprint = fingerprint,
                              .begin = state.begin,
                              .end = state.end});
    std::sort(folder_.shards.begin(), folder_.shards.end(), [](const ShardEntry& a, const ShardEntry& b) {
      return std::pair(a.key(), a.index) < std::pair(b.key(), b.index);
    });
    ++state.index;
    pass_over(key, state);
    save();
    find_oldest();
  }

  void save() {
    folder_.open.clear();
    for (const auto& [key, state] : keys_)
      if (state.writer) folder_.open.push_back({key.part, key.held_out, state.index, state.begin});
    for (const auto& [id, begin] : missing_)
      folder_.open.push_back({id.first.part, id.first.held_out, id.second, begin});
    write_shard_folder(o_.out, folder_);
  }

  const TokenizeOptions& o_;
  DocumentEncoder encoder_;
  uint64_t id_;
  ShardFolder folder_;
  std::map<ShardKey, KeyState> keys_;
  std::map<std::pair<ShardKey, int64_t>, TextPosition> there_;    // shards: where their documents end
  std::map<std::pair<ShardKey, int64_t>, TextPosition> missing_;  // shards to be made: where they begin
  int64_t text_bytes_ = 0;                                        // of documents read
  int64_t oldest_ = INT64_MAX;
  TokenizeProgress progress_;
};

// What a killed process was writing.
void remove_left_over(const std::string& folder) {
  std::vector<fs::path> left_over;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    const auto begun = [&](const char* file) { return name.starts_with(std::string(file) + ".tmp."); };
    if (name.ends_with(".tok.tmp") || begun(kShardFolderFile) || begun("tokenizer.json") ||
        begun("tokenizer_config.json"))
      left_over.push_back(entry.path());
  }
  for (const fs::path& path : left_over) fs::remove(path);
}

}  // namespace

TokenizeResult tokenize(const Tokenizer& tokenizer, const TokenizeOptions& options,
                        const std::function<void(const TokenizeProgress&)>& report,
                        const std::atomic<bool>& stop) {
  CHECK(!options.inputs.empty() && !options.out.empty());
  if (!(options.held_out >= 0 && options.held_out < 1))
    throw Error(fmt::format("the held-out share is {}", options.held_out))
        .hint("it is at least 0 and below 1");
  if (options.shard_tokens < 1 || options.shard_tokens > int64_t{1} << 40)
    throw Error(fmt::format("a shard shall have {} tokens", options.shard_tokens)).hint("give 1 to 2^40");
  Run run(tokenizer, options);  // refuses settings that cannot be before anything is written
  std::error_code code;
  fs::create_directories(options.out, code);
  if (code)
    throw Error(fmt::format("cannot create {}: {}", options.out, code.message()))
        .hint("choose another --out");
  const FolderLock lock(options.out);
  remove_left_over(options.out);
  return run.run(report, stop);
}

}  // namespace cachalot
