#include "data/bpe_trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <nlohmann/json.hpp>
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

// The 256 byte tokens in the order of their characters, as published vocabularies have them.
std::vector<std::string> byte_tokens() {
  std::vector<std::pair<uint32_t, int>> order;
  for (int byte = 0; byte < 256; ++byte) order.push_back({byte_alphabet()[byte], byte});
  std::sort(order.begin(), order.end());
  std::vector<std::string> tokens;
  for (const auto& [character, byte] : order) tokens.push_back(std::string(1, char(byte)));
  return tokens;
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
    // One byte would be that byte's token. The byte alphabet would read another token's bytes out of the
    // name.
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
  const BpeTrainOptions& options = state_->options;
  if (!state_->any_text)
    throw Error("the text to train a tokenizer on is empty").hint("pass files with text");

  std::vector<std::string> tokens = options.special_tokens;  // bytes of each id
  std::vector<int32_t> byte_ids(256);
  for (std::string& byte : byte_tokens()) {
    byte_ids[uint8_t(byte[0])] = int32_t(tokens.size());
    tokens.push_back(std::move(byte));
  }
  // The same bytes may be reached by two merges ("a"+"bc", "ab"+"c"): they are one token.
  std::unordered_map<std::string, int32_t> ids;
  for (size_t i = 0; i < tokens.size(); ++i) ids.emplace(tokens[i], int32_t(i));
  const int32_t first_ordinary = int32_t(options.special_tokens.size());

  std::vector<Word> words;
  words.reserve(state_->pieces.size());
  std::unordered_map<Pair, PairStats, PairHash> pairs;
  for (const auto& [piece, count] : state_->pieces) {
    Word word{.tokens = {}, .count = count};
    for (const char byte : piece) word.tokens.push_back(byte_ids[uint8_t(byte)]);
    for (size_t i = 0; i + 1 < word.tokens.size(); ++i) {
      PairStats& stats = pairs[{word.tokens[i], word.tokens[i + 1]}];
      stats.count += count;
      if (stats.words.empty() || stats.words.back() != int32_t(words.size()))
        stats.words.push_back(int32_t(words.size()));
    }
    words.push_back(std::move(word));
  }
  std::vector<Candidate> heap;
  for (const auto& [pair, stats] : pairs) heap.push_back({stats.count, pair});
  std::make_heap(heap.begin(), heap.end());

  std::vector<Pair> merges;
  std::unordered_set<Pair, PairHash> listed;  // the same, for searching
  std::vector<Pair> touched;                  // pairs whose count one merge may have raised
  while (int64_t(tokens.size()) < options.vocab_size && !heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const Candidate best = heap.back();
    heap.pop_back();
    const auto at = pairs.find(best.pair);
    if (at == pairs.end()) continue;       // merged already
    if (at->second.count != best.count) {  // fallen since: back into its place
      if (at->second.count >= options.min_count) {
        heap.push_back({at->second.count, best.pair});
        std::push_heap(heap.begin(), heap.end());
      }
      continue;
    }
    if (best.count < options.min_count) break;

    const auto [left, right] = best.pair;
    std::string joined = tokens[left] + tokens[right];
    const auto known = ids.find(joined);
    const int32_t merged = known == ids.end() ? int32_t(tokens.size()) : known->second;
    if (merged < first_ordinary) continue;  // ordinary text must never become a special token
    std::vector<int32_t> holders = std::move(at->second.words);
    pairs.erase(at);
    if (known == ids.end()) {
      ids.emplace(joined, merged);
      tokens.push_back(std::move(joined));
    }
    // A token that two merges make can bring a merged pair back; the list names a merge once.
    if (listed.insert(best.pair).second) merges.push_back(best.pair);

    std::sort(holders.begin(), holders.end());
    holders.erase(std::unique(holders.begin(), holders.end()), holders.end());
    touched.clear();
    for (const int32_t index : holders) {
      std::vector<int32_t>& t = words[index].tokens;
      const int64_t count = words[index].count;
      // Every pair of the word is taken away and those of the merged word are added: short words, no special
      // cases for repeated letters.
      const auto count_pairs = [&](int64_t change) {
        for (size_t i = 0; i + 1 < t.size(); ++i) {
          const Pair pair{t[i], t[i + 1]};
          if (pair == best.pair) continue;
          PairStats& stats = pairs[pair];
          stats.count += change;
          if (change < 0 || (pair.first != merged && pair.second != merged)) continue;
          if (stats.words.empty() || stats.words.back() != index) stats.words.push_back(index);
          touched.push_back(pair);
        }
      };
      count_pairs(-count);
      size_t kept = 0;
      for (size_t i = 0; i < t.size(); ++kept) {
        const bool here = i + 1 < t.size() && t[i] == left && t[i + 1] == right;
        t[kept] = here ? merged : t[i];
        i += here ? 2 : 1;
      }
      t.resize(kept);
      count_pairs(count);
    }
    std::sort(touched.begin(), touched.end());
    touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
    for (const Pair& pair : touched) {
      const int64_t count = pairs[pair].count;
      if (count < options.min_count) continue;
      heap.push_back({count, pair});
      std::push_heap(heap.begin(), heap.end());
    }
  }

  Json vocab = Json::object();
  auto& entries = static_cast<std::vector<Json::object_t::value_type>&>(vocab.get_ref<Json::object_t&>());
  const auto written = [&](int32_t id) { return id < first_ordinary ? tokens[id] : write_bytes(tokens[id]); };
  for (int32_t id = 0; id < int32_t(tokens.size()); ++id)
    entries.emplace_back(written(id), id);  // no search: unique
  Json merge_list = Json::array();
  for (const auto& [left, right] : merges) merge_list.push_back(written(left) + " " + written(right));
  Json added = Json::array();
  for (int32_t id = 0; id < first_ordinary; ++id)
    added.push_back({{"id", id},
                     {"content", tokens[id]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  const Json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
  const Json document = {
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
        {"merges", std::move(merge_list)}}},
  };
  Json config = Json::object();
  config["tokenizer_class"] = "PreTrainedTokenizerFast";
  config["clean_up_tokenization_spaces"] = false;
  if (first_ordinary > 0) config["add_bos_token"] = true;
  if (first_ordinary > 1) config["add_eos_token"] = false;
  if (first_ordinary > 0) config["bos_token"] = tokens[0];
  if (first_ordinary > 1) config["eos_token"] = tokens[1];
  if (first_ordinary > 1) config["pad_token"] = tokens[1];
  return {.tokenizer_json = document.dump(2) + "\n",
          .tokenizer_config_json = config.dump(2) + "\n",
          .vocab_size = int64_t(tokens.size())};
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
