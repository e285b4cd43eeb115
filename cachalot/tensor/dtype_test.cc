#include "tensor/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace cachalot {
namespace {

float next(float x) { return std::nextafter(x, INFINITY); }
float before(float x) { return std::nextafter(x, -INFINITY); }

bf16 bf16_of(uint16_t bits) {
  bf16 b;
  b.bits = bits;
  return b;
}
e4m3 e4m3_of(int bits) {
  e4m3 e;
  e.bits = uint8_t(bits);
  return e;
}

TEST(Bf16, EveryCodeSurvivesTheWayThroughFloat) {
  for (int bits = 0; bits < 65536; ++bits) {
    const bf16 b = bf16_of(uint16_t(bits));
    const float x = float(b);
    if (std::isnan(x)) EXPECT_TRUE(std::isnan(float(bf16(x)))) << bits;
    else ASSERT_EQ(bf16(x).bits, bits);
  }
}

TEST(Bf16, RoundsToTheNearestTiesToEven) {
  for (int bits = 0; bits < 0x7F80 - 1; ++bits) {  // every pair of positive neighbours
    const float low = float(bf16_of(uint16_t(bits))), high = float(bf16_of(uint16_t(bits + 1)));
    const float middle = low + (high - low) / 2;
    ASSERT_EQ(bf16(before(middle)).bits, bits);
    ASSERT_EQ(bf16(middle).bits, bits + (bits & 1));
    ASSERT_EQ(bf16(next(middle)).bits, bits + 1);
    ASSERT_EQ(bf16(-middle).bits, 0x8000 | (bits + (bits & 1)));
  }
  EXPECT_EQ(bf16(std::numeric_limits<float>::max()).bits, 0x7F80);  // beyond the largest: infinity
}

TEST(Bf16, NanStaysNanWhateverItsPayload) {
  for (const uint32_t u : {0x7F800001u, 0x7FFFFFFFu, 0xFF800001u, 0x7FC00000u})
    EXPECT_TRUE(std::isnan(float(bf16(std::bit_cast<float>(u))))) << u;
}

// The value of a code, straight from the definition of the format (arXiv:2209.05433, table 1).
double e4m3_value(int code) {
  const int sign = code >> 7, exponent = code >> 3 & 15, mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) return std::nan("");
  const double m = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return sign ? -m : m;
}

TEST(E4m3, DecodesEveryCode) {
  for (int code = 0; code < 256; ++code) {
    const double want = e4m3_value(code), got = float(e4m3_of(code));
    if (std::isnan(want)) EXPECT_TRUE(std::isnan(got)) << code;
    else EXPECT_EQ(got, want) << code;
    EXPECT_EQ(std::signbit(got), code >= 128) << code;
  }
  EXPECT_EQ(float(e4m3_of(0x7E)), e4m3::kMax);
}

TEST(E4m3, EncodesItsOwnValues) {
  for (int code = 0; code < 256; ++code) {
    if (std::isnan(e4m3_value(code))) continue;
    EXPECT_EQ(e4m3(float(e4m3_value(code))).bits, code);
  }
}

TEST(E4m3, RoundsToTheNearestTiesToEven) {
  for (int code = 0; code < 0x7E; ++code) {  // every pair of positive neighbours, subnormals among them
    const float middle = float((e4m3_value(code) + e4m3_value(code + 1)) / 2);
    EXPECT_EQ(e4m3(before(middle)).bits, code);
    EXPECT_EQ(e4m3(middle).bits, code + (code & 1));
    EXPECT_EQ(e4m3(next(middle)).bits, code + 1);
    EXPECT_EQ(e4m3(-middle).bits, 0x80 | (code + (code & 1)));
  }
}

TEST(E4m3, BeyondTheRangeIsNanNotAWrap) {
  EXPECT_EQ(e4m3(464.0f).bits, 0x7E);  // the tie goes to the even neighbour, 448
  EXPECT_TRUE(std::isnan(float(e4m3(next(464.0f)))));
  for (const float x : {480.0f, 1e4f, 1e38f, INFINITY, std::nanf("")}) {
    EXPECT_TRUE(std::isnan(float(e4m3(x)))) << x;
    EXPECT_TRUE(std::isnan(float(e4m3(-x)))) << x;
  }
  EXPECT_EQ(e4m3(1e-30f).bits, 0);
  EXPECT_EQ(e4m3(-1e-30f).bits, 0x80);
}

TEST(DType, SizesAndNamesBelongTogether) {
  EXPECT_EQ(size_of(DType::f64), int64_t(sizeof(double)));
  EXPECT_EQ(size_of(DType::f32), int64_t(sizeof(float)));
  EXPECT_EQ(size_of(DType::bf16), int64_t(sizeof(bf16)));
  EXPECT_EQ(size_of(DType::e4m3), int64_t(sizeof(e4m3)));
  EXPECT_EQ(size_of(DType::i32), int64_t(sizeof(int32_t)));
  EXPECT_EQ(name_of(DType::bf16), "bf16");
  EXPECT_EQ(dtype_of<const float>, DType::f32);
}

}  // namespace
}  // namespace cachalot
