// Cuts text into the pieces that BPE never merges across: the "pre_tokenizer" of a byte-level tokenizer.json.
//
// A Sequence of Split stages (each cuts every piece of the stage before, and sees that piece alone), then
// ByteLevel, which may put a space before each piece and may cut once more, by GPT-2's pattern.
//
// DeepSeek-V3's stages, which our own trainer writes too, are cut by hand (data/deepseek_scanner.h). All
// others go through PCRE2, and a program built without it (CACHALOT_PCRE2 in CMakeLists.txt) refuses them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/json.h"
#include "data/deepseek_scanner.h"

namespace cachalot {

// `regex`: by PCRE2 even what could be cut by hand. For tests, as the oracle.
enum class PreTokenizerEngine { automatic, regex };

class PreTokenizer {
 public:
  // Error for what is malformed or not supported.
  PreTokenizer(const Json& json, const std::string& path,
               PreTokenizerEngine engine = PreTokenizerEngine::automatic);
  PreTokenizer(PreTokenizer&&) noexcept;
  ~PreTokenizer();

  // Calls piece(bytes) for every piece in order; the view is valid during the call. Any bytes: each stretch
  // of valid UTF-8 is cut as a text of its own, and each other byte is a piece. Safe from several threads.
  template <class Piece> void pieces(std::string_view text, const Piece& piece) const {
    if (!by_hand_) return regex_pieces(text, piece);
    const DeepSeekScanner scanner(text);
    const char* const end = text.data() + text.size();
    for (const char* p = text.data(); p != end;) {
      const char* next = scanner.piece_end(p);
      piece(std::string_view(p, size_t(next - p)));
      p = next;
    }
  }

  // The first place at or after `from` where the text can be cut in two without changing any piece; the size
  // of the text when there is none, or none is known.
  size_t safe_cut(std::string_view text, size_t from) const {
    return by_hand_ ? DeepSeekScanner::safe_cut(text, from) : text.size();
  }

  bool by_hand() const { return by_hand_; }

 private:
  struct Stages;
  void regex_pieces(std::string_view text, const std::function<void(std::string_view)>& piece) const;
  bool by_hand_ = false;
  std::unique_ptr<const Stages> stages_;  // none when by_hand_
};

// The pre_tokenizer of DeepSeek-V3's tokenizer.json: numbers of up to three digits; runs of Han and kana;
// then words with one leading character, punctuation, line ends and spaces.
extern const std::string_view kDeepSeekPreTokenizer;

}  // namespace cachalot
