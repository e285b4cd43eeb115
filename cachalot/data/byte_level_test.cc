#include "data/byte_level.h"

#include <gtest/gtest.h>

namespace cachalot {
namespace {

TEST(ByteLevel, WritesBytesAsPublishedTokenizersDo) {
  EXPECT_EQ(write_bytes(" the\n"), "ĠtheĊ");
  EXPECT_EQ(write_bytes(std::string("\0\x7F\x80\xAD\xFF", 5)), "ĀġĢŃÿ");
}

TEST(ByteLevel, ReadsBackEveryByte) {
  std::string all;
  for (int i = 0; i < 256; ++i) all += char(i);
  EXPECT_EQ(read_bytes(write_bytes(all)), all);
}

TEST(ByteLevel, ReadsNothingFromOtherCharacters) {
  EXPECT_EQ(read_bytes("a b"), std::nullopt);  // a space is written Ġ
  EXPECT_EQ(read_bytes("<｜User｜>"), std::nullopt);
  EXPECT_EQ(read_bytes("\u0144"), std::nullopt);  // one past the alphabet
  EXPECT_EQ(read_bytes("\u00AD"), std::nullopt);
  EXPECT_EQ(read_bytes("\xC4"), std::nullopt);
}

}  // namespace
}  // namespace cachalot
