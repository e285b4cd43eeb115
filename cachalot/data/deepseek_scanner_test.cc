#include "data/deepseek_scanner.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/files.h"
#include "base/rng.h"
#include "base/text.h"
#include "data/pre_tokenizer.h"
#include "data/regex.h"
#include "data/unicode.h"

namespace cachalot {
namespace {

using Pieces = std::vector<std::string>;

Pieces cut(const PreTokenizer& pre_tokenizer, std::string_view text) {
  Pieces pieces;
  pre_tokenizer.pieces(text, [&](std::string_view piece) { pieces.emplace_back(piece); });
  return pieces;
}

const PreTokenizer& by_hand() {
  static const PreTokenizer pre_tokenizer(parse_json(kDeepSeekPreTokenizer, "t"), "t");
  return pre_tokenizer;
}

// The oracle: the patterns themselves.
const PreTokenizer& by_regex() {
  static const PreTokenizer pre_tokenizer(parse_json(kDeepSeekPreTokenizer, "t"), "t",
                                          PreTokenizerEngine::regex);
  return pre_tokenizer;
}

// Characters of every class and of every length, neighbours of class limits, and bytes that are none.
const std::vector<std::string>& characters() {
  static const std::vector<std::string> all = {"a",          "Z",
                                               "k",          "é",
                                               "д",          "\u0301",
                                               "\u1DC4",     "\u9FA6",
                                               "\U00020000", "\U0001D400",
                                               "!",          "'",
                                               "~",          ".",
                                               "«",          "。",
                                               "€",          "\U0001F600",
                                               " ",          " ",
                                               " ",          "\t",
                                               "\v",         "\u0085",
                                               "\u00A0",     "\u2003",
                                               "\u3000",     "\r",
                                               "\n",         "\n",
                                               "1",          "9",
                                               "٣",          "½",
                                               "\U0001D7CE", "一",
                                               "\u9FA5",     "の",
                                               "カ",         "\u3099",
                                               "・",         "\u30A0",
                                               "\u3040",     "\u3097",
                                               "\u3098",     "\x01",
                                               "\u200D",     "\u0378",
                                               "\uE000",     "\U000E0001",
                                               "\xFF",       "\x80",
                                               "\xE4\xB8",   "\xF0\x9F",
                                               "\xC3",       "\xED\xA0\x80",
                                               "\xC0\xAF",   "\xF4\x90\x80\x80"};
  return all;
}

std::string random_text(uint64_t seed, uint64_t most) {
  std::string text;
  const uint64_t count = random_below(seed, 1, 0, most + 1);
  for (uint64_t i = 0; i < count; ++i) {
    const std::string& c = characters()[random_below(seed, 2, i, characters().size())];
    const uint64_t times = random_below(seed, 3, i, 6) == 0 ? 1 + random_below(seed, 4, i, 12) : 1;
    for (uint64_t k = 0; k < times; ++k) text += c;
  }
  return text;
}

// Every expectation was seen in the Rust library.
TEST(DeepSeekScanner, CutsAsTheLibraryDoes) {
  const auto expect = [](std::string_view text, const Pieces& pieces) {
    EXPECT_EQ(cut(by_hand(), text), pieces);
  };
  EXPECT_TRUE(by_hand().by_hand());
  expect("", {});
  expect("don't I'LL 'café", {"don", "'t", " I", "'LL", " '", "café"});
  expect("a  b   \n\n  c \t d  ", {"a", " ", " b", "   \n\n", " ", " c", " \t", " d", "  "});
  expect("1234567 ٣٤½", {"123", "456", "7", " ", "٣٤½"});
  expect("今日は、カ・ー100円", {"今日は", "、", "カ", "・", "ー", "100", "円"});
  expect("...foo!!\r\n\n bar ,x", {"...", "foo", "!!\r\n\n", " bar", " ,", "x"});
  expect("\u0001\u0002x\u0003 \u0004\u0301", {"\u0001", "\u0002x", "\u0003", " ", "\u0004\u0301"});
  expect("  12  ", {"  ", "12", "  "});
  expect("\u3000\u3000一\u3000a\u9FA5\u9FA6", {"\u3000\u3000", "一", "\u3000a", "\u9FA5", "\u9FA6"});
  expect("\u3040\u3040\u3042\u3040", {"\u3040", "\u3040\u3042", "\u3040"});
  expect("😀😀a 😀", {"😀😀", "a", " 😀"});
}

TEST(DeepSeekScanner, AByteThatIsNotUtf8IsAPieceAndEndsTheTextBeforeIt) {
  EXPECT_EQ(cut(by_hand(), "a \xFF b"), (Pieces{"a", " ", "\xFF", " b"}));
  EXPECT_EQ(cut(by_hand(), "  \xE4\xB8"), (Pieces{"  ", "\xE4", "\xB8"}));
  EXPECT_EQ(cut(by_hand(),
                "12\xED\xA0\x80"
                "3456"),
            (Pieces{"12", "\xED", "\xA0", "\x80", "345", "6"}));
}

TEST(DeepSeekScanner, ClassesAreThoseOfTheUnicodeTables) {
  const CharClasses& classes = CharClasses::get();
  const auto set = [](std::initializer_list<const char*> names) {
    CodepointSet result;
    for (const char* name : names) EXPECT_TRUE(add_category(name, result));
    return result;
  };
  const auto expect = [&](const CodepointSet& members, std::initializer_list<CharClass> kinds) {
    std::vector<bool> inside(0x110000);
    for (const CodepointRange& r : members.ranges())
      for (uint32_t c = r.first; c <= r.last; ++c) inside[c] = true;
    int wrong = 0;
    for (uint32_t c = 0; c < 0x110000; ++c)
      wrong += inside[c] != (std::find(kinds.begin(), kinds.end(), classes[c]) != kinds.end());
    EXPECT_EQ(wrong, 0);
  };
  expect(set({"L", "M"}), {CharClass::word, CharClass::han_word});
  expect(set({"P", "S"}), {CharClass::symbol, CharClass::han_symbol});
  expect(set({"N"}), {CharClass::number});
  expect(white_space(), {CharClass::space, CharClass::blank, CharClass::line_end});
  CodepointSet han;
  han.add(0x4E00, 0x9FA5);
  han.add(0x3040, 0x30FF);
  expect(han, {CharClass::han_word, CharClass::han_symbol, CharClass::han_other});
}

// Every code point of the two planes in use, and samples of the others, whose runs are long; all classes are
// checked above.
TEST(DeepSeekScanner, EqualsPcre2OnCodePointsOfAllPlanes) {
  if (!Regex::available()) GTEST_SKIP() << "runs where libpcre2-dev is installed (scripts/setup.sh installs it)";
  for (uint32_t first = 0; first < 0x110000; first += 0x400) {
    std::string text;
    for (uint32_t c = first; c < first + 0x400; ++c) {
      if ((c >= 0xD800 && c < 0xE000) || (c >= 0x20000 && c % 32 != 0)) continue;
      std::string character;
      append_utf8(c, character);
      // After a letter, before one; alone between spaces; doubled before Han; after a symbol and before a
      // line end.
      text += "a" + character + "b " + character + " " + character + character + "的." + character + "\n";
    }
    ASSERT_EQ(cut(by_hand(), text), cut(by_regex(), text)) << "U+" << std::hex << first;
  }
}

TEST(DeepSeekScanner, EqualsPcre2OnRandomTexts) {
  if (!Regex::available()) GTEST_SKIP() << "runs where libpcre2-dev is installed (scripts/setup.sh installs it)";
  for (uint64_t seed = 0; seed < 60'000; ++seed) {
    const std::string text = random_text(seed, seed % 3 ? 8 : 40);
    ASSERT_EQ(cut(by_hand(), text), cut(by_regex(), text)) << seed;
  }
}

TEST(DeepSeekScanner, EqualsPcre2OnRealText) {
  if (!Regex::available()) GTEST_SKIP() << "runs where libpcre2-dev is installed (scripts/setup.sh installs it)";
  const char* root = std::getenv("CACHALOT_SOURCE");
  for (const char* name : {"many_scripts.txt", "shakespeare.txt"}) {
    const std::string text = read_file(std::string(root ? root : ".") + "/tests/data/text/" + name);
    EXPECT_EQ(cut(by_hand(), text), cut(by_regex(), text)) << name;
  }
}

TEST(DeepSeekScanner, ASafeCutChangesNoPiece) {
  int cuts = 0;
  for (uint64_t seed = 0; seed < 20'000; ++seed) {
    const std::string text = random_text(seed + 1'000'000, 14);
    const Pieces whole = cut(by_hand(), text);
    for (size_t from = 0; from <= text.size(); ++from) {
      const size_t at = by_hand().safe_cut(text, from);
      ASSERT_TRUE(from <= at && at <= text.size());
      Pieces parts = cut(by_hand(), text.substr(0, at));
      for (std::string& piece : cut(by_hand(), text.substr(at))) parts.push_back(std::move(piece));
      ASSERT_EQ(parts, whole) << seed << " " << from << " " << at;
      cuts += at > 0 && at < text.size();
    }
  }
  EXPECT_GT(cuts, 100'000);
}

TEST(DeepSeekScanner, ASafeCutIsNearInRealText) {
  const std::string english = "It was the best of times, it was the worst of times; ",
                    chinese = "今天天气很好，我们去公园吧。";
  for (const std::string& text : {english + english, chinese + chinese})
    for (size_t from = 1; from < text.size() / 2; ++from)
      EXPECT_LT(by_hand().safe_cut(text, from), from + 30) << text;
  EXPECT_EQ(by_hand().safe_cut(std::string(1000, 'x'), 10), 1000u);
}

TEST(DeepSeekScanner, StandsInOnlyForExactlyItsPatterns) {
  Json json = parse_json(kDeepSeekPreTokenizer, "t");
  EXPECT_TRUE(PreTokenizer(json, "t").by_hand());
  json["pretokenizers"][3]["trim_offsets"] = false;  // offsets are not ours
  EXPECT_TRUE(PreTokenizer(json, "t").by_hand());
  if (!Regex::available())
    GTEST_SKIP() << "the rest runs where libpcre2-dev is installed (scripts/setup.sh installs it)";
  Json other = json;
  other["pretokenizers"][0]["pattern"]["Regex"] = "\\p{N}{1,2}";
  EXPECT_FALSE(PreTokenizer(other, "t").by_hand());
  other = json;
  other["pretokenizers"][0]["pattern"] = {{"String", "\\p{N}{1,3}"}};
  EXPECT_FALSE(PreTokenizer(other, "t").by_hand());
  other = json;
  other["pretokenizers"][3]["add_prefix_space"] = true;
  EXPECT_FALSE(PreTokenizer(other, "t").by_hand());
  other = json;
  other["pretokenizers"][3]["use_regex"] = true;
  EXPECT_FALSE(PreTokenizer(other, "t").by_hand());
  other = json;
  other["pretokenizers"].erase(1);
  EXPECT_FALSE(PreTokenizer(other, "t").by_hand());
}

}  // namespace
}  // namespace cachalot
