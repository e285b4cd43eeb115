#include "data/regex.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/error.h"

namespace cachalot {
namespace {

using Pieces = std::vector<std::string>;

// A build without PCRE2 (CACHALOT_PCRE2=OFF) can only refuse.
class RegexTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!Regex::available()) GTEST_SKIP() << "runs where libpcre2-dev is installed (scripts/setup.sh installs it)";
  }
};

Pieces cut(const Regex& regex, std::string_view text) {
  Pieces pieces;
  Regex::Scratch scratch;
  regex.isolate(text, scratch,
                [&](size_t begin, size_t end) { pieces.emplace_back(text.substr(begin, end - begin)); });
  return pieces;
}

Pieces cut(std::string_view pattern, std::string_view text) { return cut(Regex(pattern, "t"), text); }

std::string refusal(std::string_view pattern) {
  try {
    Regex(pattern, "tokenizer.json: field");
    return "";
  } catch (const Error& e) {
    return e.what();
  }
}

// Every expectation in this file was seen in the Rust library (pre_tokenizers.Split, "isolated").

TEST_F(RegexTest, KeepsMatchesAndWhatIsBetween) {
  EXPECT_EQ(cut("b+", "abbcb"), (Pieces{"a", "bb", "c", "b"}));
  EXPECT_EQ(cut("b+", "bb"), (Pieces{"bb"}));
  EXPECT_EQ(cut("x", "abc"), (Pieces{"abc"}));
  EXPECT_EQ(cut("x", ""), (Pieces{}));
}

TEST_F(RegexTest, EmptyMatchesCutButNotTwiceAtOnePlace) {
  EXPECT_EQ(cut("a*", "baac"), (Pieces{"b", "aa", "c"}));
  EXPECT_EQ(cut("", "aé的"), (Pieces{"a", "é", "的"}));
  EXPECT_EQ(cut("(?<=a)", "abab"), (Pieces{"a", "ba", "b"}));
}

TEST_F(RegexTest, AnchorsAreRubys) {
  EXPECT_EQ(cut("^", "ab\ncd\n"), (Pieces{"ab\n", "cd\n"}));
  EXPECT_EQ(cut("$", "ab\ncd\n"), (Pieces{"ab", "\ncd", "\n"}));
  EXPECT_EQ(cut(R"(\s$)", "ak\n"), (Pieces{"ak", "\n"}));
  EXPECT_EQ(cut(R"(\Aa|b\z)", "aabb"), (Pieces{"a", "ab", "b"}));
  EXPECT_EQ(cut("a.", "ab\nac"), (Pieces{"ab", "\n", "ac"}));
  EXPECT_EQ(cut("a.", "a\n"), (Pieces{"a\n"}));
}

TEST_F(RegexTest, WhiteSpaceAndCategoriesAreTheLibrarys) {
  EXPECT_EQ(cut(R"(\s+)", "a\u0085\u3000b\u180e c\u200bd"),
            (Pieces{"a", "\u0085\u3000", "b\u180e", " ", "c\u200bd"}));
  EXPECT_EQ(cut(R"(\p{S}+)", "a\U0001FA77b"), (Pieces{"a", "\U0001FA77", "b"}));  // Unicode 15
  EXPECT_EQ(cut(R"([^\p{L}]+)", "的1é²"), (Pieces{"的", "1", "é", "²"}));
  EXPECT_EQ(cut(R"(\d+|\D)", "1٣x"), (Pieces{"1٣", "x"}));
  EXPECT_EQ(cut(R"(\P{L}|\p{^N}+)", "ab1"), (Pieces{"ab", "1"}));
}

TEST_F(RegexTest, EscapesAreRubys) {
  EXPECT_EQ(cut(R"(\v)", "a\nb\vc"), (Pieces{"a\nb", "\v", "c"}));  // one character, not PCRE2's class
  EXPECT_EQ(cut(R"([\x41\u0042\x{7684}\-])", "xA-B的"), (Pieces{"x", "A", "-", "B", "的"}));
  EXPECT_EQ(cut(R"([\]\[\\^-]+)", "a]^-[\\b"), (Pieces{"a", "]^-[\\", "b"}));
}

TEST_F(RegexTest, BracesThatAreNoIntervalAreThemselves) {
  EXPECT_EQ(cut("{a", "x{ay"), (Pieces{"x", "{a", "y"}));
  EXPECT_EQ(cut("a{x", "a{x"), (Pieces{"a{x"}));
  EXPECT_EQ(cut("ba{,2}", "baaa"), (Pieces{"baa", "a"}));
  EXPECT_EQ(cut("a{2,3}", "aaaaa"), (Pieces{"aaa", "aa"}));
}

TEST_F(RegexTest, IgnoresCaseAsUnicodeDoes) {
  EXPECT_EQ(cut("(?i:k)", "kK\u212Ax"), (Pieces{"k", "K", "\u212A", "x"}));
  EXPECT_EQ(cut("(?i:'s)", "a'S'\u017F's"), (Pieces{"a", "'S", "'\u017F", "'s"}));
  EXPECT_EQ(cut("(?i:[^k])+", "ab\u212AK"), (Pieces{"ab", "\u212AK"}));
  EXPECT_EQ(cut("(?i:a)b", "AbAB"), (Pieces{"Ab", "AB"}));  // ends with its group
}

TEST_F(RegexTest, QuantifiersBacktrackAsWritten) {
  EXPECT_EQ(cut("a+?b|a", "aab"), (Pieces{"aab"}));
  EXPECT_EQ(cut("a++a|b", "aab"), (Pieces{"aa", "b"}));
  EXPECT_EQ(cut("(?>[0-9]+?)K", "11K"), (Pieces{"1", "1K"}));
  EXPECT_EQ(cut("a{1,3}(ba?)?+a", "aaa"), (Pieces{"aaa"}));
  EXPECT_EQ(cut(R"(\s+(?!\S)|\s+)", "a   b"), (Pieces{"a", "  ", " ", "b"}));
}

TEST_F(RegexTest, LiteralTakesNoCharacterAsSyntax) {
  EXPECT_EQ(cut(Regex::literal("e.", "t"), "ee.x"), (Pieces{"e", "e.", "x"}));
  EXPECT_EQ(cut(Regex::literal("(*UTF)", "t"), "a(*UTF)"), (Pieces{"a", "(*UTF)"}));
}

TEST(Regex, RefusesByNameWhatItWouldGetWrong) {
  EXPECT_NE(refusal(R"(a\wb)").find(R"(tokenizer.json: field: the pattern "a\wb" uses \w)"),
            std::string::npos);
  for (const char* pattern : {R"(\b)",
                              R"(\h)",
                              R"(\R)",
                              R"(\1)",
                              R"(\0)",
                              R"([\b])",
                              R"([a[b]])",
                              "[[:alpha:]]",
                              "[a&&b]",
                              R"(\p{Han})",
                              R"(\p{L)",
                              R"(\pL)",
                              "(?i)a",
                              "a(?m:.)",
                              "(?<n>a)",
                              "(?#a)",
                              "a**",
                              "a{2}{3}",
                              "a{2}?",
                              "a{1,2}+",
                              "*a",
                              "(?=a)*",
                              "^*",
                              "a{2,1}",
                              "a{70000}",
                              "(",
                              ")",
                              "[a",
                              "[]a]",
                              "[z-a]",
                              "[a-\\d]",
                              "[\\d-a]",
                              "[a-c-e]",
                              "\\",
                              R"(\xe9)",
                              R"(\x{110000})",
                              R"(\u12)",
                              R"(\ud800)",
                              "(?i:ss)",
                              "(?i:é)",
                              R"((?i:\p{L}))",
                              "(?<=a+)"})
    EXPECT_NE(refusal(pattern), "") << pattern;
}

TEST_F(RegexTest, LongHostileTextsNeitherFailNorOverflow) {
  constexpr size_t kSize = 2'000'000;
  const std::string deepseek =
      R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  const std::string unit[] = {" ", "a", "!", "\n", "\u3000", "\u0301", " \n", "\x01"};
  for (const std::string& u : unit) {
    std::string text;
    while (text.size() < kSize) text += u;
    text += "x";
    EXPECT_GE(cut(deepseek, text).size(), 1u);
  }
  // A group is kept on a stack for every repetition: more than the compiled matcher has.
  EXPECT_EQ(cut("(?:a|b)+c", std::string(200'000, 'a') + "c").size(), 1u);
}

TEST_F(RegexTest, ExponentialPatternsGiveUp) {
  const Regex regex("(?:(?:a|b)*)*c|(?:a+)+$", "f.json: p");
  EXPECT_THROW(cut(regex, std::string(60, 'a') + "!"), Error);
}

TEST(Regex, WithoutPcre2SaysWhatToDo) {
  if (Regex::available()) GTEST_SKIP() << "runs in builds without PCRE2: cmake -DCACHALOT_PCRE2=OFF";
  try {
    Regex("a+", "tokenizer.json: field");
    ADD_FAILURE() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(
        std::string(e.what()),
        "tokenizer.json: field: \"a+\" needs the regex library PCRE2, which this program was built without");
    EXPECT_NE(std::string(e.hint()).find("-DCACHALOT_PCRE2=ON"), std::string::npos);
  }
}

}  // namespace
}  // namespace cachalot
