// Fill-in-the-middle, as DeepSeek-V3 trains it (report section 4.1; Bavarian et al., arXiv:2207.14255): a
// share of the documents (V3: 0.1) is cut in three and rearranged as prefix, suffix, middle (PSM), before
// packing:
//   <｜fim▁begin｜> prefix <｜fim▁hole｜> suffix <｜fim▁end｜> middle <｜end▁of▁sentence｜>
// Which documents, and where they are cut, is a pure function of the seed and the document. The report does
// not say where cuts may lie; here both are uniform over all places between characters, ends included.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>

#include "data/tokenizer.h"

namespace cachalot {

struct FimTokens {
  int32_t begin = 0, hole = 0, end = 0;
  // nullopt: the tokenizer does not have all three, by DeepSeek's names.
  static std::optional<FimTokens> find(const Tokenizer& tokenizer);
};

// Bytes [0, first) are the prefix, [first, second) the middle, [second, size) the suffix; nullopt: the
// document stays as it is. `document` identifies it (a checksum of its text).
std::optional<std::pair<size_t, size_t>> fim_cuts(std::string_view text, double rate, uint64_t seed,
                                                  uint64_t document);

}  // namespace cachalot
