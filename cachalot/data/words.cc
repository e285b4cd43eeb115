#include "data/words.h"

#include <memory>

#include "base/text.h"
#include "data/unicode.h"

namespace cachalot {

namespace {

bool is_cjk(uint32_t c) {
  return (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3041 && c <= 0x3096) ||
         (c >= 0x30A1 && c <= 0x30FE) || (c >= 0xAC00 && c <= 0xD7A3) || (c >= 0xF900 && c <= 0xFAFF) ||
         (c >= 0xFF66 && c <= 0xFF9D) || (c >= 0x20000 && c <= 0x3FFFF) || c == 0x3005;
}

uint32_t simple_lower(uint32_t c) {
  if (c < 0x80) return c >= 'A' && c <= 'Z' ? c + 32 : c;
  if (c >= 0xC0 && c <= 0xDE) return c == 0xD7 ? c : c + 32;
  if ((c >= 0x100 && c <= 0x137) || (c >= 0x14A && c <= 0x177) || (c >= 0x1DE && c <= 0x1EF) ||
      (c >= 0x1F8 && c <= 0x21F) || (c >= 0x222 && c <= 0x233) || (c >= 0x1E00 && c <= 0x1E95) ||
      (c >= 0x1EA0 && c <= 0x1EFF) || (c >= 0x460 && c <= 0x481) || (c >= 0x48A && c <= 0x4BF) ||
      (c >= 0x4D0 && c <= 0x52F))
    return c == 0x130 ? 'i' : c == 0x131 ? c : c | 1;  // pairs of even capital and odd small letter
  if ((c >= 0x139 && c <= 0x148) || (c >= 0x179 && c <= 0x17E) || (c >= 0x1CD && c <= 0x1DC))
    return c + (c & 1);
  if (c == 0x178) return 0xFF;
  if (c >= 0x391 && c <= 0x3AB) return c + 32;
  if (c == 0x386) return 0x3AC;
  if (c >= 0x388 && c <= 0x38A) return c + 37;
  if (c == 0x38C) return 0x3CC;
  if (c == 0x38E || c == 0x38F) return c + 63;
  if (c >= 0x400 && c <= 0x40F) return c + 80;
  if (c >= 0x410 && c <= 0x42F) return c + 32;
  if (c >= 0x531 && c <= 0x556) return c + 48;
  return c;
}

}  // namespace

CharTable::CharTable() {
  CodepointSet word;
  for (const char* category : {"L", "M", "N"}) add_category(category, word);
  for (const CodepointRange& range : word.ranges())
    for (uint32_t c = range.first; c <= range.last && c < 0x10000; ++c) kind_[c] = CharClass::word;
  for (const CodepointRange& range : white_space().ranges())
    for (uint32_t c = range.first; c <= range.last && c < 0x10000; ++c) kind_[c] = CharClass::space;
  for (uint32_t c = 0; c < 0x10000; ++c) {
    if (is_cjk(c)) kind_[c] = CharClass::cjk;
    folded_[c] = uint16_t(c >= 0xFF01 && c <= 0xFF5E ? simple_lower(c - 0xFEE0) : simple_lower(c));
  }
}

CharClass CharTable::astral_kind(uint32_t c) {
  if (is_cjk(c)) return CharClass::cjk;
  // Above the basic plane: historic scripts and mathematical letters are words, emoji and symbols are not.
  return (c >= 0x10000 && c < 0x1D000) || (c >= 0x1D400 && c < 0x1D800) || (c >= 0x1E000 && c < 0x1F000)
             ? CharClass::word
             : CharClass::other;
}

const CharTable& char_table() {
  static const auto the_table = std::make_unique<const CharTable>();
  return *the_table;
}

void find_words(std::string_view text, Words& words) {
  words.hash.clear();
  words.begin.clear();
  words.end.clear();
  const CharTable& table = char_table();
  uint64_t hash = 0;
  bool inside = false;
  const auto close = [&](size_t at) {
    if (!inside) return;
    words.hash.push_back(mix(hash));
    words.end.push_back(uint32_t(at));
    inside = false;
  };
  for (size_t i = 0; i < text.size();) {
    uint32_t c = uint8_t(text[i]);
    size_t length = 1;
    if (c >= 0x80) {
      length = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : 2;
      c = decode_utf8(text, i, int(length));
    }
    c = table.fold(c);
    const CharClass kind = table.kind(c);
    if (kind == CharClass::word) {
      if (!inside) {
        inside = true;
        hash = 0;
        words.begin.push_back(uint32_t(i));
      }
      hash = (hash ^ c) * 0x9E3779B97F4A7C15u;
      hash ^= hash >> 29;
    } else {
      close(i);
      if (kind == CharClass::cjk) {
        words.begin.push_back(uint32_t(i));
        hash = c * 0x9E3779B97F4A7C15u;
        hash ^= hash >> 29;
        inside = true;
        close(i + length);
      }
    }
    i += length;
  }
  close(text.size());
}

}  // namespace cachalot
