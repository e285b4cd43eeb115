#include "backend/ref/number.h"

#include <gtest/gtest.h>

namespace cachalot {
namespace {

bf16 from_bits(uint16_t bits) {
  bf16 b;
  b.bits = bits;
  return b;
}

// Between every two neighbours: the middle goes to the even one, the least step off it to the nearer one.
TEST(Number, Bf16RoundsADoubleOnce) {
  for (uint32_t bits = 0; bits < 0x7F7F; ++bits) {
    const double low = float(from_bits(uint16_t(bits))), high = float(from_bits(uint16_t(bits + 1)));
    const double middle = (low + high) / 2;
    ASSERT_EQ(round_bf16(low).bits, bits);
    ASSERT_EQ(round_bf16(middle).bits, bits % 2 == 0 ? bits : bits + 1);
    ASSERT_EQ(round_bf16(std::nextafter(middle, 0)).bits, bits);
    ASSERT_EQ(round_bf16(std::nextafter(middle, INFINITY)).bits, bits + 1);
    ASSERT_EQ(round_bf16(-std::nextafter(middle, INFINITY)).bits, 0x8000u | (bits + 1));
  }
}

TEST(Number, Bf16KeepsTheEndsOfItsRange) {
  EXPECT_EQ(float(round_bf16(1e300)), INFINITY);
  EXPECT_EQ(float(round_bf16(-INFINITY)), -INFINITY);
  EXPECT_TRUE(std::isnan(float(round_bf16(NAN))));
  EXPECT_EQ(round_bf16(-1e-300).bits, 0x8000u);
  EXPECT_EQ(round_bf16(0x1p-133).bits, 1u);  // the smallest
}

TEST(Number, ReaderSeesTheValueInEveryFormat) {
  double d[4] = {1, 2, 3, 0.1};
  float f[4] = {1, 2, 3, 0.1f};
  bf16 b[4] = {bf16(1.0f), bf16(2.0f), bf16(3.0f), bf16(0.1f)};
  e4m3 e[4] = {e4m3(1.0f), e4m3(2.0f), e4m3(3.0f), e4m3(0.1f)};
  int32_t i[4] = {1, 2, 3, -4};
  float scale = 0.5f;
  // As [2, 1] with ld 2: elements 0 and 2.
  const auto view = [](void* data, DType t) {
    return Tensor{.data = data, .dtype = t, .rows = 2, .cols = 1, .ld = 2};
  };
  EXPECT_EQ(Reader(view(d, DType::f64))(1, 0), 3);
  EXPECT_EQ(Reader(view(f, DType::f32))(1, 0), 3);
  EXPECT_EQ(Reader(view(b, DType::bf16))[1], 3);
  EXPECT_EQ(Reader(view(i, DType::i32))[1], 3);
  Tensor scaled = view(e, DType::e4m3);
  scaled.scales = &scale;
  scaled.scale_ld = 1;
  EXPECT_EQ(Reader(scaled)(1, 0), 1.5);
  EXPECT_THROW(Reader(view(d, DType::f64))(2, 0), InternalError);
}

TEST(Number, IndicesOutsideTheirRangeAreCaught) {
  int32_t i[3] = {0, 4, -1};
  const Tensor t = make_tensor(i, DType::i32, 1, 3);
  EXPECT_EQ(Indices(t, 5)[1], 4);
  EXPECT_THROW(Indices(t, 4)[1], InternalError);
  EXPECT_THROW(Indices(t, 5)[2], InternalError);
  EXPECT_EQ(Indices(t, 5, kAnyNegative)[2], -1);
  EXPECT_THROW(Starts(t, 10), InternalError);
}

}  // namespace
}  // namespace cachalot
