#include "data/bpe_trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "data/byte_level.h"
#include "data/json_fields.h"
#include "data/pre_tokenizer.h"

namespace cachalot {

namespace {

constexpr int64_t kMaxVocab = 1 << 20;  // what data/tokenizer.cc reads back

// A merge visits every piece that holds the pair from end to end. Pieces of real text have tens of bytes;
// longer ones than this are cut, so that a file without spaces does not make training quadratic.
constexpr size_t kMaxPiece = 4096;

using Pair = std::pair<int32_t, int32_t>;  // ids of two adjacent tokens

struct PairHash {
  size_t operator()(Pair p) const {
    const uint64_t h = (uint64_t(uint32_t(p.first)) << 32 | uint32_t(p.second)) * 0x9E3779B97F4A7C15u;
    return size_t(h ^ h >> 32);
  }
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
  Learner(const BpeTrainOptions& options, const std::unordered_map<std::string, int64_t>& pieces)
      : vocab_size_(options.vocab_size), min_count_(options.min_count) {
    vocabulary_ = {.tokens = options.special_tokens, .special = int32_t(options.special_tokens.size())};
    std::vector<int32_t> byte_ids(256);
    for (std::string& byte : byte_tokens()) {
      byte_ids[uint8_t(byte[0])] = int32_t(vocabulary_.tokens.size());
      vocabulary_.tokens.push_back(std::move(byte));
    }
    for (const std::string& token : vocabulary_.tokens) ids_.emplace(token, int32_t(ids_.size()));

    words_.reserve(pieces.size());
    for (const auto& [piece, count] : pieces) {
      Word word{.tokens = {}, .count = count};
      for (const char byte : piece) word.tokens.push_back(byte_ids[uint8_t(byte)]);
      const int32_t index = int32_t(words_.size());
      for (size_t i = 0; i + 1 < word.tokens.size(); ++i)
        add({word.tokens[i], word.tokens[i + 1]}, count, index);
      words_.push_back(std::move(word));
    }
    for (const auto& [pair, stats] : pairs_) heap_.push_back({stats.count, pair});
    std::make_heap(heap_.begin(), heap_.end());
  }

  void run() {
    while (int64_t(vocabulary_.tokens.size()) < vocab_size_) {
      const auto pair = most_frequent();
      if (!pair) break;
      merge(*pair);
    }
  }

  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  struct PairStats {
    int64_t count = 0;           // occurrences in the whole text
    std::vector<int32_t> words;  // every word that holds the pair; some that did once, some twice
  };

  struct Word {
    std::vector<int32_t> tokens;
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

  void push(int64_t count, Pair pair) {
    if (count < min_count_) return;
    heap_.push_back({count, pair});
    std::push_heap(heap_.begin(), heap_.end());
  }

  void add(Pair pair, int64_t count, int32_t word) {
    PairStats& stats = pairs_[pair];
    stats.count += count;
    if (stats.words.empty() || stats.words.back() != word) stats.words.push_back(word);
  }

  std::optional<Pair> most_frequent() {
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end());
      const Candidate best = heap_.back();
      heap_.pop_back();
      const auto at = pairs_.find(best.pair);
      if (at == pairs_.end()) continue;  // merged already
      if (at->second.count == best.count)
        return best.count < min_count_ ? std::nullopt : std::optional(best.pair);
      push(at->second.count, best.pair);  // fallen since: back into its place
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

    const auto at = pairs_.find(pair);
    std::vector<int32_t> holders = std::move(at->second.words);
    pairs_.erase(at);
    std::sort(holders.begin(), holders.end());
    holders.erase(std::unique(holders.begin(), holders.end()), holders.end());
    std::vector<Pair> touched;  // pairs that may occur more often now
    for (const int32_t holder : holders) merge_in_word(pair, merged, holder, touched);
    std::sort(touched.begin(), touched.end());
    touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
    for (const Pair& p : touched) push(pairs_[p].count, p);
  }

  // Takes all pairs of the word away and adds those of the merged word: words are short, and repeated letters
  // need no special cases.
  void merge_in_word(Pair pair, int32_t merged, int32_t index, std::vector<Pair>& touched) {
    Word& word = words_[index];
    std::vector<int32_t>& t = word.tokens;
    for (size_t i = 0; i + 1 < t.size(); ++i)
      if (const Pair p{t[i], t[i + 1]}; p != pair) pairs_[p].count -= word.count;
    size_t kept = 0;
    for (size_t i = 0; i < t.size(); ++kept) {
      const bool here = i + 1 < t.size() && Pair{t[i], t[i + 1]} == pair;
      t[kept] = here ? merged : t[i];
      i += here ? 2 : 1;
    }
    t.resize(kept);
    for (size_t i = 0; i + 1 < t.size(); ++i) {
      const Pair p{t[i], t[i + 1]};
      if (p.first == merged || p.second == merged) {
        add(p, word.count, index);
        touched.push_back(p);
      } else {
        pairs_[p].count += word.count;
      }
    }
  }

  int64_t vocab_size_, min_count_;
  Vocabulary vocabulary_;
  // The same bytes may be reached by two merges ("a" + "bc", "ab" + "c"): they are one token.
  std::unordered_map<std::string, int32_t> ids_;
  std::vector<Word> words_;  // the distinct pieces
  std::unordered_map<Pair, PairStats, PairHash> pairs_;
  std::vector<Candidate> heap_;
  std::unordered_set<Pair, PairHash> listed_;  // vocabulary_.merges, for searching
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
  std::unordered_map<std::string, int64_t> pieces;  // of two bytes or more -> occurrences
  bool any_text = false;
};

BpeTrainer::BpeTrainer(BpeTrainOptions options) : state_(std::make_unique<State>()) {
  const int64_t least = int64_t(options.special_tokens.size()) + 256;
  if (options.vocab_size < least || options.vocab_size > kMaxVocab)
    throw Error(fmt::format(
        "a vocabulary of {} tokens; {} special ones and 256 bytes need at least {}, and at most {} "
        "are supported",
        options.vocab_size, options.special_tokens.size(), least, kMaxVocab));
  if (options.min_count < 1)
    throw Error(fmt::format("min_count is {}; it must be at least 1", options.min_count));
  std::set<std::string> seen;
  for (const std::string& token : options.special_tokens) {
    if (utf8_lossy(token) != token)
      throw Error(fmt::format("special token {} is not UTF-8", in_quotes(token)));
    // One byte would be that byte's token; a name in the byte alphabet would be read as other bytes.
    if (token.size() < 2 || read_bytes(token).value_or(token) != token)
      throw Error(
          fmt::format("{} cannot be a special token: it is too short or looks like bytes", in_quotes(token)));
    if (!seen.insert(token).second)
      throw Error(fmt::format("special token {} is given twice", in_quotes(token)));
  }
  state_->options = std::move(options);
}

BpeTrainer::~BpeTrainer() = default;

void BpeTrainer::add_text(std::string_view text) {
  state_->any_text |= !text.empty();
  state_->pre_tokenizer.pieces(text, [&](std::string_view piece) {
    while (piece.size() > 1) {
      const size_t size = std::min(piece.size(), kMaxPiece);
      const size_t cut = size < piece.size() ? utf8_complete_prefix(piece.substr(0, size)) : size;
      ++state_->pieces[std::string(piece.substr(0, cut))];
      piece.remove_prefix(cut);
    }
  });
}

TrainedBpe BpeTrainer::train() const {
  if (!state_->any_text)
    throw Error("the text to train a tokenizer on is empty").hint("pass files with text");
  Learner learner(state_->options, state_->pieces);
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
