// Cuts text into the pieces that BPE never merges across: the "pre_tokenizer" of a byte-level tokenizer.json.
//
// A Sequence of Split stages (each cuts every piece of the stage before, and sees that piece alone), then
// ByteLevel, which may put a space before each piece and may cut once more, by GPT-2's pattern.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/json.h"

namespace cachalot {

class PreTokenizer {
 public:
  PreTokenizer(const Json& json, const std::string& path);  // Error for what is malformed or not supported
  PreTokenizer(PreTokenizer&&) noexcept;
  ~PreTokenizer();

  // Calls piece(bytes) for every piece in order; the view is valid during the call. Any bytes: each stretch
  // of valid UTF-8 is cut as a text of its own, and each other byte is a piece. Safe from several threads.
  using Piece = std::function<void(std::string_view)>;
  void pieces(std::string_view text, const Piece& piece) const;

 private:
  struct Stages;
  std::unique_ptr<const Stages> stages_;
};

// The pre_tokenizer of DeepSeek-V3's tokenizer.json: numbers of up to three digits; runs of Han and kana;
// then words with one leading character, punctuation, line ends and spaces.
extern const std::string_view kDeepSeekPreTokenizer;

}  // namespace cachalot
