// libFuzzer: any bytes as a text. The scanner cuts it as PCRE2 does, and where it says that a text may be cut
// the pieces of the parts are those of the whole.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <vector>
#include <nlohmann/json.hpp>

#include "data/pre_tokenizer.h"

namespace {

using Pieces = std::vector<std::string_view>;

void cut(const cachalot::PreTokenizer& pre_tokenizer, std::string_view text, Pieces& pieces) {
  pre_tokenizer.pieces(text, [&](std::string_view piece) { pieces.push_back(piece); });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using cachalot::PreTokenizer;
  static const cachalot::Json json = cachalot::parse_json(cachalot::kDeepSeekPreTokenizer, "built in");
  static const PreTokenizer by_hand(json, "built in"),
      by_regex(json, "built in", cachalot::PreTokenizerEngine::regex);
  const std::string_view text(reinterpret_cast<const char*>(data), std::min<size_t>(size, 4096));
  Pieces whole, expected;
  cut(by_hand, text, whole);
  cut(by_regex, text, expected);
  if (whole != expected) std::abort();
  for (size_t from = 0; from <= text.size(); from += 1 + text.size() / 16) {
    const size_t at = by_hand.safe_cut(text, from);
    if (at < from || at > text.size()) std::abort();
    Pieces parts;
    cut(by_hand, text.substr(0, at), parts);
    cut(by_hand, text.substr(at), parts);
    if (parts != whole) std::abort();
  }
  return 0;
}
