// Text files as two streams of tokens for pre-training: one to train on, one held out.
//
// Each file is a document; the end of it is held out. A stream is the tokens of its part of the first
// document, the end-of-text token, the part of the second document, and so on, without padding, as
// DeepSeek-V3 packs documents. Text is only text: a file that spells "<｜end▁of▁sentence｜>" does not get
// that token.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace cachalot {

// How many bytes of a document are trained on when the share `held_out` (0 to below 1) is not: (1 - held_out)
// of them, and on to the end of that line if it ends in the first half of what would be held out, else to the
// end of that character. A tokenizer trained on these bytes has not seen the others.
size_t training_bytes(std::string_view document, double held_out);

class Corpus {
 public:
  // Files in the order given; empty ones are passed over. Error: a file that cannot be read, no text at all,
  // a tokenizer without an end-of-text token, a held_out that is no share. `pool`: threads that tokenise.
  Corpus(const std::vector<std::string>& files, const Tokenizer& tokenizer, double held_out,
         ThreadPool* pool = nullptr);

  std::span<const int32_t> train() const { return train_; }
  std::span<const int32_t> held_out() const { return held_out_; }

  // Bytes of text that `ids` stand for; the end-of-text tokens stand for none. For bits per byte: the summed
  // loss (in nats) of predicting exactly `ids`, over ln 2 times this.
  int64_t text_bytes(std::span<const int32_t> ids) const;

 private:
  std::vector<int32_t> train_, held_out_;
  std::vector<int32_t> bytes_;  // by id
};

}  // namespace cachalot
