// Rules that keep or drop a document by its text alone, with the numbers of the papers they come from; each can
// be switched off, each threshold changed (`cachalot data clean --help`).
//
//   Gopher    Rae et al. 2021, arXiv:2112.11446, appendix A.1.1, tables A1 and A2: quality and repetition
//   C4        Raffel et al. 2020, arXiv:1910.10683, section 2.2
//   FineWeb   Penedo et al. 2024, arXiv:2406.17557, section 3.6
//   code      Kocetkov et al. 2022, arXiv:2211.15533, appendix; Li et al. 2023, arXiv:2305.06161, section 3.1
//
// The papers speak of English web pages. Here a word is what stands between white space, and every ideograph,
// kana and Hangul syllable is a word (data/words.h); stop words are those of the document's language; marks of
// the end of a sentence are those of all scripts; rules about word lengths are passed over where most words are
// ideographs. Source code (by its file's ending) is judged by rules of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace cachalot {

struct GopherQuality {
  bool on = true;
  int64_t min_words = 50, max_words = 100000;
  double min_mean_word = 3, max_mean_word = 10;  // characters
  double max_symbols = 0.1;                      // '#' and ellipses, per word
  double max_bullet_lines = 0.9, max_ellipsis_lines = 0.3;
  double min_alphabetic = 0.8;  // words with a letter
  int64_t min_stop_words = 2;   // occurrences

  template <class V> void visit(V& v) {
    v("on", on, "Gopher's quality rules");
    v("min_words", min_words, "fewest words of a document");
    v("max_words", max_words, "most words of a document");
    v("min_mean_word", min_mean_word, "shortest mean word, characters");
    v("max_mean_word", max_mean_word, "longest mean word, characters");
    v("max_symbols", max_symbols, "most # or ... a word");
    v("max_bullet_lines", max_bullet_lines, "largest share of lines that begin with a bullet");
    v("max_ellipsis_lines", max_ellipsis_lines, "largest share of lines that end in ...");
    v("min_alphabetic", min_alphabetic, "smallest share of words with a letter");
    v("min_stop_words", min_stop_words, "fewest stop words of the document's language");
  }
};

struct GopherRepetition {
  bool on = true;
  double lines = 0.3, paragraphs = 0.3;                           // duplicates among all
  double line_chars = 0.2, paragraph_chars = 0.2;                 // characters in duplicates
  double top_2_gram = 0.2, top_3_gram = 0.18, top_4_gram = 0.16;  // characters in the most frequent one
  double dup_5_grams = 0.15, dup_6_grams = 0.14, dup_7_grams = 0.13, dup_8_grams = 0.12, dup_9_grams = 0.11,
         dup_10_grams = 0.1;  // characters in n-grams that occurred before

  template <class V> void visit(V& v) {
    v("on", on, "Gopher's repetition rules");
    v("lines", lines, "largest share of lines that are duplicates");
    v("paragraphs", paragraphs, "largest share of paragraphs that are duplicates");
    v("line_chars", line_chars, "largest share of characters in duplicate lines");
    v("paragraph_chars", paragraph_chars, "largest share of characters in duplicate paragraphs");
    v("top_2_gram", top_2_gram, "largest share of characters in the most frequent 2 words");
    v("top_3_gram", top_3_gram, "... 3 words");
    v("top_4_gram", top_4_gram, "... 4 words");
    v("dup_5_grams", dup_5_grams, "largest share of characters in 5 words that occurred before");
    v("dup_6_grams", dup_6_grams, "... 6 words");
    v("dup_7_grams", dup_7_grams, "... 7 words");
    v("dup_8_grams", dup_8_grams, "... 8 words");
    v("dup_9_grams", dup_9_grams, "... 9 words");
    v("dup_10_grams", dup_10_grams, "... 10 words");
  }
};

struct C4 {
  bool on = true;
  bool end_mark = false;  // removes most lines of headings, lists and tables
  int64_t min_line_words = 3, max_word = 1000, min_sentences = 5;
  bool javascript = true, policy = true, lorem_ipsum = true;
  bool curly_bracket = false;  // would drop most texts about programs and mathematics

  template <class V> void visit(V& v) {
    v("on", on, "C4's rules");
    v("end_mark", end_mark, "remove lines without an end mark, and those of fewer words than min_line_words");
    v("min_line_words", min_line_words, "with end_mark: fewest words of a line");
    v("max_word", max_word, "remove lines with a longer word, characters");
    v("min_sentences", min_sentences, "fewest sentences of a document");
    v("javascript", javascript, "remove lines that ask to enable JavaScript");
    v("policy", policy, "remove lines of cookie and privacy notices");
    v("lorem_ipsum", lorem_ipsum, "drop documents with \"lorem ipsum\"");
    v("curly_bracket", curly_bracket, "drop documents of prose with {");
  }
};

struct FineWeb {
  bool on = true;
  double min_end_marks = 0.12, max_short_lines = 0.67, max_duplicate_chars = 0.1, max_newlines = 0.3;
  int64_t short_line = 30;

  template <class V> void visit(V& v) {
    v("on", on, "FineWeb's rules");
    v("min_end_marks", min_end_marks, "smallest share of lines with an end mark");
    v("max_short_lines", max_short_lines, "largest share of short lines");
    v("short_line", short_line, "a line of at most so many characters is short");
    v("max_duplicate_chars", max_duplicate_chars, "largest share of characters in duplicate lines");
    v("max_newlines", max_newlines, "most line ends a word");
  }
};

struct CodeRules {
  bool on = true;
  int64_t max_line = 1000;
  double max_mean_line = 100, min_alphanumeric = 0.25;
  int64_t min_chars = 20;
  bool generated = true;

  template <class V> void visit(V& v) {
    v("on", on, "rules for source code");
    v("max_line", max_line, "longest line, characters");
    v("max_mean_line", max_mean_line, "longest mean line, characters");
    v("min_alphanumeric", min_alphanumeric, "smallest share of letters and digits");
    v("min_chars", min_chars, "fewest characters");
    v("generated", generated, "drop files that say near their top that a program made them");
  }
};

struct FilterOptions {
  GopherQuality gopher_quality;
  GopherRepetition gopher_repetition;
  C4 c4;
  FineWeb fineweb;
  CodeRules code;
  double max_replacement = 0.002;  // U+FFFD, of all characters

  template <class V> void visit(V& v) {
    v("gopher_quality", gopher_quality, "");
    v("gopher_repetition", gopher_repetition, "");
    v("c4", c4, "");
    v("fineweb", fineweb, "");
    v("code", code, "");
    v("max_replacement", max_replacement, "largest share of U+FFFD, what is left of a broken encoding");
  }
};

// Error naming the field for thresholds that no document or every document meets.
void check(const FilterOptions& options);

// Why a document was dropped: `rule` is null for one that is kept.
struct Verdict {
  const char* rule = nullptr;  // "gopher_quality.min_words"
  double value = 0, limit = 0;
  int64_t lines_removed = 0;  // by C4's rules for lines
  bool keep() const { return !rule; }
};

// Judges a document of prose in `language` (data/language.h; "" when unknown); removes lines from `text`.
// Keeps working memory: one a thread.
class Filters {
 public:
  explicit Filters(const FilterOptions& options);
  ~Filters();
  Verdict prose(std::string& text, std::string_view language);
  Verdict code(std::string_view text);

 private:
  struct State;
  FilterOptions options_;
  std::unique_ptr<State> state_;
};

// Does this file name (the packing left out) end as source code does?
bool is_code_name(std::string_view name);

// Line ends to \n, control characters out, UTF-8 that was read as Windows-1252 and written again (such as
// "Ã©") put right. Returns whether the last was needed; `changed` whether anything was.
bool tidy_text(std::string& text, bool* changed);

}  // namespace cachalot
