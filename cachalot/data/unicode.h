// Sets of code points and the Unicode general categories that patterns name.
//
// The table is ours, not the regex library's: PCRE2 10.42 knows Unicode 14, the Rust `tokenizers` library
// Unicode 16, and they disagree about 10,294 code points, among them every emoji since 2022. A text with one
// of those would be cut differently. scripts/make_unicode_tables.py makes the table from the Rust library
// itself.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cachalot {

struct CodepointRange {
  uint32_t first = 0, last = 0;  // both inside
  bool operator==(const CodepointRange&) const = default;
};

class CodepointSet {
 public:
  void add(uint32_t first, uint32_t last) { ranges_.push_back({first, last}); }
  void add(const CodepointSet& other);
  // All code points of text that are not in this set (surrogates are in no text and in neither).
  CodepointSet complement() const;
  bool contains(uint32_t c) const;
  // Sorted, disjoint, not adjacent, without surrogates.
  std::vector<CodepointRange> ranges() const;

 private:
  std::vector<CodepointRange> ranges_;  // as added
};

// Category "L", "Lu", "Nd", ...; false and `set` unchanged when there is none of that name.
bool add_category(std::string_view name, CodepointSet& set);

// The property White_Space: what \s means in Oniguruma, U+0085 and U+3000 inside, U+180E not.
CodepointSet white_space();

// Appends c as UTF-8; c is at most U+10FFFF and no surrogate.
void append_utf8(uint32_t c, std::string& out);

// The code point of the valid sequence of `length` bytes at text[at] (base/text.h, utf8_length).
uint32_t decode_utf8(std::string_view text, size_t at, int length);

}  // namespace cachalot
