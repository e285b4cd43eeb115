#include "data/unicode.h"

#include <gtest/gtest.h>

#include "base/text.h"

namespace cachalot {
namespace {

bool in(std::string_view category, uint32_t c) {
  CodepointSet set;
  EXPECT_TRUE(add_category(category, set)) << category;
  return set.contains(c);
}

TEST(Unicode, CategoriesOfKnownCharacters) {
  EXPECT_TRUE(in("Lu", 'A') && in("L", 'A') && !in("Ll", 'A'));
  EXPECT_TRUE(in("Lo", 0x4E00) && in("Lo", 0x9FFF) && in("L", 0x20000));
  EXPECT_TRUE(in("Nd", '7') && in("No", 0xB2) && in("Nl", 0x2167) && in("N", 0x2167));
  EXPECT_TRUE(in("Mn", 0x301) && in("Po", '!') && in("Sc", '$') && in("Sm", '+') && in("Sk", '`'));
  EXPECT_TRUE(in("Zs", ' ') && in("Zl", 0x2028) && in("Zp", 0x2029) && in("Cc", 0) && in("Cn", 0x10FFFF));
}

TEST(Unicode, KnowsVersion16) {
  EXPECT_TRUE(in("So", 0x1FA77));  // pink heart, Unicode 15
  EXPECT_TRUE(in("Lo", 0x2EBF0));  // Han extension I, Unicode 15.1
  EXPECT_TRUE(in("Nd", 0x1CCF0));  // Unicode 16
}

TEST(Unicode, CategoriesPartAllCharacters) {
  CodepointSet all;
  int64_t count = 0;
  for (const char* name : {"L", "M", "N", "P", "S", "Z", "C"}) {
    CodepointSet set;
    ASSERT_TRUE(add_category(name, set));
    for (const CodepointRange& r : set.ranges()) count += r.last - r.first + 1;
    all.add(set);
  }
  EXPECT_EQ(count, 0x110000 - 0x800);
  EXPECT_EQ(all.ranges(), (std::vector<CodepointRange>{{0, 0xD7FF}, {0xE000, 0x10FFFF}}));
}

TEST(Unicode, UnknownCategoryIsReported) {
  CodepointSet set;
  EXPECT_FALSE(add_category("Han", set));
  EXPECT_FALSE(add_category("", set));
  EXPECT_FALSE(add_category("l", set));
  EXPECT_TRUE(set.ranges().empty());
}

TEST(Unicode, WhiteSpaceIsOnigurumas) {
  const std::vector<CodepointRange> expected{
      {0x09, 0x0D},     {0x20, 0x20},     {0x85, 0x85},     {0xA0, 0xA0},     {0x1680, 0x1680},
      {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}};
  EXPECT_EQ(white_space().ranges(), expected);
}

TEST(CodepointSet, MergesAndComplements) {
  CodepointSet set;
  set.add(5, 9);
  set.add(1, 2);
  set.add(3, 4);
  set.add(7, 20);
  EXPECT_EQ(set.ranges(), (std::vector<CodepointRange>{{1, 20}}));
  EXPECT_EQ(set.complement().ranges(),
            (std::vector<CodepointRange>{{0, 0}, {21, 0xD7FF}, {0xE000, 0x10FFFF}}));
  EXPECT_EQ(set.complement().complement().ranges(), set.ranges());
  EXPECT_TRUE(set.contains(20) && !set.contains(21));
}

TEST(Unicode, Utf8RoundTripsAtEveryLength) {
  for (const uint32_t c :
       {0u, 0x7Fu, 0x80u, 0x7FFu, 0x800u, 0xD7FFu, 0xE000u, 0xFFFFu, 0x10000u, 0x10FFFFu}) {
    std::string text;
    append_utf8(c, text);
    ASSERT_EQ(utf8_length(text, 0), int(text.size())) << c;
    EXPECT_EQ(decode_utf8(text, 0, int(text.size())), c);
  }
}

}  // namespace
}  // namespace cachalot
