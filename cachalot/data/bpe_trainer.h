// Trains a byte-level BPE vocabulary (Sennrich, Haddow, Birch, arXiv:1508.07909; over bytes as in GPT-2) and
// writes it as a Hugging Face tokenizer.json with DeepSeek-V3's pre-tokenizer.
//
// Text is cut into pieces; equal pieces are counted once. Then, again and again, the adjacent pair of tokens
// that occurs most often becomes a token; of pairs that occur equally often the one with the smaller ids
// (left first) wins. So the result depends only on how often each piece occurs: not on the order of the
// texts, not on hash order. It equals that of the Rust library's BpeTrainer (scripts/check_tokenizer.py).
//
// Pieces are counted by all threads of a pool, each in a table of its own. Pair counts are kept up to date: a
// merge visits only the distinct pieces that hold the pair, and in them only its neighbours. Memory: about 12
// bytes a byte of distinct pieces and thread, plus the counts of the pairs.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace cachalot {

class ThreadPool;

inline constexpr std::string_view kBosToken = "<｜begin▁of▁sentence｜>";
inline constexpr std::string_view kEosToken = "<｜end▁of▁sentence｜>";

struct BpeTrainOptions {
  // All tokens: special ones, 256 bytes, merges. Ids are given in this order.
  int64_t vocab_size = 0;
  // The first is the begin-of-text token in tokenizer_config.json, the second the end-of-text token.
  std::vector<std::string> special_tokens = {std::string(kBosToken), std::string(kEosToken)};
  // A pair seen fewer times becomes no token: one text's accident is nothing to learn.
  int64_t min_count = 2;
  // Threads that count the pieces; none: the caller's. The result does not depend on it.
  ThreadPool* pool = nullptr;
  // Told of the vocabulary's size so far, and of what is asked for, now and then and at the end.
  std::function<void(int64_t tokens, int64_t of)> progress = {};
};

struct TrainedBpe {
  std::string tokenizer_json, tokenizer_config_json;  // the two files
  int64_t vocab_size = 0;  // less than asked for when no pair was left that occurs min_count times
};

class BpeTrainer {
 public:
  explicit BpeTrainer(BpeTrainOptions options);  // Error: a vocabulary size or special tokens that cannot be
  ~BpeTrainer();

  // Counts the pieces of one text. Bytes that are not valid UTF-8 count for nothing (each has its token
  // anyway).
  void add_text(std::string_view text);
  TrainedBpe train() const;  // Error when no text was added

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// `path` ends with ".json": that file, else <path>/tokenizer.json; with tokenizer_config.json beside it.
// Makes the directories. Returns the path of the tokenizer.json.
std::string save_tokenizer(const TrainedBpe& trained, const std::string& path);

}  // namespace cachalot
