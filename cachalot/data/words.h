// Normal words: what duplicates and contaminated text are recognised by, whatever their case, spacing and
// punctuation.
//
// A word is a maximal run of letters, marks and digits, lower-cased; every ideograph, kana and Hangul syllable
// is a word of its own, since those scripts put no spaces between words (Korean does, but inflects). Full-width
// forms count as their ASCII ones. Everything else separates words. scripts/check_clean.py repeats this
// definition in another language.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace cachalot {

enum class CharClass : uint8_t { other, space, word, cjk };

// What every code point is, and its simple lower case: of the alphabets that have it (Latin to U+024F and
// U+1Exx, Greek, Cyrillic, Armenian, full-width); U+FF01..U+FF5E become ASCII.
class CharTable {
 public:
  CharTable();
  CharClass kind(uint32_t c) const { return c < 0x10000 ? kind_[c] : astral_kind(c); }
  uint32_t fold(uint32_t c) const { return c < 0x10000 ? folded_[c] : c; }

 private:
  static CharClass astral_kind(uint32_t c);
  std::array<CharClass, 0x10000> kind_{};
  std::array<uint16_t, 0x10000> folded_{};
};
const CharTable& char_table();

struct Words {
  std::vector<uint64_t> hash;   // of each word, in order
  std::vector<uint32_t> begin;  // where it begins in the text, in bytes
  std::vector<uint32_t> end;
};

// The words of `text` (valid UTF-8, below 4 GiB) into `words`, which keeps its memory.
void find_words(std::string_view text, Words& words);

// 64 bits of a well-mixed hash; the same on every machine.
inline uint64_t mix(uint64_t x) {  // the finaliser of SplitMix64 (Steele, Lea, Flood 2014)
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// Hashes of every n words in a row: a polynomial in the words' own hashes (mod 2^64), mixed. Rolling, so n
// costs nothing.
class RollingHash {
 public:
  explicit RollingHash(size_t n) : n_(n) {
    for (size_t i = 0; i < n; ++i) out_ *= kBase;
  }
  // The hash of words[0..n); the next one of words[1..n+1), given the same array.
  uint64_t first(const uint64_t* words) {
    sum_ = 0;
    for (size_t i = 0; i < n_; ++i) sum_ = sum_ * kBase + words[i];
    return mix(sum_ + n_);
  }
  uint64_t next(uint64_t leaves, uint64_t enters) {
    sum_ = sum_ * kBase + enters - leaves * out_;
    return mix(sum_ + n_);
  }

 private:
  static constexpr uint64_t kBase = 0x9E3779B97F4A7C15u;
  size_t n_;
  uint64_t out_ = 1, sum_ = 0;
};

// The hash of n words one after another.
inline uint64_t hash_words(const uint64_t* words, size_t n) { return RollingHash(n).first(words); }

}  // namespace cachalot
