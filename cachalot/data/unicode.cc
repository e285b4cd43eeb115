#include "data/unicode.h"

#include <algorithm>
#include <string>

namespace cachalot {

namespace {

constexpr uint32_t kLast = 0x10FFFF, kSurrogateFirst = 0xD800, kSurrogateLast = 0xDFFF;

constexpr std::string_view kCategories[] = {"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl",
                                            "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc",
                                            "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co", "Cn"};

constexpr uint32_t kRuns[] = {
#include "data/unicode_tables.inc"
};

}  // namespace

void CodepointSet::add(const CodepointSet& other) {
  ranges_.insert(ranges_.end(), other.ranges_.begin(), other.ranges_.end());
}

std::vector<CodepointRange> CodepointSet::ranges() const {
  std::vector<CodepointRange> sorted;
  for (const CodepointRange& r : ranges_) {
    if (r.first < kSurrogateFirst) sorted.push_back({r.first, std::min(r.last, kSurrogateFirst - 1)});
    if (r.last > kSurrogateLast) sorted.push_back({std::max(r.first, kSurrogateLast + 1), r.last});
  }
  std::sort(sorted.begin(), sorted.end(), [](auto a, auto b) { return a.first < b.first; });
  std::vector<CodepointRange> merged;
  for (const CodepointRange& r : sorted) {
    if (merged.empty() || r.first > merged.back().last + 1) merged.push_back(r);
    else merged.back().last = std::max(merged.back().last, r.last);
  }
  return merged;
}

CodepointSet CodepointSet::complement() const {
  CodepointSet result;
  uint32_t next = 0;
  for (const CodepointRange& r : ranges()) {
    if (r.first > next) result.add(next, r.first - 1);
    next = r.last + 1;
  }
  if (next <= kLast) result.add(next, kLast);
  return result;  // a gap made by the surrogates is cut again by ranges()
}

bool CodepointSet::contains(uint32_t c) const {
  if (kSurrogateFirst <= c && c <= kSurrogateLast) return false;
  return std::any_of(ranges_.begin(), ranges_.end(), [c](auto r) { return r.first <= c && c <= r.last; });
}

bool add_category(std::string_view name, CodepointSet& set) {
  bool known = false;
  for (size_t category = 0; category < std::size(kCategories); ++category) {
    if (kCategories[category] != name && kCategories[category].substr(0, 1) != name) continue;
    known = true;
    for (size_t i = 0; i < std::size(kRuns); ++i) {
      if ((kRuns[i] & 0xFF) != category) continue;
      set.add(kRuns[i] >> 8, i + 1 < std::size(kRuns) ? (kRuns[i + 1] >> 8) - 1 : kLast);
    }
  }
  return known;
}

CodepointSet white_space() {
  CodepointSet set;
  set.add(0x09, 0x0D);
  set.add(0x85, 0x85);
  add_category("Z", set);  // the three kinds of separator: every other member of White_Space
  return set;
}

void append_utf8(uint32_t c, std::string& out) {
  if (c < 0x80) {
    out += char(c);
  } else if (c < 0x800) {
    out += {char(0xC0 | c >> 6), char(0x80 | (c & 0x3F))};
  } else if (c < 0x10000) {
    out += {char(0xE0 | c >> 12), char(0x80 | (c >> 6 & 0x3F)), char(0x80 | (c & 0x3F))};
  } else {
    out += {char(0xF0 | c >> 18), char(0x80 | (c >> 12 & 0x3F)), char(0x80 | (c >> 6 & 0x3F)),
            char(0x80 | (c & 0x3F))};
  }
}

uint32_t decode_utf8(std::string_view text, size_t at, int length) {
  const auto byte = [&](int i) { return uint32_t(uint8_t(text[at + i])); };
  switch (length) {
    case 1: return byte(0);
    case 2: return (byte(0) & 0x1F) << 6 | (byte(1) & 0x3F);
    case 3: return (byte(0) & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    default:
      return (byte(0) & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
  }
}

}  // namespace cachalot
