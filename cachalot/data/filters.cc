#include "data/filters.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/text.h"
#include "data/checksum.h"
#include "data/language.h"
#include "data/unicode.h"
#include "data/words.h"

namespace cachalot {

namespace {

using namespace std::string_view_literals;

// Ends of sentences and what may close them, of all scripts.
constexpr std::string_view kEndMarks[] = {".",  "?",  "!",  "\"", "'",  "”",  "’", "»", "…",
                                          "。", "！", "？", "」", "』", "．", "｡", "؟", "۔",
                                          "।",  "॥",  "։",  "።",  "။",  "។",  "﹒"};
constexpr std::string_view kBullets[] = {"-", "*", "•", "‣", "◦", "–", "·", "●", "■", "▪", "・", "○"};

bool ends_with_mark(std::string_view line) {
  const auto is_end = [&](std::string_view mark) { return line.ends_with(mark); };
  return std::any_of(std::begin(kEndMarks), std::end(kEndMarks), is_end);
}

// `text` holds `phrase` (lower-case ASCII) in any case. Looks for the phrase's rarest letter first.
bool holds(std::string_view text, std::string_view phrase) {
  constexpr std::string_view kRarestFirst = "zqxjkvbpgwyfmculdhrsnioate";
  size_t rare = std::string_view::npos;
  for (size_t i = 0; i < kRarestFirst.size() && rare == std::string_view::npos; ++i)
    rare = phrase.find(kRarestFirst[i]);
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : c; };
  for (const char letter : {phrase[rare], char(phrase[rare] - 32)})
    for (size_t at = rare; (at = text.find(letter, at)) != std::string_view::npos; ++at) {
      const std::string_view here = text.substr(at - rare, phrase.size());
      if (here.size() == phrase.size() &&
          std::equal(here.begin(), here.end(), phrase.begin(), [&](char a, char b) { return lower(a) == b; }))
        return true;
    }
  return false;
}

std::string_view trimmed(std::string_view line) {
  const size_t begin = line.find_first_not_of(" \t\r\v\f");
  if (begin == std::string_view::npos) return {};
  return line.substr(begin, line.find_last_not_of(" \t\r\v\f") - begin + 1);
}

int64_t characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (uint8_t(c) & 0xC0) != 0x80; });
}

// Hashes and how often they came; emptied in no time.
class Counter {
 public:
  void reset(size_t most) {
    size_t size = 64;
    while (size < 2 * most) size *= 2;
    if (size > slots_.size()) {
      slots_.assign(size, {});
      round_ = 0;
    }
    mask_ = size - 1;
    if (++round_ == 0) {  // wrapped around: old marks would look new
      slots_.assign(slots_.size(), {});
      round_ = 1;
    }
  }
  uint32_t add(uint64_t key) {  // returns the count, this one included
    for (size_t i = key & mask_;; i = (i + 1) & mask_) {
      Slot& slot = slots_[i];
      if (slot.round != round_) {
        slot = {key, 1, round_};
        return 1;
      }
      if (slot.key == key) return ++slot.count;
    }
  }

 private:
  struct Slot {
    uint64_t key = 0;
    uint32_t count = 0, round = 0;
  };
  std::vector<Slot> slots_;
  size_t mask_ = 0;
  uint32_t round_ = 0;
};

double share(double part, double whole) { return whole > 0 ? part / whole : 0; }

}  // namespace

struct Filters::State {
  struct Word {
    uint32_t begin, end;
  };
  std::vector<Word> words;
  std::vector<uint64_t> hashes;         // of the words
  std::vector<std::string_view> lines;  // without white space around; empty ones left out
  Counter counter;
  int64_t word_chars = 0, ideographs = 0, alphabetic = 0, stop_words = 0, number_signs = 0, ellipses = 0,
          sentences = 0, chars = 0, replacements = 0;
  bool mostly_ideographs() const { return ideographs * 2 > int64_t(words.size()); }

  void scan(std::string_view text, const StopWords* stops);
  void find_lines(std::string_view text);
};

// Words: between white space; an ideograph is one of its own.
void Filters::State::scan(std::string_view text, const StopWords* stops) {
  words.clear();
  hashes.clear();
  word_chars = ideographs = alphabetic = stop_words = number_signs = ellipses = sentences = chars =
      replacements = 0;
  size_t begin = 0, core_begin = 0, core_end = 0;
  int64_t length = 0;                 // of the word that is open, characters; 0: none is
  bool letter = false, mark = false;  // mark: the last character may end a sentence
  uint64_t hash = 0, core = 0, core_now = 0;
  const CharTable& table = char_table();
  const auto close = [&](size_t at, bool ideograph) {
    if (length == 0) return;
    words.push_back({uint32_t(begin), uint32_t(at)});
    hashes.push_back(mix(hash));
    word_chars += length;
    alphabetic += letter;
    ideographs += ideograph;
    if (stops && core_end > core_begin && stops->contains(mix(core))) ++stop_words;
    length = 0;
    letter = false;
    hash = core = core_now = 0;
    core_begin = core_end = 0;
  };
  for (size_t i = 0; i < text.size();) {
    uint32_t c = uint8_t(text[i]);
    size_t bytes = 1;
    if (c >= 0x80) {
      bytes = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : 2;
      c = decode_utf8(text, i, int(bytes));
      if (c == 0xFFFD) ++replacements;
      if (c == 0x2026) ++ellipses;
    } else {
      if (c == '#') ++number_signs;
      if (c == '.' && i + 2 < text.size() && text[i + 1] == '.' && text[i + 2] == '.' &&
          (i == 0 || text[i - 1] != '.'))
        ++ellipses;
    }
    ++chars;
    const CharClass kind = table.kind(c);
    if (kind == CharClass::space) {
      if (mark && length > 0) ++sentences;
      mark = false;
      close(i, false);
    } else if (kind == CharClass::cjk) {
      close(i, false);
      begin = core_begin = i;
      core_end = i + bytes;
      length = 1;
      letter = true;
      core = uint64_t(table.fold(c)) * 0x9E3779B97F4A7C15u;
      core ^= core >> 29;
      hash = core;
      close(i + bytes, true);
      mark = false;
    } else {
      if (c == 0x3002 || c == 0xFF01 || c == 0xFF1F || c == 0xFF61) {  // full-width ends: no space follows
        ++sentences;
        close(i, false);
        mark = false;
      } else {
        if (length == 0) begin = i;
        ++length;
        hash = (hash ^ c) * 0x9E3779B97F4A7C15u;
        hash ^= hash >> 29;
        if (kind == CharClass::word) {
          if (core_end == 0) core_begin = i, core_now = 0;
          core_end = i + bytes;
          core_now = (core_now ^ table.fold(c)) * 0x9E3779B97F4A7C15u;
          core_now ^= core_now >> 29;
          core = core_now;  // punctuation at the end stays outside
          if (c >= 0x80 || (c | 32) >= 'a') letter = true;
        } else if (core_end != 0) {
          core_now = (core_now ^ c) * 0x9E3779B97F4A7C15u;  // inside, as in "l'eau"
          core_now ^= core_now >> 29;
        }
        if (c == '.' || c == '?' || c == '!' || c == 0x2026 || c == 0x061F || c == 0x06D4 || c == 0x0964)
          mark = true;
        else if (kind == CharClass::word) mark = false;
      }
    }
    i += bytes;
  }
  if (mark && length > 0) ++sentences;
  close(text.size(), false);
}

void Filters::State::find_lines(std::string_view text) {
  lines.clear();
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    if (const std::string_view line = trimmed(text.substr(at, end - at)); !line.empty())
      lines.push_back(line);
    at = end + 1;
  }
}

Filters::Filters(const FilterOptions& options) : options_(options), state_(std::make_unique<State>()) {}
Filters::~Filters() = default;

namespace {

struct Judge {
  Verdict verdict;
  // True when the document is to be dropped.
  bool below(const char* rule, double value, double limit) {
    return value < limit && fail(rule, value, limit);
  }
  bool above(const char* rule, double value, double limit) {
    return value > limit && fail(rule, value, limit);
  }
  bool fail(const char* rule, double value, double limit) {
    verdict.rule = rule;
    verdict.value = value;
    verdict.limit = limit;
    return true;
  }
};

// C4's rules for lines, on `text` in place; returns how many went.
int64_t remove_lines(const C4& rules, std::string& text) {
  constexpr std::string_view kPolicy[] = {"terms of use", "privacy policy", "cookie policy",
                                          "uses cookies", "use of cookies", "use cookies"};
  constexpr std::string_view kAsks[] = {"enable", "disabled", "turn on", "browser", "activate", "required"};
  // Most texts hold none of it: say so at once.
  const auto in_text = [&](std::string_view phrase) { return holds(text, phrase); };
  const bool policy = rules.policy && std::any_of(std::begin(kPolicy), std::end(kPolicy), in_text);
  const bool javascript = rules.javascript && in_text("javascript");
  int64_t removed = 0;
  size_t kept = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = std::string_view(text).substr(at, end - at);
    const auto in_line = [&](std::string_view phrase) { return holds(line, phrase); };
    bool bad = policy && std::any_of(std::begin(kPolicy), std::end(kPolicy), in_line);
    bad = bad || (javascript && holds(line, "javascript") && line.size() < 400 &&
                  std::any_of(std::begin(kAsks), std::end(kAsks), in_line));
    if (!bad && rules.max_word > 0 && int64_t(line.size()) > rules.max_word) {
      int64_t length = 0;
      for (size_t i = 0; i < line.size() && !bad; ++i) {
        const uint8_t c = uint8_t(line[i]);
        if (c == ' ' || c == '\t' || c >= 0xE3) length = 0;  // from U+3000 on: scripts without spaces
        else if ((c & 0xC0) != 0x80) bad = ++length > rules.max_word;
      }
    }
    if (!bad && rules.end_mark) {
      const std::string_view core = trimmed(line);
      int64_t words = 0;
      bool inside = false;
      for (const char c : core) {
        const bool space = c == ' ' || c == '\t';
        if (uint8_t(c) >= 0xE3 || (!space && !inside)) ++words;
        inside = !space;
      }
      bad = !core.empty() && (!ends_with_mark(core) || words < rules.min_line_words);
    }
    const size_t whole = std::min(end + 1, text.size()) - at;
    if (bad) {
      ++removed;
    } else {
      if (kept != at) std::memmove(text.data() + kept, text.data() + at, whole);
      kept += whole;
    }
    at = end + 1;
  }
  text.resize(kept);
  return removed;
}

}  // namespace

Verdict Filters::prose(std::string& text, std::string_view language) {
  const FilterOptions& o = options_;
  State& s = *state_;
  Judge judge;
  if (o.c4.on) judge.verdict.lines_removed = remove_lines(o.c4, text);
  s.scan(text, find_stop_words(language));
  const double words = double(s.words.size());
  if (judge.above("max_replacement", share(double(s.replacements), double(s.chars)), o.max_replacement))
    return judge.verdict;
  if (const GopherQuality& g = o.gopher_quality; g.on) {
    if (judge.below("gopher_quality.min_words", words, double(g.min_words)) ||
        judge.above("gopher_quality.max_words", words, double(g.max_words)))
      return judge.verdict;
    if (!s.mostly_ideographs()) {
      const double mean = share(double(s.word_chars), words);
      if (judge.below("gopher_quality.min_mean_word", mean, g.min_mean_word) ||
          judge.above("gopher_quality.max_mean_word", mean, g.max_mean_word))
        return judge.verdict;
    }
    if (judge.above("gopher_quality.max_symbols", share(double(std::max(s.number_signs, s.ellipses)), words),
                    g.max_symbols) ||
        judge.below("gopher_quality.min_alphabetic", share(double(s.alphabetic), words), g.min_alphabetic))
      return judge.verdict;
    if (find_stop_words(language) &&
        judge.below("gopher_quality.min_stop_words", double(s.stop_words), double(g.min_stop_words)))
      return judge.verdict;
  }
  if (const C4& c = o.c4; c.on) {
    if (judge.below("c4.min_sentences", double(s.sentences), double(c.min_sentences))) return judge.verdict;
    if (c.lorem_ipsum && holds(text, "lorem ipsum") && judge.fail("c4.lorem_ipsum", 1, 0))
      return judge.verdict;
    if (c.curly_bracket && text.find('{') != std::string::npos && judge.fail("c4.curly_bracket", 1, 0))
      return judge.verdict;
  }
  s.find_lines(text);
  const double lines = double(s.lines.size());
  if (const GopherQuality& g = o.gopher_quality; g.on) {
    int64_t bullets = 0, ellipses = 0;
    for (const std::string_view line : s.lines) {
      const auto begins = [&](std::string_view bullet) { return line.starts_with(bullet); };
      bullets += std::any_of(std::begin(kBullets), std::end(kBullets), begins);
      ellipses += line.ends_with("...") || line.ends_with("…");
    }
    if (judge.above("gopher_quality.max_bullet_lines", share(double(bullets), lines), g.max_bullet_lines) ||
        judge.above("gopher_quality.max_ellipsis_lines", share(double(ellipses), lines),
                    g.max_ellipsis_lines))
      return judge.verdict;
  }
  // Duplicate lines and paragraphs: those that came before.
  double dup_lines = 0, dup_line_chars = 0, line_chars = 0;
  if (o.gopher_repetition.on || o.fineweb.on) {
    s.counter.reset(s.lines.size());
    for (const std::string_view line : s.lines) {
      line_chars += double(line.size());
      if (s.counter.add(checksum64(line)) > 1) {
        ++dup_lines;
        dup_line_chars += double(line.size());
      }
    }
  }
  if (const FineWeb& f = o.fineweb; f.on) {
    int64_t marks = 0, shorts = 0;
    // An ideograph says about as much as two letters and takes three bytes.
    const int64_t short_line = s.mostly_ideographs() ? f.short_line / 2 : f.short_line;
    for (const std::string_view line : s.lines) {
      marks += ends_with_mark(line);
      shorts += characters(line) <= short_line;
    }
    const auto newlines = double(std::count(text.begin(), text.end(), '\n'));
    if (judge.below("fineweb.min_end_marks", share(double(marks), lines), f.min_end_marks) ||
        judge.above("fineweb.max_short_lines", share(double(shorts), lines), f.max_short_lines) ||
        judge.above("fineweb.max_duplicate_chars", share(dup_line_chars, line_chars),
                    f.max_duplicate_chars) ||
        judge.above("fineweb.max_newlines", share(newlines, words), f.max_newlines))
      return judge.verdict;
  }
  const GopherRepetition& r = o.gopher_repetition;
  if (!r.on) return judge.verdict;
  if (judge.above("gopher_repetition.lines", share(dup_lines, lines), r.lines) ||
      judge.above("gopher_repetition.line_chars", share(dup_line_chars, line_chars), r.line_chars))
    return judge.verdict;
  double paragraphs = 0, dup_paragraphs = 0, paragraph_chars = 0, dup_paragraph_chars = 0;
  s.counter.reset(s.lines.size());
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find("\n\n", at), text.size());
    if (const std::string_view paragraph = trimmed(std::string_view(text).substr(at, end - at));
        !paragraph.empty()) {
      ++paragraphs;
      paragraph_chars += double(paragraph.size());
      if (s.counter.add(checksum64(paragraph)) > 1) {
        ++dup_paragraphs;
        dup_paragraph_chars += double(paragraph.size());
      }
    }
    at = end + 1;
    while (at < text.size() && text[at] == '\n') ++at;
  }
  if (judge.above("gopher_repetition.paragraphs", share(dup_paragraphs, paragraphs), r.paragraphs) ||
      judge.above("gopher_repetition.paragraph_chars", share(dup_paragraph_chars, paragraph_chars),
                  r.paragraph_chars))
    return judge.verdict;
  // An ideograph is about half a word.
  const size_t each = s.mostly_ideographs() ? 2 : 1;
  const double bytes = double(text.size());
  struct Top {
    size_t n;
    const char* rule;
    double limit;
  };
  const Top tops[] = {{2, "gopher_repetition.top_2_gram", r.top_2_gram},
                      {3, "gopher_repetition.top_3_gram", r.top_3_gram},
                      {4, "gopher_repetition.top_4_gram", r.top_4_gram}};
  for (const Top& top : tops) {
    const size_t n = top.n * each;
    if (s.words.size() < n) break;
    s.counter.reset(s.words.size());
    double most = 0;
    uint32_t often = 0;
    RollingHash rolling(n);
    for (size_t i = 0; i + n <= s.words.size(); ++i) {
      const uint64_t h =
          i == 0 ? rolling.first(s.hashes.data()) : rolling.next(s.hashes[i - 1], s.hashes[i + n - 1]);
      const uint32_t count = s.counter.add(h);
      if (count < 2) continue;
      often = std::max(often, count);
      most = std::max(most, double(count) * (s.words[i + n - 1].end - s.words[i].begin));
    }
    if (judge.above(top.rule, share(most, bytes), top.limit)) return judge.verdict;
    if (often < 2) return judge.verdict;  // no n words twice: no more words twice either
  }
  const Top duplicates[] = {{5, "gopher_repetition.dup_5_grams", r.dup_5_grams},
                            {6, "gopher_repetition.dup_6_grams", r.dup_6_grams},
                            {7, "gopher_repetition.dup_7_grams", r.dup_7_grams},
                            {8, "gopher_repetition.dup_8_grams", r.dup_8_grams},
                            {9, "gopher_repetition.dup_9_grams", r.dup_9_grams},
                            {10, "gopher_repetition.dup_10_grams", r.dup_10_grams}};
  for (const Top& duplicate : duplicates) {
    const size_t n = duplicate.n * each;
    if (s.words.size() < n) break;
    s.counter.reset(s.words.size());
    double repeated = 0;
    size_t from = 0;  // n words are counted once: not again those that overlap
    RollingHash rolling(n);
    for (size_t i = 0; i + n <= s.words.size(); ++i) {
      const uint64_t h =
          i == 0 ? rolling.first(s.hashes.data()) : rolling.next(s.hashes[i - 1], s.hashes[i + n - 1]);
      if (i < from || s.counter.add(h) == 1) continue;
      repeated += s.words[i + n - 1].end - s.words[i].begin;
      from = i + n;
    }
    if (judge.above(duplicate.rule, share(repeated, bytes), duplicate.limit)) return judge.verdict;
    if (repeated == 0) break;
  }
  return judge.verdict;
}

Verdict Filters::code(std::string_view text) {
  const CodeRules& o = options_.code;
  Judge judge;
  if (!o.on) return judge.verdict;
  int64_t chars = 0, alphanumeric = 0, line = 0, longest = 0, lines = 0, replacements = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const uint8_t c = uint8_t(text[i]);
    if (c == '\n') {
      longest = std::max(longest, line);
      line = 0;
      ++lines;
    }
    if ((c & 0xC0) == 0x80) continue;
    ++chars;
    if (c != '\n') ++line;
    alphanumeric += c >= 0x80 || (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z');
    if (c == 0xEF && text.substr(i, 3) == "\xEF\xBF\xBD"sv) ++replacements;
  }
  longest = std::max(longest, line);
  lines += line > 0;
  if (judge.above("max_replacement", share(double(replacements), double(chars)), options_.max_replacement) ||
      judge.below("code.min_chars", double(chars), double(o.min_chars)) ||
      judge.above("code.max_line", double(longest), double(o.max_line)) ||
      judge.above("code.max_mean_line", share(double(chars), double(lines)), o.max_mean_line) ||
      judge.below("code.min_alphanumeric", share(double(alphanumeric), double(chars)), o.min_alphanumeric))
    return judge.verdict;
  if (o.generated) {
    constexpr std::string_view kMarks[] = {
        "automatically generated", "autogenerated",          "auto-generated",   "@generated", "generated by",
        "this file was generated", "this file is generated", "machine generated"};
    const std::string_view top = text.substr(0, 800);
    const auto in_top = [&](std::string_view mark) { return holds(top, mark); };
    if (std::any_of(std::begin(kMarks), std::end(kMarks), in_top)) judge.fail("code.generated", 1, 0);
  }
  return judge.verdict;
}

bool is_code_name(std::string_view name) {
  for (const std::string_view packing : {".gz", ".zst", ".zstd"})
    if (name.ends_with(packing)) name.remove_suffix(packing.size());
  const size_t slash = name.find_last_of('/');
  if (slash != std::string_view::npos) name.remove_prefix(slash + 1);
  if (name == "Makefile" || name == "Dockerfile" || name == "CMakeLists.txt") return true;
  const size_t dot = name.find_last_of('.');
  if (dot == std::string_view::npos) return false;
  constexpr std::string_view kEndings[] = {
      "S",     "asm", "awk",   "bash", "bat", "c",    "cc",  "clj",  "cljs", "cmake", "cpp", "cs",
      "css",   "cu",  "cuh",   "cxx",  "d",   "dart", "el",  "erl",  "ex",   "exs",   "f",   "f90",
      "fs",    "go",  "h",     "hh",   "hpp", "hs",   "hxx", "java", "jl",   "js",    "jsx", "kt",
      "lisp",  "lua", "m",     "mjs",  "ml",  "mli",  "mm",  "nim",  "pas",  "php",   "pl",  "pm",
      "proto", "ps1", "py",    "pyi",  "pyx", "r",    "rb",  "rs",   "s",    "scala", "scm", "sh",
      "sql",   "sv",  "swift", "tcl",  "ts",  "tsx",  "v",   "vala", "vb",   "vhd",   "vim", "zig"};
  const std::string_view ending = name.substr(dot + 1);
  return std::find(std::begin(kEndings), std::end(kEndings), ending) != std::end(kEndings);
}

namespace {

// Windows-1252's code point of each byte from 0x80 on; 0: none.
constexpr uint16_t kWindows1252[32] = {0x20AC, 0,      0x201A, 0x0192, 0x201E, 0x2026, 0x2020, 0x2021,
                                       0x02C6, 0x2030, 0x0160, 0x2039, 0x0152, 0,      0x017D, 0,
                                       0,      0x2018, 0x2019, 0x201C, 0x201D, 0x2022, 0x2013, 0x2014,
                                       0x02DC, 0x2122, 0x0161, 0x203A, 0x0153, 0,      0x017E, 0x0178};

// The byte that a code point was, when UTF-8 was read as Windows-1252 (or Latin 1); -1: none.
int windows_byte(uint32_t c) {
  if (c < 0x100) return int(c);
  for (int i = 0; i < 32; ++i)
    if (kWindows1252[i] == c) return 0x80 + i;
  return -1;
}

}  // namespace

bool tidy_text(std::string& text, bool* changed) {
  const auto plain = [](uint8_t c) { return (c >= 0x20 && c != 0x7F && c < 0xC2) || c == '\n' || c == '\t'; };
  *changed = false;
  // 0xC2 and 0xC3 begin what a broken re-encoding is made of, and the control characters from U+0080 on.
  bool suspicious = false;
  for (const char c : text) {
    if (plain(uint8_t(c))) continue;
    if (uint8_t(c) < 0xC2 || uint8_t(c) == 0xEF || uint8_t(c) <= 0xC5) {
      suspicious = true;
      break;
    }
  }
  if (!suspicious) return false;
  std::string out, repaired;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const uint8_t first = uint8_t(text[i]);
    if (first < 0x80) {
      if (plain(first)) out += char(first);
      else if (first == '\r') {
        if (i + 1 >= text.size() || text[i + 1] != '\n') out += '\n';
      } else if (first == '\f' || first == '\v') {
        out += '\n';
      }
      ++i;
      continue;
    }
    const int length = utf8_length(text, i);
    const uint32_t c = decode_utf8(text, i, length);
    if (c == 0x85) out += '\n';
    else if (c >= 0xA0 && c != 0xFEFF) out.append(text, i, size_t(length));
    i += size_t(length);
  }
  // Sequences of characters that are the bytes of one character in UTF-8, against those that are none.
  int64_t good = 0, bad = 0;
  for (size_t i = 0; i < text.size();) {
    const uint8_t first = uint8_t(text[i]);
    if (first < 0x80) {
      repaired += text[i++];
      continue;
    }
    std::string bytes;
    size_t at = i, need = 1;
    for (size_t n = 0; n < need && at < text.size(); ++n) {
      const int length = utf8_length(text, at);
      const int byte = windows_byte(decode_utf8(text, at, length));
      if (byte < 0x80) break;
      if (n == 0) need = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC2 ? 2 : 1;
      bytes += char(byte);
      at += size_t(length);
    }
    if (need > 1 && bytes.size() == need && utf8_length(bytes, 0) == int(need)) {
      repaired += bytes;
      ++good;
      i = at;
    } else {
      const int length = utf8_length(text, i);
      bad += length == 2 &&
             first <= 0xC3;  // a letter of Latin 1 that is none of those: the text is right as it is
      repaired.append(text, i, size_t(length));
      i += size_t(length);
    }
  }
  if (good >= 3 && bad * 10 <= good) {
    text = std::move(repaired);
    bool ignored;
    tidy_text(text, &ignored);
    *changed = true;
    return true;
  }
  *changed = out != text;
  if (*changed) text = std::move(out);
  return false;
}

void check(const FilterOptions& options) {
  const auto is_share = [](const char* name, double value) {
    if (!(value >= 0 && value <= 1))
      throw Error(fmt::format("filters.{} is {}; it is a share from 0 to 1", name, value));
  };
  const GopherQuality& g = options.gopher_quality;
  is_share("gopher_quality.max_bullet_lines", g.max_bullet_lines);
  is_share("gopher_quality.max_ellipsis_lines", g.max_ellipsis_lines);
  is_share("gopher_quality.min_alphabetic", g.min_alphabetic);
  is_share("fineweb.min_end_marks", options.fineweb.min_end_marks);
  is_share("fineweb.max_short_lines", options.fineweb.max_short_lines);
  is_share("fineweb.max_duplicate_chars", options.fineweb.max_duplicate_chars);
  is_share("code.min_alphanumeric", options.code.min_alphanumeric);
  is_share("max_replacement", options.max_replacement);
  if (g.min_words > g.max_words)
    throw Error(fmt::format("filters.gopher_quality.min_words is {} and max_words {}: no document passes",
                            g.min_words, g.max_words));
  if (!(g.min_mean_word <= g.max_mean_word))
    throw Error(
        fmt::format("filters.gopher_quality.min_mean_word is {} and max_mean_word {}: no document passes",
                    g.min_mean_word, g.max_mean_word));
}

}  // namespace cachalot
