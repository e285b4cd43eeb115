// The text that is never trained on, scored in bits per byte: sum of -log2 p over its tokens / bytes they
// stand for. Unlike the loss a token, it compares models with different tokenizers.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/token_stream.h"
#include "data/tokenizer.h"
#include "train/trainer.h"

namespace cachalot {

class HeldOut {
 public:
  // The held-out tokens of all parts, preceded by an end-of-text token, in windows of up to seq_len targets:
  // window i holds tokens [i T, i T + T], so that neighbours share a token and every held-out token is a target
  // exactly once, its context what its window holds before it. Empty when nothing is held out. Keeps 4 bytes a
  // token in memory.
  HeldOut(const std::vector<TokenStream>& held_out, const Tokenizer& tokenizer, int64_t seq_len);

  struct Result {
    double nats = 0;  // sum of -log p
    int64_t tokens = 0, bytes = 0;
    double loss() const { return nats / double(tokens); }
    double bits_per_byte() const;
  };
  // All windows, or `limit` of them spread evenly (0: all). nullopt when there are none, or when `stop` was
  // set.
  std::optional<Result> score(Trainer& trainer, int64_t limit, const std::atomic<bool>& stop) const;

  const std::vector<TokenSpan>& windows() const { return windows_; }

 private:
  std::vector<int32_t> tokens_;
  std::vector<TokenSpan> windows_;
  std::vector<int64_t> bytes_;  // of the targets of every window
};

}  // namespace cachalot
