#include "data/filters.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/rng.h"

namespace cachalot {
namespace {

// Running text that every rule passes: `sentences` sentences of 10 words, no two alike.
std::string prose(int sentences, uint64_t seed = 1) {
  constexpr const char* kWords[] = {"river",   "house",   "garden",  "letter", "market", "window",
                                    "morning", "teacher", "doctor",  "bridge", "winter", "summer",
                                    "forest",  "village", "kitchen", "music"};
  std::string text;
  for (int s = 0; s < sentences; ++s) {
    text += "The";
    for (int w = 0; w < 8; ++w)
      text +=
          (w % 4 == 3 ? " and " : " ") + std::string(kWords[random_below(seed, 1, uint64_t(s * 8 + w), 16)]);
    text += " with " + std::to_string(s) + "th.";
    text += s % 3 == 2 ? "\n" : " ";
  }
  return text;
}

Verdict judge(std::string text, FilterOptions options = {}, std::string_view language = "en") {
  Filters filters(options);
  return filters.prose(text, language);
}
std::string rule(const std::string& text, FilterOptions options = {}, std::string_view language = "en") {
  const Verdict verdict = judge(text, options, language);
  return verdict.rule ? verdict.rule : "";
}

TEST(Filters, RunningTextIsKept) {
  EXPECT_EQ(rule(prose(30)), "");
  EXPECT_EQ(rule(prose(300)), "");
}

TEST(Filters, EachRuleDropsWhatItIsFor) {
  const std::string good = prose(30);
  std::string words, signs, numbers, bullets, dots, no_stops, lines, short_lines;
  for (int i = 0; i < 60; ++i) {
    words += "ab ";
    signs += "# word house. ";
    numbers += std::to_string(i * 7919) + " 12 house ";
    bullets += "- This is a point of the list, and number " + std::to_string(i) + " of them.\n";
    dots += "This is the beginning of line " + std::to_string(i) + " and it goes on...\n";
    no_stops += "river" + std::to_string(i) + " house bridge. ";
    lines += "The same line of the page with the same words.\n";
    short_lines += "Look at the other page " + std::to_string(i) + ".\n";
  }
  EXPECT_EQ(rule("Too short."), "gopher_quality.min_words");
  EXPECT_EQ(rule(words), "gopher_quality.min_mean_word");
  EXPECT_EQ(rule(good + std::string(10000, 'x')), "");  // the line went, the rest stays
  EXPECT_EQ(rule(signs), "gopher_quality.max_symbols");
  EXPECT_EQ(rule(numbers), "gopher_quality.min_alphabetic");
  EXPECT_EQ(rule(no_stops), "gopher_quality.min_stop_words");
  EXPECT_EQ(rule(bullets), "gopher_quality.max_bullet_lines");
  EXPECT_EQ(rule(dots), "gopher_quality.max_ellipsis_lines");
  EXPECT_EQ(rule(good + lines), "fineweb.max_duplicate_chars");
  EXPECT_EQ(rule(short_lines), "fineweb.max_short_lines");
  EXPECT_EQ(rule(good + " Lorem Ipsum dolor."), "c4.lorem_ipsum");
  std::string no_end = good;
  for (char& c : no_end)
    if (c == '.') c = ',';
  EXPECT_EQ(rule(no_end), "c4.min_sentences");
  std::string lost = good;
  for (int i = 0; i < 10; ++i) lost.insert(size_t(i) * 20, "\uFFFD");
  EXPECT_EQ(rule(lost), "max_replacement");
}

TEST(Filters, RepetitionOfPhrasesIsFoundByTheShortestThatBreaksItsLimit) {
  FilterOptions only;
  only.gopher_quality.on = only.c4.on = only.fineweb.on = false;
  std::string again = prose(10);
  for (int i = 0; i < 6; ++i)
    again +=
        " one phrase that is written here over and again without much change at all " + std::to_string(i);
  EXPECT_EQ(rule(again, only), "gopher_repetition.dup_5_grams");
  std::string top = prose(5);
  for (int i = 0; i < 40; ++i) top += " green house " + std::to_string(i);
  EXPECT_EQ(rule(top, only), "gopher_repetition.top_2_gram");
  std::string paragraphs;
  for (int i = 0; i < 10; ++i) paragraphs += prose(2, uint64_t(i / 2)) + "\n\n";
  EXPECT_EQ(rule(paragraphs, only).substr(0, 17), "gopher_repetition");
}

TEST(Filters, ARuleThatIsOffDropsNothing) {
  FilterOptions off;
  off.gopher_quality.on = off.gopher_repetition.on = off.c4.on = off.fineweb.on = off.code.on = false;
  off.max_replacement = 1;
  for (const char* text : {"x", "# # #", "a a a a a a a a a a a a", "{}", "lorem ipsum"})
    EXPECT_EQ(rule(text, off), "");
  Filters filters(off);
  EXPECT_TRUE(filters.code(std::string(5000, 'x')).keep());
}

TEST(Filters, ThresholdsAreThoseOfTheOptions) {
  FilterOptions options;
  options.gopher_quality.min_words = 1000;
  const Verdict verdict = judge(prose(30), options);
  EXPECT_STREQ(verdict.rule, "gopher_quality.min_words");
  EXPECT_EQ(verdict.limit, 1000);
  EXPECT_EQ(verdict.value, 30 * 13);
}

TEST(Filters, IdeographsAreWordsOfTheirOwn) {
  std::string chinese, japanese;
  for (int i = 0; i < 12; ++i) {
    chinese += "这是第" + std::to_string(i) + "个句子，我们在这里说明系统的安装方法和注意事项。" +
               (i % 3 == 2 ? "\n" : "");
    japanese += "これは" + std::to_string(i) + "番目の文で、ここではシステムの使い方を説明している。" +
                (i % 3 == 2 ? "\n" : "");
  }
  FilterOptions options;
  options.gopher_repetition.on = false;  // these sentences are alike
  EXPECT_EQ(rule(chinese, options, "zh"), "");
  EXPECT_EQ(rule(japanese, options, "ja"), "");
}

TEST(Filters, C4RemovesLinesAndLeavesTheRest) {
  std::string text = prose(30);
  const std::string before = text;
  text.insert(text.find('\n') + 1,
              "Please enable JavaScript in your browser.\nWe use cookies. Read our Privacy Policy\n");
  FilterOptions options;
  Filters filters(options);
  const Verdict verdict = filters.prose(text, "en");
  EXPECT_TRUE(verdict.keep());
  EXPECT_EQ(verdict.lines_removed, 2);
  EXPECT_EQ(text, before);
  std::string about = prose(30) + "JavaScript is a language for programs in pages.\n";
  EXPECT_EQ(filters.prose(about, "en").lines_removed, 0);
}

TEST(Filters, CodeHasRulesOfItsOwn) {
  Filters filters({});
  EXPECT_TRUE(filters.code("int main() {\n  return 0;\n}\n").keep());
  EXPECT_STREQ(filters.code("x\n").rule, "code.min_chars");
  EXPECT_STREQ(filters.code("int a;\n" + std::string(2000, 'x') + "\n").rule, "code.max_line");
  EXPECT_STREQ(filters.code(std::string(200, 'x') + "\n" + std::string(200, 'y') + "\n").rule,
               "code.max_mean_line");
  EXPECT_STREQ(filters.code("{{{{}}}} ((((())))) ;;;; {{{{}}}}\n").rule, "code.min_alphanumeric");
  EXPECT_STREQ(filters.code("// Automatically generated by bison. Do not edit.\nint x;\n").rule,
               "code.generated");
  for (const char* name : {"a.c", "x/y.py", "b.rs.gz", "Makefile", "a/CMakeLists.txt", "zlib/inflate.h"})
    EXPECT_TRUE(is_code_name(name)) << name;
  for (const char* name : {"a.txt", "README", "x.html", "web.jsonl.zst", "c"})
    EXPECT_FALSE(is_code_name(name)) << name;
}

TEST(Filters, TidyingIsIdempotentAndTouchesNothingElse) {
  const auto tidy = [](std::string text) {
    bool changed;
    tidy_text(text, &changed);
    return text;
  };
  EXPECT_EQ(tidy("a\r\nb\rc\fd\x01"
                 "e\x7F"
                 "f\u0085g\u0090h\uFEFFi"),
            "a\nb\nc\ndef\ngh"
            "i");
  EXPECT_EQ(tidy("Ã©tÃ© dÃ©jÃ\u00A0 vu â€œquotedâ€\u009d"), "été déjà vu “quoted”");
  for (const std::string& same : {std::string("plain\ttext\n"), std::string("été déjà Ã Â"),
                                  std::string("中文 текст 😀"), std::string("São João, à la Â")})
    EXPECT_EQ(tidy(same), same);
  const std::string once = tidy("x\r\r\nÃ¼ Ã¼ Ã¼ Ã¼\x02");
  EXPECT_EQ(tidy(once), once);
}

TEST(Filters, ImpossibleThresholdsAreRefused) {
  FilterOptions options;
  options.gopher_quality.min_words = 10;
  options.gopher_quality.max_words = 5;
  EXPECT_THROW(check(options), Error);
  options = {};
  options.fineweb.min_end_marks = 12;
  EXPECT_THROW(check(options), Error);
}

}  // namespace
}  // namespace cachalot
