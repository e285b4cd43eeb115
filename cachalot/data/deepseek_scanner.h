// DeepSeek-V3's pre-tokenizer by hand: the pieces that its three patterns cut, one after another, in one pass
// and without a regex engine. tokenizer.json names the patterns (kDeepSeekPreTokenizer); PCRE2 running them
// is the oracle (deepseek_scanner_test.cc).
//
//   1  \p{N}{1,3}
//   2  [\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+            "Han" below, though kana are in it
//   3  [!-/:-@\[-`{-~][A-Za-z]+ | [^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+ | ?[\p{P}\p{S}]+[\r\n]*
//      | \s*[\r\n]+ | \s+(?!\S) | \s+
//
// Each pattern sees only what lies between the matches of the one before. So a number, a Han character, a
// byte that is not UTF-8 and the end of the text all end a segment that pattern 3 sees as a text of its own;
// a character class that says which segment a character belongs to is all the state there is. Where a piece
// ends depends on its first byte and what follows, never on what is before.
//
// Speed, one core of an AMD EPYC (Zen 4) at 2.6 GHz: docs/performance.md.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace cachalot {

// What the patterns can tell apart. No number or white space is Han, so three classes are enough for Han.
enum class CharClass : uint8_t {
  other,       // control, format, private use, unassigned
  word,        // \p{L}, \p{M}
  symbol,      // \p{P}, \p{S}
  space,       // U+0020
  line_end,    // \r, \n
  blank,       // the rest of \s
  number,      // \p{N}
  han_word,    // of pattern 2: \p{L}, \p{M}
  han_symbol,  // \p{P}, \p{S}
  han_other,   // unassigned
  invalid,     // a byte that is not part of valid UTF-8
  end,         // of the text
};

// Class of every code point: pages of 256, equal pages kept once (about 50 KiB).
class CharClasses {
 public:
  static const CharClasses& get();  // made from data/unicode.h on the first call
  CharClass operator[](uint32_t c) const { return pages_[size_t(page_[c >> 8]) << 8 | (c & 0xFF)]; }

 private:
  CharClasses();
  std::vector<uint8_t> page_;     // of code point >> 8
  std::vector<CharClass> pages_;  // 256 each; page 0 is U+0000 to U+00FF
};

class DeepSeekScanner {
 public:
  explicit DeepSeekScanner(std::string_view text)
      : classes_(CharClasses::get()), end_(reinterpret_cast<const uint8_t*>(text.data()) + text.size()) {}

  // End of the piece that starts at `p`, which is the start of the text or the end of a piece, and not the
  // end. A byte that is not part of valid UTF-8 is a piece.
  const char* piece_end(const char* p) const {
    return reinterpret_cast<const char*>(piece_end(reinterpret_cast<const uint8_t*>(p)));
  }

  // The first place at or after `from` where the text may be cut so that the pieces of the two parts are
  // those of the whole, whatever comes before and after; the size of the text when there is none.
  static size_t safe_cut(std::string_view text, size_t from);

 private:
  struct Character {
    CharClass kind;
    uint8_t length;  // bytes; 0 at the end
  };

  static bool ascii_letter(uint8_t b) { return uint8_t((b | 0x20) - 'a') < 26; }

  Character at(const uint8_t* p) const {
    if (p == end_) return {CharClass::end, 0};
    if (*p < 0x80) return {classes_[*p], 1};
    return beyond_ascii(p);
  }

  // Sequences by table 3-7 of the Unicode standard: no overlong ones, no surrogates, none above U+10FFFF.
  Character beyond_ascii(const uint8_t* p) const {
    const auto more = [&](int i) { return (p[i] & 0xC0) == 0x80; };
    const uint32_t b = *p;
    const size_t left = size_t(end_ - p);
    if (b >= 0xE0 && b < 0xF0) {
      if (left < 3 || !more(1) || !more(2)) return {CharClass::invalid, 1};
      const uint32_t c = (b & 0x0F) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu);
      if (c < 0x800 || (c >= 0xD800 && c < 0xE000)) return {CharClass::invalid, 1};
      return {classes_[c], 3};
    }
    if (b < 0xE0) {
      if (b < 0xC2 || left < 2 || !more(1)) return {CharClass::invalid, 1};
      return {classes_[(b & 0x1F) << 6 | (p[1] & 0x3Fu)], 2};
    }
    if (b > 0xF4 || left < 4 || !more(1) || !more(2) || !more(3)) return {CharClass::invalid, 1};
    const uint32_t c = (b & 0x07) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
    if (c < 0x10000 || c > 0x10FFFF) return {CharClass::invalid, 1};
    return {classes_[c], 4};
  }

  const uint8_t* piece_end(const uint8_t* p) const {
    if (*p == ' ' && p + 1 < end_ && ascii_letter(p[1])) return words(p + 2);  // most pieces of most texts
    const Character first = at(p);
    const uint8_t* q = p + first.length;
    switch (first.kind) {
      case CharClass::word: return words(q);
      case CharClass::symbol:
        return *p < 0x80 && q < end_ && ascii_letter(*q) ? ascii_letters(q) : symbols(q);
      case CharClass::space:
        if (const Character next = at(q); next.kind == CharClass::word) return words(q + next.length);
        else return next.kind == CharClass::symbol ? symbols(q + next.length) : blanks(p);
      case CharClass::blank:
        if (const Character next = at(q); next.kind == CharClass::word) return words(q + next.length);
        return blanks(p);
      case CharClass::line_end: return blanks(p);
      case CharClass::number:
        for (int digits = 1; digits < 3; ++digits) {
          const Character next = at(q);
          if (next.kind != CharClass::number) break;
          q += next.length;
        }
        return q;
      case CharClass::han_word: return run(q, CharClass::han_word);
      case CharClass::han_symbol: return run(q, CharClass::han_symbol);
      case CharClass::han_other: return unmatched(q, CharClass::han_other, CharClass::han_word);
      case CharClass::other: return unmatched(q, CharClass::other, CharClass::word);
      case CharClass::invalid:
      case CharClass::end: break;
    }
    return q;
  }

  const uint8_t* run(const uint8_t* p, CharClass kind) const {
    for (;;) {
      const Character c = at(p);
      if (c.kind != kind) return p;
      p += c.length;
    }
  }

  // [A-Za-z]*, eight bytes at a time.
  const uint8_t* ascii_letters(const uint8_t* p) const {
    constexpr uint64_t kOnes = 0x0101010101010101u, kHigh = 0x80 * kOnes;
    if constexpr (std::endian::native == std::endian::little) {
      for (; end_ - p >= 8; p += 8) {
        uint64_t w;
        std::memcpy(&w, p, 8);
        const uint64_t low = (w | 0x20 * kOnes) & ~kHigh;         // lower case, high bits free
        const uint64_t from_a = low + (0x80 - 'a') * kOnes;       // high bit: at least 'a'
        const uint64_t after_z = low + (0x80 - 'z' - 1) * kOnes;  // high bit: above 'z'
        const uint64_t stop = (~from_a | after_z | w) & kHigh;    // no letter
        if (stop) return p + std::countr_zero(stop) / 8;
      }
    }
    while (p < end_ && ascii_letter(*p)) ++p;
    return p;
  }

  const uint8_t* words(const uint8_t* p) const {  // [\p{L}\p{M}]*
    for (;;) {
      p = ascii_letters(p);
      if (p == end_ || *p < 0x80) return p;
      const Character c = beyond_ascii(p);
      if (c.kind != CharClass::word) return p;
      p += c.length;
    }
  }

  const uint8_t* symbols(const uint8_t* p) const {  // [\p{P}\p{S}]*[\r\n]*
    p = run(p, CharClass::symbol);
    while (p < end_ && (*p == '\r' || *p == '\n')) ++p;
    return p;
  }

  // White space from `p` on, which no word or symbol takes: up to its last line end; else all of it when the
  // segment ends there; else all but the last character, which the next piece may want; but at least one.
  const uint8_t* blanks(const uint8_t* p) const {
    const uint8_t *last_line_end = nullptr, *last = p, *q = p;
    for (;;) {
      const Character c = at(q);
      if (c.kind == CharClass::line_end) last_line_end = q + 1;
      else if (c.kind != CharClass::space && c.kind != CharClass::blank) {
        if (last_line_end) return last_line_end;
        const bool followed =
            c.kind == CharClass::word || c.kind == CharClass::symbol || c.kind == CharClass::other;
        return followed && last > p ? last : q;
      }
      last = q;
      q += c.length;
    }
  }

  // After a character that pattern 3 takes only before a word (what it does not match stays together).
  const uint8_t* unmatched(const uint8_t* p, CharClass kind, CharClass word) const {
    const uint8_t* last = nullptr;  // the character before p when there are two or more
    for (;;) {
      const Character c = at(p);
      if (c.kind == word) {  // the last character leads the word; those before it are a piece
        return last ? last : word == CharClass::word ? words(p + c.length) : run(p + c.length, word);
      }
      if (c.kind != kind) return p;
      last = p;
      p += c.length;
    }
  }

  const CharClasses& classes_;
  const uint8_t* end_;
};

}  // namespace cachalot
