// The patterns of tokenizer.json, which are written for Oniguruma in its Ruby dialect, run by PCRE2.
//
// The two engines agree on backtracking (leftmost alternative first) and differ in dialect and in Unicode
// tables, so a pattern is translated before PCRE2 sees it: every class, \s, \d, \p{..} becomes an explicit
// list of code points from data/unicode.h, ^ and $ become their Ruby meaning, (?i:..) is spelled out. What
// would mean something else, or is not needed by any byte-level tokenizer known to us (\w, \b, \h, nested
// classes,
// &&, back references, scripts as in \p{Han}, ...), is refused by name.
//
// Speed with JIT, one core: 85 MB/s of English, 20 to 40 MB/s of other scripts (DeepSeek-V3's third pattern).
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace cachalot {

// `pattern` in PCRE2's dialect. Error naming `what` (file and field) and the place in the pattern.
std::string translate_pattern(std::string_view pattern, std::string_view what);

class Regex {
 public:
  Regex(std::string_view pattern, std::string_view what);
  static Regex literal(std::string_view text, std::string_view what);  // matches exactly `text`
  // Was the program built with PCRE2? Without it (CACHALOT_PCRE2 in CMakeLists.txt) every pattern is an
  // Error.
  static bool available();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;
  ~Regex();

  // Working memory of one thread, for any number of patterns.
  class Scratch {
   public:
    Scratch();
    ~Scratch();
    Scratch(const Scratch&) = delete;

   private:
    friend class Regex;
    struct State;
    std::unique_ptr<State> state_;
  };

  // Cuts `text` (valid UTF-8) at the matches and calls piece(begin, end) for every match and every stretch
  // between two matches, in order, except empty ones; an empty match still cuts. The Rust library calls this
  // Split with behavior "Isolated". Error when matching takes more than kStepsPerByte steps a byte: patterns
  // that are linear, as all published ones, never get there whatever the text.
  template <class Piece> void isolate(std::string_view text, Scratch& scratch, const Piece& piece) const {
    size_t done = 0;  // everything before has been handed out
    for (size_t from = 0, last_end = std::string_view::npos, begin, end; from <= text.size();) {
      if (!find(text, from, scratch, &begin, &end)) break;
      if (begin == end && end == last_end) {  // an empty match right after a match is none: look further
        from = next_character(text, from);
        continue;
      }
      if (begin > done) piece(done, begin);
      if (end > begin) piece(begin, end);
      done = from = last_end = end;
    }
    if (done < text.size()) piece(done, text.size());
  }

 private:
  struct Code;
  struct Free {
    void operator()(const Code* code) const;
  };
  using CodePointer = std::unique_ptr<const Code, Free>;
  explicit Regex(CodePointer code);
  // `pattern` is what `translated` was made from.
  static CodePointer compile(const std::string& translated, std::string_view pattern, std::string_view what);
  bool find(std::string_view text, size_t from, Scratch& scratch, size_t* begin, size_t* end) const;
  static size_t next_character(std::string_view text, size_t at);
  CodePointer code_;
};

}  // namespace cachalot
