#include "base/text.h"

#include <gtest/gtest.h>

namespace cachalot {
namespace {

TEST(Text, HumanUnits) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1536), "1.50 KiB");
  EXPECT_EQ(human_bytes(3.0 * (1ll << 40)), "3.00 TiB");
  EXPECT_EQ(human_count(999), "999");
  EXPECT_EQ(human_count(12345678), "12.3M");
  EXPECT_EQ(human_count(6.71e11), "671.0B");
  EXPECT_EQ(human_seconds(0.25), "0.2 s");
  EXPECT_EQ(human_seconds(59), "59 s");
  EXPECT_EQ(human_seconds(247), "4 m 07 s");
  EXPECT_EQ(human_seconds(3661), "1 h 01 m");
  EXPECT_EQ(human_seconds(100000), "1 d 03 h");
  EXPECT_EQ(human_seconds(-1), "?");
}

TEST(Text, NearestFindsTyposAndNothingFar) {
  const std::vector<std::string> keys = {"hidden_size", "n_group", "topk_group"};
  EXPECT_EQ(nearest("hiden_size", keys), "hidden_size");
  EXPECT_EQ(nearest("n_groups", keys), "n_group");
  EXPECT_EQ(nearest("zzzzzzzz", keys), "");
  EXPECT_EQ(nearest("x", {}), "");
}

// Unicode 15, table 3-7: the first and last sequence of every row, and their neighbours outside.
TEST(Utf8, LengthAcceptsExactlyWellFormedSequences) {
  const std::pair<const char*, int> cases[] = {{"\x7F", 1},
                                               {"\x80", 0},
                                               {"\xC1\xBF", 0},
                                               {"\xC2\x80", 2},
                                               {"\xDF\xBF", 2},
                                               {"\xC2\x7F", 0},
                                               {"\xC2\xC0", 0},
                                               {"\xE0\x9F\xBF", 0},
                                               {"\xE0\xA0\x80", 3},
                                               {"\xED\x9F\xBF", 3},
                                               {"\xED\xA0\x80", 0},
                                               {"\xEE\x80\x80", 3},
                                               {"\xEF\xBF\xBF", 3},
                                               {"\xE1\x80\x7F", 0},
                                               {"\xF0\x8F\xBF\xBF", 0},
                                               {"\xF0\x90\x80\x80", 4},
                                               {"\xF4\x8F\xBF\xBF", 4},
                                               {"\xF4\x90\x80\x80", 0},
                                               {"\xF5\x80\x80\x80", 0},
                                               {"\xFF", 0},
                                               {"\xE2\x82", 0},
                                               {"\xF0\x9F\x98", 0}};
  for (const auto& [text, length] : cases)
    EXPECT_EQ(utf8_length(text, 0), length) << testing::PrintToString(text);
  EXPECT_EQ(utf8_length("aé", 1), 2);
}

TEST(Utf8, CompletePrefixHoldsBackOnlyWhatMayStillBecomeACharacter) {
  const std::string text = "aé€😀";  // 1 + 2 + 3 + 4 bytes
  const size_t starts[] = {0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10};
  for (size_t n = 0; n <= text.size(); ++n)
    EXPECT_EQ(utf8_complete_prefix(text.substr(0, n)), starts[n]) << n;
  EXPECT_EQ(utf8_complete_prefix("a\xFF"), 2u);  // never a character: print it
  EXPECT_EQ(utf8_complete_prefix("a\x80\x80\x80"), 4u);
  EXPECT_EQ(utf8_complete_prefix("\xED\xA0"), 2u);  // half a surrogate can never be completed
  EXPECT_EQ(utf8_complete_prefix("\xE0\x80"), 2u);  // overlong
}

TEST(Utf8, LossyReplacesEveryBadByteAndNothingElse) {
  EXPECT_EQ(utf8_lossy("aé€😀"), "aé€😀");
  EXPECT_EQ(utf8_lossy("a\xFFz"), "a\xEF\xBF\xBDz");
  EXPECT_EQ(utf8_lossy("\xE2\x82"), "\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(utf8_lossy(""), "");
}

}  // namespace
}  // namespace cachalot
