#include "data/checksum.h"

#include <gtest/gtest.h>

#include <string>

namespace cachalot {
namespace {

// Values of the reference implementation.
TEST(Checksum, IsXxh64) {
  EXPECT_EQ(checksum64(""), 0xEF46DB3751D8E999u);
  EXPECT_EQ(checksum64("a"), 0xD24EC4F1A98C6E5Bu);
  EXPECT_EQ(checksum64("abc"), 0x44BC2CF5AD770999u);
  EXPECT_EQ(checksum64("Nobody inspects the spammish repetition"), 0xFBCEA83C8A378BF1u);  // all four lanes
}

TEST(Checksum, EveryBitOfEveryLengthCounts) {
  for (size_t n = 1; n <= 70; ++n) {
    std::string bytes(n, 'x');
    const uint64_t before = checksum64(bytes);
    for (size_t bit = 0; bit < 8 * n; ++bit) {
      bytes[bit / 8] = char(bytes[bit / 8] ^ 1 << bit % 8);
      EXPECT_NE(checksum64(bytes), before);
      bytes[bit / 8] = char(bytes[bit / 8] ^ 1 << bit % 8);
    }
    EXPECT_NE(checksum64(bytes, 1), before);
    EXPECT_NE(checksum64(bytes + '\0'), checksum64(bytes));
  }
}

}  // namespace
}  // namespace cachalot
