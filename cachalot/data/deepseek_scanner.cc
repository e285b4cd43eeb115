#include "data/deepseek_scanner.h"

#include <algorithm>
#include <array>
#include <map>
#include <string>

#include "base/error.h"
#include "data/unicode.h"

namespace cachalot {

namespace {

constexpr uint32_t kCodePoints = 0x110000, kPage = 256;

CodepointSet categories(std::initializer_list<const char*> names) {
  CodepointSet set;
  for (const char* name : names) CHECK(add_category(name, set));
  return set;
}

}  // namespace

const CharClasses& CharClasses::get() {
  static const CharClasses classes;
  return classes;
}

CharClasses::CharClasses() {
  std::vector<CharClass> all(kCodePoints, CharClass::other);
  const auto fill = [&](const CodepointSet& set, CharClass kind) {
    for (const CodepointRange& r : set.ranges())
      std::fill(all.begin() + r.first, all.begin() + r.last + 1, kind);
  };
  fill(categories({"L", "M"}), CharClass::word);
  fill(categories({"P", "S"}), CharClass::symbol);
  fill(categories({"N"}), CharClass::number);
  fill(white_space(), CharClass::blank);
  all[' '] = CharClass::space;
  all['\r'] = all['\n'] = CharClass::line_end;
  for (const CodepointRange& han : {CodepointRange{0x4E00, 0x9FA5}, {0x3040, 0x309F}, {0x30A0, 0x30FF}}) {
    for (uint32_t c = han.first; c <= han.last; ++c) {
      CHECK(all[c] == CharClass::word || all[c] == CharClass::symbol || all[c] == CharClass::other);
      all[c] = all[c] == CharClass::word     ? CharClass::han_word
               : all[c] == CharClass::symbol ? CharClass::han_symbol
                                             : CharClass::han_other;
    }
  }
  std::map<std::vector<CharClass>, uint8_t> known;
  for (uint32_t c = 0; c < kCodePoints; c += kPage) {
    const std::vector<CharClass> page(all.begin() + c, all.begin() + c + kPage);
    const auto [at, is_new] = known.emplace(page, uint8_t(known.size()));
    CHECK(known.size() <= 256);
    if (is_new) pages_.insert(pages_.end(), page.begin(), page.end());
    page_.push_back(at->second);
  }
}

size_t DeepSeekScanner::safe_cut(std::string_view text, size_t from) {
  // Which of the texts that the patterns see: numbers, Han, single bytes, the rest. Between two kinds is a
  // cut.
  const auto segment = [](CharClass kind) {
    switch (kind) {
      case CharClass::number: return 1;
      case CharClass::han_word:
      case CharClass::han_symbol:
      case CharClass::han_other: return 2;
      case CharClass::invalid: return 3;
      default: return 0;
    }
  };
  const auto is_white = [](CharClass kind) {
    return kind == CharClass::space || kind == CharClass::blank || kind == CharClass::line_end;
  };
  if (from == 0 || from >= text.size()) return std::min(from, text.size());
  const DeepSeekScanner scanner(text);
  const auto* begin = reinterpret_cast<const uint8_t*>(text.data());
  // The first character boundary at or after from - 1: that of no continuation byte, or of one that continues
  // nothing (then what is read below as invalid is invalid in the whole text too, or the next start is near).
  size_t at = from - 1;
  for (int back = 0; back < 3 && at > 0 && (begin[at] & 0xC0) == 0x80; ++back) --at;
  Character left = scanner.at(begin + at);
  for (at += left.length; at < text.size(); at += left.length) {
    const Character right = scanner.at(begin + at);
    if (at >= from && left.kind != CharClass::invalid && right.kind != CharClass::invalid) {
      if (segment(left.kind) != segment(right.kind)) return at;
      if (left.kind == CharClass::word && is_white(right.kind)) return at;
      if (left.kind == CharClass::line_end && !is_white(right.kind)) return at;
    }
    left = right;
  }
  return text.size();
}

}  // namespace cachalot
