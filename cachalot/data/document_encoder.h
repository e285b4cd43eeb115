// From the text of a document to the tokens that a shard holds: fill-in-the-middle, the tokenizer, the
// splitting of tokens that end lines, and the end-of-text token. A pure function of (options, text): neither
// the documents around it nor the number of threads change a token.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "data/fim.h"
#include "data/newline_split.h"
#include "data/tokenizer.h"

namespace cachalot {

struct EncodeRecipe {
  double fim_rate = 0;    // V3: 0.1
  double split_rate = 0;  // share of punctuation+newline tokens that are split; V3 does not say which
  uint64_t seed = 1;
  bool operator==(const EncodeRecipe&) const = default;
};

struct DocumentOptions {
  bool plain = false;          // without FIM and splitting, as for held-out text
  ThreadPool* pool = nullptr;  // threads for a long text
};

// Safe to use from several threads.
class DocumentEncoder {
 public:
  // Error: a rate that is no share, a tokenizer without an end-of-text token or, for FIM, its three.
  DocumentEncoder(const Tokenizer& tokenizer, EncodeRecipe recipe);

  // What decides everything random about a document: a checksum of its text.
  static uint64_t identity(std::string_view text);
  // Text is only text: it cannot spell a special token.
  std::vector<int32_t> encode(std::string_view text, DocumentOptions options = {}) const;

  const Tokenizer& tokenizer() const { return tokenizer_; }
  int32_t end_of_text() const { return end_of_text_; }

 private:
  Tokenizer tokenizer_;
  EncodeRecipe recipe_;
  int32_t end_of_text_ = 0;
  FimTokens fim_;
  std::optional<NewlineSplitter> splitter_;
};

}  // namespace cachalot
