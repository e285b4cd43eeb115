// Text that is never trained on, scored in bits per byte: sum of -log2 p over its tokens / bytes they stand
// for. Unlike the loss a token, it compares models with different tokenizers. There is a set for every part
// of the data that holds some out, and one for every entry of data.validation; where the model has
// multi-token prediction, also the acceptance of its drafts (train/scoring.h); where the weights have an
// average (train/ema.h), also its bits per byte.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/token_stream.h"
#include "data/tokenizer.h"
#include "train/trainer.h"

namespace cachalot {

class HeldOut {
 public:
  // Set by set, `held_out` and then `validation`: tokens preceded by an end-of-text token, in windows of up
  // to seq_len targets: window i holds tokens [i T, i T + T], so that neighbours share a token and every
  // token is a target exactly once, its context what its window holds before it. Keeps 4 bytes a token in
  // memory. `begin` stands before a set's first token instead of end-of-text.
  HeldOut(const std::vector<TokenStream>& held_out, const Tokenizer& tokenizer, int64_t seq_len,
          const std::vector<TokenStream>& validation = {}, std::optional<int32_t> begin = {});

  struct Set {
    std::string name;
    TextScore score;
    int64_t bytes = 0;
    double loss() const { return score.nats / double(score.targets); }
    double bits_per_byte() const;
  };
  struct Result {     // of what the parts hold out together; of all sets where they hold out nothing
    double nats = 0;  // sum of -log p
    int64_t tokens = 0, bytes = 0;
    std::vector<TextScore::Depth> depths;
    double average_nats = 0;  // with the average of the weights; 0: there is none
    std::vector<Set> sets;
    double loss() const { return nats / double(tokens); }
    double bits_per_byte() const;
    double average_bits_per_byte() const;
  };
  // All windows, or `limit` of them spread evenly (0: all). nullopt when there are none, or when `stop` was
  // set.
  std::optional<Result> score(Trainer& trainer, int64_t limit, const std::atomic<bool>& stop) const;
  // The same by whatever gives the score of some windows; nullopt when that does.
  using Scorer = std::function<std::optional<TextScore>(std::span<const TokenSpan>)>;
  std::optional<Result> score(const Scorer& scorer, int64_t limit) const;

  const std::vector<TokenSpan>& windows() const { return windows_; }
  std::vector<std::string> sets() const;

 private:
  struct Range {
    std::string name;
    size_t first = 0, end = 0;  // of the windows
    bool held_out = true;       // else a validation set
  };
  bool in_result(const Range& range) const;  // whether Result's sums are about it
  std::vector<TokenSpan> windows_of(const Range& range, int64_t limit, int64_t* bytes) const;

  std::vector<std::vector<int32_t>> tokens_;  // by set
  std::vector<TokenSpan> windows_;
  std::vector<int64_t> bytes_;  // of the targets of every window
  std::vector<Range> ranges_;
};

// bits_per_byte, loss, tokens, bytes; mtp [{loss, acceptance}] by depth; average_bits_per_byte; and with
// several sets `sets` {name: the same}; expert_load {name: [layer][expert]: tokens}. What metrics.jsonl has.
Json held_out_json(const HeldOut::Result& r);
// "held out 1.2345 bits per byte (loss 1.2345), MTP accepts 71.2 %", and a line for each of several sets.
std::string held_out_text(const HeldOut::Result& r);

}  // namespace cachalot
