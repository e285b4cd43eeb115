// From token bytes to text that may be shown: never splits a character, ends before a stop string. Shared by
// everything that streams (generate, serve, eval).
//
// The result does not depend on how the bytes were cut into tokens: the stop string that is complete first
// ends the text; of several that end at the same byte the longest. Bytes that cannot become valid UTF-8 are
// passed on as they are (base/text.h utf8_lossy makes them printable).
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace cachalot {

class TextSession {
 public:
  explicit TextSession(std::vector<std::string> stops = {});  // Error: an empty one

  // Adds a token's bytes (Tokenizer::token_bytes) and returns what may be shown now. Held back: an unfinished
  // character, and whatever could still become a stop string. Nothing comes after stopped().
  std::string push(std::string_view bytes);
  std::string finish();  // no more tokens: everything that was held back
  bool stopped() const { return stopped_; }

 private:
  size_t held_for_stops() const;  // length of the longest end of pending_ that begins a stop string

  std::vector<std::string> stops_;
  std::string pending_;  // not shown yet
  bool stopped_ = false;
};

}  // namespace cachalot
