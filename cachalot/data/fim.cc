#include "data/fim.h"

#include <algorithm>

#include "base/rng.h"
#include "base/text.h"

namespace cachalot {

namespace {

// Of the counter-based generator (base/rng.h): the document is the stream, this keeps it from other draws.
constexpr uint64_t kFimSeed = 0x66696d0000000000;

// Bytes of the character that begins at `at`; a byte of no character is one.
size_t character(std::string_view text, size_t at) { return size_t(std::max(1, utf8_length(text, at))); }

}  // namespace

std::optional<FimTokens> FimTokens::find(const Tokenizer& tokenizer) {
  const auto begin = tokenizer.find("<｜fim▁begin｜>"), hole = tokenizer.find("<｜fim▁hole｜>"),
             end = tokenizer.find("<｜fim▁end｜>");
  if (!begin || !hole || !end) return std::nullopt;
  return FimTokens{*begin, *hole, *end};
}

std::optional<std::pair<size_t, size_t>> fim_cuts(std::string_view text, double rate, uint64_t seed,
                                                  uint64_t document) {
  if (random_uniform(seed ^ kFimSeed, document, 0) >= rate) return std::nullopt;
  uint64_t characters = 0;
  for (size_t at = 0; at < text.size(); at += character(text, at)) ++characters;
  uint64_t cuts[2] = {random_below(seed ^ kFimSeed, document, 1, characters + 1),
                      random_below(seed ^ kFimSeed, document, 2, characters + 1)};
  std::sort(cuts, cuts + 2);
  size_t bytes[2];
  size_t at = 0;
  uint64_t passed = 0;
  for (int i = 0; i < 2; ++i) {
    for (; passed < cuts[i]; ++passed) at += character(text, at);
    bytes[i] = at;
  }
  return std::pair(bytes[0], bytes[1]);
}

}  // namespace cachalot
