#include "data/checksum.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "base/error.h"
#include "base/files.h"

namespace cachalot {
namespace {

// Values of the reference implementation.
TEST(Checksum, IsXxh64) {
  EXPECT_EQ(checksum64(""), 0xEF46DB3751D8E999u);
  EXPECT_EQ(checksum64("a"), 0xD24EC4F1A98C6E5Bu);
  EXPECT_EQ(checksum64("abc"), 0x44BC2CF5AD770999u);
  EXPECT_EQ(checksum64("Nobody inspects the spammish repetition"), 0xFBCEA83C8A378BF1u);  // all four lanes
}

TEST(Checksum, PiecesHaveTheChecksumOfTheWhole) {
  std::string bytes;
  for (int i = 0; i < 200; ++i) bytes += char(i * i);
  for (size_t n = 0; n <= bytes.size(); n += 7)
    for (size_t piece = 1; piece <= 70; ++piece) {
      Checksum64 sum(5);
      for (size_t at = 0; at < n; at += piece)
        sum.add(std::string_view(bytes).substr(at, std::min(piece, n - at)));
      EXPECT_EQ(sum.get(), checksum64(std::string_view(bytes).substr(0, n), 5)) << n << " by " << piece;
    }
}

TEST(Checksum, OfAFileIsThatOfItsBytes) {
  const std::string path = testing::TempDir() + "checksum-" + std::to_string(::getpid());
  std::string bytes(700'001, 'x');  // several pieces, and a rest
  bytes[400'000] = 'y';
  write_file_atomic(path, bytes);
  const FileChecksum file = checksum_file(path);
  EXPECT_EQ(file.bytes, 700'001);
  EXPECT_EQ(file.checksum, checksum64(bytes));
  ::unlink(path.c_str());
  EXPECT_THROW(checksum_file(path), Error);
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
