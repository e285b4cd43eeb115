#include "data/words.h"

#include <gtest/gtest.h>

namespace cachalot {
namespace {

std::vector<std::string> cut(std::string_view text) {
  Words words;
  find_words(text, words);
  std::vector<std::string> out;
  for (size_t i = 0; i < words.hash.size(); ++i)
    out.emplace_back(text.substr(words.begin[i], words.end[i] - words.begin[i]));
  return out;
}
std::vector<uint64_t> hashes(std::string_view text) {
  Words words;
  find_words(text, words);
  return words.hash;
}

TEST(Words, AreRunsOfLettersAndDigitsAndSingleIdeographs) {
  EXPECT_EQ(cut("Don't  stop-me_now, 3.14!"),
            (std::vector<std::string>{"Don", "t", "stop", "me", "now", "3", "14"}));
  EXPECT_EQ(cut("中文abc。日本のテスト 한국"),
            (std::vector<std::string>{"中", "文", "abc", "日", "本", "の", "テ", "ス", "ト", "한", "국"}));
  EXPECT_EQ(cut("e\u0301a 😀 \u200B"), (std::vector<std::string>{"e\u0301a"}));
  EXPECT_TRUE(cut("").empty());
  EXPECT_TRUE(cut(" .,;\n").empty());
}

TEST(Words, CaseSpacingAndPunctuationDoNotCount) {
  EXPECT_EQ(hashes("The quick\n\nBROWN fox."), hashes("  the  Quick, brown—FOX"));
  EXPECT_EQ(hashes("ÀÉÎ ŁÓDŹ ΑΒΓ ПРИВЕТ Ĳssel"), hashes("àéî łódź αβγ привет ĳssel"));
  EXPECT_EQ(hashes("ＡＢＣ１２３"), hashes("abc123"));
  EXPECT_NE(hashes("ab"), hashes("a b"));
  EXPECT_NE(hashes("word"), hashes("sword"));
}

TEST(Words, RollingHashIsTheHashOfEveryWindow) {
  std::vector<uint64_t> words;
  for (uint64_t i = 0; i < 50; ++i) words.push_back(mix(i / 3));
  for (const size_t n : {1, 2, 5, 13}) {
    RollingHash rolling(n);
    EXPECT_EQ(rolling.first(words.data()), hash_words(words.data(), n));
    for (size_t i = 1; i + n <= words.size(); ++i)
      ASSERT_EQ(rolling.next(words[i - 1], words[i + n - 1]), hash_words(words.data() + i, n));
  }
  EXPECT_NE(hash_words(words.data(), 2), hash_words(words.data(), 3));
}

}  // namespace
}  // namespace cachalot
