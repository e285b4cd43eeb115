#include "data/bpe_trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <unordered_map>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "base/thread_pool.h"
#include "data/byte_level.h"
#include "data/json_fields.h"
#include "data/piece_counts.h"
#include "data/pre_tokenizer.h"

namespace cachalot {

namespace {

constexpr int64_t kMaxVocab = 1 << 20;  // what data/tokenizer.cc reads back

// A merge visits every piece that holds the pair from end to end. Pieces of real text have tens of bytes;
// longer ones than this are cut, so that a file without spaces does not make training quadratic.
constexpr size_t kMaxPiece = 4096;

constexpr size_t kChunk = 1 << 20;  // bytes that one thread counts at a time

using Pair = std::pair<int32_t, int32_t>;  // ids of two adjacent tokens

// Pair -> place in a list that its user keeps: open addressing, at most half full, never erased.
class PairIndex {
 public:
  // The pair's place; the number of pairs so far when it is new.
  uint32_t place(Pair pair) {
    const uint64_t wanted = key(pair);
    size_t at = find(wanted);
    if (slots_[at].key == kEmpty) {
      slots_[at] = {wanted, size_++};
      if (size_t(size_) * 2 > slots_.size()) {
        grow();
        at = find(wanted);
      }
    }
    return slots_[at].place;
  }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t(0);  // no pair: ids are not negative
  struct Slot {
    uint64_t key = kEmpty;
    uint32_t place = 0;
  };
  static uint64_t key(Pair p) { return uint64_t(uint32_t(p.first)) << 32 | uint32_t(p.second); }
  size_t find(uint64_t wanted) const {
    const uint64_t h = wanted * 0x9E3779B97F4A7C15u;  // 2^64 / golden ratio
    size_t at = size_t(h >> 32) & (slots_.size() - 1);
    while (slots_[at].key != wanted && slots_[at].key != kEmpty) at = (at + 1) & (slots_.size() - 1);
    return at;
  }
  void grow() {
    std::vector<Slot> old(2 * slots_.size());
    old.swap(slots_);
    for (const Slot& slot : old)
      if (slot.key != kEmpty) slots_[find(slot.key)] = slot;
  }
  std::vector<Slot> slots_ = std::vector<Slot>(1 << 12);
  uint32_t size_ = 0;
};

// The 256 byte tokens in the order of their characters, as published vocabularies have them.
std::vector<std::string> byte_tokens() {
  std::vector<std::pair<uint32_t, int>> order;
  for (int byte = 0; byte < 256; ++byte) order.push_back({byte_alphabet()[byte], byte});
  std::sort(order.begin(), order.end());
  std::vector<std::string> tokens;
  for (const auto& [character, byte] : order) tokens.push_back(std::string(1, char(byte)));
  return tokens;
}

struct Vocabulary {
  std::vector<std::string> tokens;  // the bytes of each id: special ones, bytes, merged ones
  int32_t special = 0;              // how many of the first are special
  std::vector<Pair> merges;         // by rank
};

// The training loop; bpe_trainer.h has the rule that it follows.
class Learner {
 public:
  Learner(const BpeTrainOptions& options, const PieceCounts& pieces)
      : vocab_size_(options.vocab_size), min_count_(options.min_count), progress_(options.progress) {
    vocabulary_ = {.tokens = options.special_tokens, .special = int32_t(options.special_tokens.size())};
    std::vector<int32_t> byte_ids(256);
    for (std::string& byte : byte_tokens()) {
      byte_ids[uint8_t(byte[0])] = int32_t(vocabulary_.tokens.size());
      vocabulary_.tokens.push_back(std::move(byte));
    }
    for (const std::string& token : vocabulary_.tokens) ids_.emplace(token, int32_t(ids_.size()));

    words_.reserve(pieces.size());
    pieces.for_each([&](std::string_view piece, int64_t count) {
      const Word word{.begin = tokens_.size(), .size = uint32_t(piece.size()), .count = count};
      for (const char byte : piece) tokens_.push_back(byte_ids[uint8_t(byte)]);
      for (size_t i = 0; i + 1 < piece.size(); ++i)
        add({tokens_[word.begin + i], tokens_[word.begin + i + 1]}, count, uint32_t(words_.size()));
      words_.push_back(word);
    });
    for (const PairStats& stats : pairs_) heap_.push_back({stats.count, stats.pair});
    std::make_heap(heap_.begin(), heap_.end());
  }

  void run() {
    while (int64_t(vocabulary_.tokens.size()) < vocab_size_) {
      const auto pair = most_frequent();
      if (!pair) break;
      merge(*pair);
      if (progress_ && vocabulary_.merges.size() % 256 == 0) tell();
    }
    if (progress_) tell();
  }

  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  struct PairStats {
    Pair pair;
    int64_t count = 0;            // occurrences in the whole text
    std::vector<uint32_t> words;  // every word that holds the pair; some that did once, some twice
  };

  // One distinct piece: tokens_[begin, begin + size).
  struct Word {
    size_t begin = 0;
    uint32_t size = 0;
    int64_t count = 0;
  };

  // How often a pair occurred when the entry was made. Entries are not taken back when counts fall.
  struct Candidate {
    int64_t count;
    Pair pair;
    // The top of a std heap is the largest: higher count, then smaller ids.
    bool operator<(const Candidate& other) const {
      return count != other.count ? count < other.count : pair > other.pair;
    }
  };

  void tell() const { progress_(int64_t(vocabulary_.tokens.size()), vocab_size_); }

  PairStats& stats_of(Pair pair) {
    const uint32_t place = index_.place(pair);
    if (place == pairs_.size()) pairs_.push_back({.pair = pair});
    return pairs_[place];
  }

  void push(int64_t count, Pair pair) {
    if (count < min_count_) return;
    heap_.push_back({count, pair});
    std::push_heap(heap_.begin(), heap_.end());
  }

  void add(Pair pair, int64_t count, uint32_t word) {
    PairStats& stats = stats_of(pair);
    stats.count += count;
    if (stats.words.empty() || stats.words.back() != word) stats.words.push_back(word);
  }

  std::optional<Pair> most_frequent() {
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end());
      const Candidate best = heap_.back();
      heap_.pop_back();
      const int64_t count = stats_of(best.pair).count;
      if (count == best.count) return count < min_count_ ? std::nullopt : std::optional(best.pair);
      push(count, best.pair);  // fallen since: back into its place; merged already: 0, and gone
    }
    return std::nullopt;
  }

  void merge(Pair pair) {
    std::string joined = vocabulary_.tokens[pair.first] + vocabulary_.tokens[pair.second];
    const auto [known, is_new] = ids_.emplace(joined, int32_t(vocabulary_.tokens.size()));
    const int32_t merged = known->second;
    if (merged < vocabulary_.special) return;  // ordinary text must never become a special token
    if (is_new) vocabulary_.tokens.push_back(std::move(joined));
    // A token that two merges make can bring a merged pair back; the list names a merge once.
    if (listed_.insert(pair).second) vocabulary_.merges.push_back(pair);

    PairStats& stats = stats_of(pair);
    std::vector<uint32_t> holders = std::move(stats.words);
    stats.words = {};
    stats.count = 0;
    std::sort(holders.begin(), holders.end());
    holders.erase(std::unique(holders.begin(), holders.end()), holders.end());
    std::vector<Pair> touched;  // pairs that may occur more often now
    for (const uint32_t holder : holders) merge_in_word(pair, merged, holder, touched);
    std::sort(touched.begin(), touched.end());
    touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
    for (const Pair& p : touched) push(stats_of(p).count, p);
  }

  // Where the pair stands, left to right, the pairs with its neighbours go and those of the merged token
  // come. The neighbour on the left may be a merged token already: "abab".
  void merge_in_word(Pair pair, int32_t merged, uint32_t index, std::vector<Pair>& touched) {
    Word& word = words_[index];
    int32_t* const t = &tokens_[word.begin];
    const auto gone = [&](Pair p) {
      if (p != pair) stats_of(p).count -= word.count;
    };
    const auto come = [&](Pair p) {
      add(p, word.count, index);
      if (touched.empty() || touched.back() != p) touched.push_back(p);
    };
    uint32_t kept = 0;
    for (uint32_t i = 0; i < word.size; ++kept) {
      if (i + 1 == word.size || Pair{t[i], t[i + 1]} != pair) {
        t[kept] = t[i++];
        continue;
      }
      if (kept > 0) {
        gone({t[kept - 1], pair.first});
        come({t[kept - 1], merged});
      }
      i += 2;
      t[kept] = merged;
      if (i < word.size) {
        gone({pair.second, t[i]});
        come({merged, t[i]});
      }
    }
    word.size = kept;
  }

  int64_t vocab_size_, min_count_;
  const std::function<void(int64_t, int64_t)>& progress_;
  Vocabulary vocabulary_;
  // The same bytes may be reached by two merges ("a" + "bc", "ab" + "c"): they are one token.
  std::unordered_map<std::string, int32_t> ids_;
  std::vector<int32_t> tokens_;  // of all words
  std::vector<Word> words_;      // the distinct pieces
  PairIndex index_;              // into pairs_
  std::vector<PairStats> pairs_;
  std::vector<Candidate> heap_;
  std::set<Pair> listed_;  // vocabulary_.merges, for searching
};

Json tokenizer_json(const Vocabulary& v) {
  const auto written = [&](int32_t id) { return id < v.special ? v.tokens[id] : write_bytes(v.tokens[id]); };
  Json vocab = Json::object();
  // Appended to the object's list as it is: assigning by key would search the list for each of them.
  auto& entries = static_cast<std::vector<Json::object_t::value_type>&>(vocab.get_ref<Json::object_t&>());
  for (int32_t id = 0; id < int32_t(v.tokens.size()); ++id) entries.emplace_back(written(id), id);
  Json merges = Json::array();
  for (const auto& [left, right] : v.merges) merges.push_back(written(left) + " " + written(right));
  Json added = Json::array();
  for (int32_t id = 0; id < v.special; ++id)
    added.push_back({{"id", id},
                     {"content", v.tokens[id]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  const Json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
  return {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", std::move(added)},
      {"normalizer", nullptr},
      {"pre_tokenizer", parse_json(kDeepSeekPreTokenizer, "built in")},
      {"post_processor", byte_level},
      {"decoder", byte_level},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"vocab", std::move(vocab)},
        {"merges", std::move(merges)}}},
  };
}

Json tokenizer_config_json(const Vocabulary& v) {
  Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
  if (v.special > 0) {
    config["add_bos_token"] = true;
    config["bos_token"] = v.tokens[0];
  }
  if (v.special > 1) {
    config["add_eos_token"] = false;
    config["eos_token"] = v.tokens[1];
    config["pad_token"] = v.tokens[1];
  }
  return config;
}

PreTokenizer deepseek_pre_tokenizer() {
  return PreTokenizer(parse_json(kDeepSeekPreTokenizer, "built in"), "built in: pre_tokenizer");
}

}  // namespace

struct BpeTrainer::State {
  BpeTrainOptions options;
  PreTokenizer pre_tokenizer = deepseek_pre_tokenizer();
  bool any_text = false;
  std::mutex mutex;
  // Of pieces of two bytes or more: one for each thread that counted.
  std::vector<std::unique_ptr<PieceCounts>> idle;

  // Counts the pieces of `text` in a table that no other thread uses meanwhile.
  void count(std::string_view text) {
    std::unique_ptr<PieceCounts> counts;
    {
      const std::lock_guard lock(mutex);
      if (!idle.empty()) {
        counts = std::move(idle.back());
        idle.pop_back();
      }
    }
    if (!counts) counts = std::make_unique<PieceCounts>();
    pre_tokenizer.pieces(text, [&](std::string_view piece) {
      while (piece.size() > 1) {
        const size_t size = std::min(piece.size(), kMaxPiece);
        const size_t cut = size < piece.size() ? utf8_complete_prefix(piece.substr(0, size)) : size;
        counts->add(piece.substr(0, cut), 1);
        piece.remove_prefix(cut);
      }
    });
    const std::lock_guard lock(mutex);
    idle.push_back(std::move(counts));
  }
};

BpeTrainer::BpeTrainer(BpeTrainOptions options) : state_(std::make_unique<State>()) {
  const int64_t least = int64_t(options.special_tokens.size()) + 256;
  if (options.vocab_size < least || options.vocab_size > kMaxVocab)
    throw Error(fmt::format(
        "a vocabulary of {} tokens; {} special ones and 256 bytes need at least {}, and at most {} "
        "are supported",
        options.vocab_size, options.special_tokens.size(), least, kMaxVocab))
        .hint(fmt::format("--vocab-size between {} and {}", least, kMaxVocab));
  if (options.min_count < 1)
    throw Error(fmt::format("min_count is {}; it must be at least 1", options.min_count));
  constexpr const char* kNames = "give each special token a name of its own, such as <|begin|>";
  std::set<std::string> seen;
  for (const std::string& token : options.special_tokens) {
    if (utf8_lossy(token) != token)
      throw Error(fmt::format("special token {} is not UTF-8", in_quotes(token))).hint(kNames);
    // One byte would be that byte's token; a name in the byte alphabet would be read as other bytes.
    if (token.size() < 2 || read_bytes(token).value_or(token) != token)
      throw Error(
          fmt::format("{} cannot be a special token: it is too short or looks like bytes", in_quotes(token)))
          .hint(kNames);
    if (!seen.insert(token).second)
      throw Error(fmt::format("special token {} is given twice", in_quotes(token))).hint(kNames);
  }
  state_->options = std::move(options);
}

BpeTrainer::~BpeTrainer() = default;

void BpeTrainer::add_text(std::string_view text) {
  state_->any_text |= !text.empty();
  if (!state_->options.pool) return state_->count(text);
  std::vector<std::string_view> parts;  // cut where no piece is: the counts are those of the whole
  while (!text.empty()) {
    const size_t size = state_->pre_tokenizer.safe_cut(text, kChunk);
    parts.push_back(text.substr(0, size));
    text.remove_prefix(size);
  }
  state_->options.pool->parallel_for(int64_t(parts.size()),
                                     [&](int64_t i) { state_->count(parts[size_t(i)]); });
}

TrainedBpe BpeTrainer::train() const {
  if (!state_->any_text)
    throw Error("the text to train a tokenizer on is empty").hint("pass files with text");
  PieceCounts all;
  for (const auto& counts : state_->idle)
    counts->for_each([&](std::string_view piece, int64_t count) { all.add(piece, count); });
  Learner learner(state_->options, all);
  learner.run();
  const Vocabulary& vocabulary = learner.vocabulary();
  return {.tokenizer_json = tokenizer_json(vocabulary).dump(2) + "\n",
          .tokenizer_config_json = tokenizer_config_json(vocabulary).dump(2) + "\n",
          .vocab_size = int64_t(vocabulary.tokens.size())};
}

std::string save_tokenizer(const TrainedBpe& trained, const std::string& path) {
  namespace fs = std::filesystem;
  const fs::path file =
      fs::path(path).extension() == ".json" ? fs::path(path) : fs::path(path) / "tokenizer.json";
  std::error_code error;
  if (file.has_parent_path()) fs::create_directories(file.parent_path(), error);
  if (error)
    throw Error(
        fmt::format("{}: cannot make the directory: {}", file.parent_path().string(), error.message()));
  write_file_atomic(file.string(), trained.tokenizer_json);
  write_file_atomic((file.parent_path() / "tokenizer_config.json").string(), trained.tokenizer_config_json);
  return file.string();
}

}  // namespace cachalot
