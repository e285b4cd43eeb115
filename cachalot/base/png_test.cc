#include "base/png.h"

#include <gtest/gtest.h>

namespace cachalot {
namespace {

TEST(Base64, KnownAnswers) {  // RFC 4648, section 10
  EXPECT_EQ(base64(""), "");
  EXPECT_EQ(base64("f"), "Zg==");
  EXPECT_EQ(base64("fo"), "Zm8=");
  EXPECT_EQ(base64("foo"), "Zm9v");
  EXPECT_EQ(base64("foobar"), "Zm9vYmFy");
  EXPECT_EQ(base64("\xff\xfe\xfd"), "//79");
}

// One red pixel, as Python's zlib and binascii have its parts.
TEST(Png, OnePixelByteByByte) {
  const std::string png = encode_png(1, 1, {Rgb{255, 0, 0}});
  const std::string expected(
      "\x89PNG\r\n\x1a\n"
      "\0\0\0\x0dIHDR\0\0\0\1\0\0\0\1\x08\x02\0\0\0\x90\x77\x53\xde"
      "\0\0\0\x0fIDAT\x78\x01\x01\x04\x00\xfb\xff\x00\xff\x00\x00\x03\x01\x01\x00\x8d\x1d\xe5\x82"
      "\0\0\0\0IEND\xae\x42\x60\x82",
      8 + 25 + 27 + 12);
  EXPECT_EQ(base64(png), base64(expected));
}

// More rows than one stored block holds.
TEST(Png, ManyPixelsAreCutIntoBlocks) {
  const std::string png = encode_png(300, 200, std::vector<Rgb>(60000, Rgb{1, 2, 3}));
  const size_t raw = 200 * (1 + 3 * 300), blocks = (raw + 65534) / 65535;
  EXPECT_EQ(png.size(), 8 + 25 + (12 + 2 + 5 * blocks + raw + 4) + 12);
}

}  // namespace
}  // namespace cachalot
