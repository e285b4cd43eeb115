// Which language a text is in, and its commonest words.
//
// By script where that decides (Japanese, Korean, Greek, Thai, ...); among the languages that share the Latin,
// Cyrillic, Arabic, Hebrew or Devanagari script by character trigrams (Cavnar, Trenkle 1994; here as naive
// Bayes), learned from the Universal Declaration of Human Rights (scripts/make_language_tables.py).
//
// Accuracy, measured on other text (docs/data.md): of pieces of Debian's documentation in five languages, and
// where it is weak: close relatives (Danish and Norwegian, Croatian and Serbian in Latin script, Malay and
// Indonesian), texts below 100 letters, lists of names. It tells languages, not varieties: "zh" is simplified
// and traditional.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace cachalot {

struct Language {
  std::string_view code = "und";  // ISO 639-1; "und": no letters, or like nothing that is known
  double share = 0;  // of the text's windows of 64 trigrams (ideographs) that look like it, 0 to 1
};

// Looks at up to 6 KiB: the beginning, and pieces of the rest.
Language identify_language(std::string_view text);

// The codes that identify_language can return, sorted.
std::vector<std::string_view> known_languages();

// The commonest words of a language, by hash (data/filters.cc); null for languages without a list.
class StopWords {
 public:
  explicit StopWords(std::string_view words);  // with spaces between
  bool contains(uint64_t hash) const;

 private:
  std::vector<uint64_t> hashes_;  // sorted
};
const StopWords* find_stop_words(std::string_view language);

}  // namespace cachalot
