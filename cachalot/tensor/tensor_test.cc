#include "tensor/tensor.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <numeric>
#include <vector>

namespace cachalot {
namespace {

struct Owned {  // 5 rows of 7 in memory 9 wide; element (r, c) is 100 r + c, the rest is NaN
  std::array<float, 45> memory;
  Tensor view;
  Owned() {
    memory.fill(std::nanf(""));
    for (int r = 0; r < 5; ++r)
      for (int c = 0; c < 7; ++c) memory[size_t(9 * r + c)] = float(100 * r + c);
    view = {.data = memory.data(), .dtype = DType::f32, .rows = 5, .cols = 7, .ld = 9};
  }
};

TEST(Tensor, SlicesPointAtTheirElements) {
  Owned x;
  const Tensor rows = x.view.slice_rows(2, 3), block = rows.slice_cols(4, 2);
  EXPECT_EQ(rows.rows, 3);
  EXPECT_EQ(block.cols, 2);
  EXPECT_EQ(block.matrix<float>()(1, 1), 305.0f);
  EXPECT_EQ(x.view.slice_rows(5, 0).rows, 0);  // the empty slice at the end is a slice
}

TEST(Tensor, RefusesSlicesOutsideAndTheWrongType) {
  Owned x;
  EXPECT_THROW(x.view.slice_rows(3, 3), InternalError);
  EXPECT_THROW(x.view.slice_rows(-1, 1), InternalError);
  EXPECT_THROW(x.view.slice_cols(0, 8), InternalError);
  EXPECT_THROW(x.view.matrix<double>(), InternalError);
  EXPECT_THROW(x.view.vector<float>(), InternalError);  // its rows have gaps between them
  EXPECT_EQ(x.view.slice_rows(1, 1).vector<float>()[6], 106.0f);
}

TEST(Tensor, DescribesItself) {
  Owned x;
  EXPECT_EQ(x.view.describe(), "f32 [5, 7] ld 9");
  EXPECT_EQ(make_tensor(nullptr, DType::bf16, 4096, 7168).describe(), "bf16 [4096, 7168]");
}

// Three stacked parts of 130 rows: blocks of 128 and 2 rows each, so six rows of scales.
TEST(Tensor, ScaleBlocksStartAnewWithEveryPart) {
  std::vector<float> scales(6 * 2);
  std::iota(scales.begin(), scales.end(), 0.0f);
  Tensor t{.dtype = DType::e4m3,
           .rows = 390,
           .cols = 200,
           .ld = 200,
           .scales = scales.data(),
           .scale_ld = 2,
           .part_rows = 130};
  std::vector<e4m3> codes(390 * 200);
  t.data = codes.data();
  EXPECT_EQ(t.scale(0, 0), 0);
  EXPECT_EQ(t.scale(127, 128), 1);
  EXPECT_EQ(t.scale(128, 0), 2);
  EXPECT_EQ(t.scale(129, 199), 3);
  EXPECT_EQ(t.scale(130, 0), 4);  // the second part's first row
  EXPECT_EQ(t.scale(389, 199), 11);
  const Tensor second = t.slice_rows(130, 130);  // a slice keeps finding its blocks
  EXPECT_EQ(second.scale(0, 0), 4);
  EXPECT_EQ(second.slice_rows(128, 2).scale(1, 128), 7);
  t.part_rows = 0;  // one part: blocks of 128 rows throughout
  EXPECT_EQ(t.scale_row(390 - 1), 3);
  EXPECT_THROW(t.slice_cols(64, 128), InternalError);
  EXPECT_EQ(t.slice_cols(128, 72).scale(127, 0), 1);
}

// Tiles of 1 x 128: the scales of one tile column of all rows, then those of the next.
TEST(Tensor, ScaleTilesOfRowsFollowTheirRows) {
  std::vector<float> scales(2 * 8);
  std::iota(scales.begin(), scales.end(), 0.0f);
  std::vector<e4m3> codes(5 * 208);
  const Tensor t{.data = codes.data(),
                 .dtype = DType::e4m3,
                 .rows = 5,
                 .cols = 200,
                 .ld = 208,
                 .scales = scales.data(),
                 .scale_ld = 8,
                 .scale_tile = ScaleTile::row};
  EXPECT_EQ(t.scale(0, 0), 0);
  EXPECT_EQ(t.scale(4, 127), 4);
  EXPECT_EQ(t.scale(3, 128), 11);
  const Tensor rows = t.slice_rows(2, 3), block = rows.slice_cols(128, 72);
  EXPECT_EQ(rows.scale(1, 0), 3);
  EXPECT_EQ(rows.slice_rows(1, 2).scale(1, 199), 12);
  EXPECT_EQ(block.scale(1, 71), 11);
  EXPECT_THROW(t.slice_cols(100, 100), InternalError);
}

TEST(Tensor, WithoutScalesTheFactorIsOne) {
  Owned x;
  EXPECT_EQ(x.view.scale(4, 6), 1.0f);
}

template <class T> Tensor vector_of(std::vector<T>& values) {
  return make_tensor(values.data(), dtype_of<T>, 1, int64_t(values.size()));
}

TEST(ErrorMetric, IsTheSquaredDistanceOverTheSquaredSizes) {
  std::vector<double> x{3, 4}, y{3, 5}, zero{0, 0};
  EXPECT_DOUBLE_EQ(error_metric(vector_of(x), vector_of(y)), 1.0 / (25 + 34));
  EXPECT_DOUBLE_EQ(error_metric(vector_of(y), vector_of(x)), 1.0 / (25 + 34));
  EXPECT_EQ(error_metric(vector_of(x), vector_of(x)), 0);
  EXPECT_EQ(error_metric(vector_of(zero), vector_of(zero)), 0);
  EXPECT_EQ(error_metric(vector_of(x), vector_of(zero)), 1);
}

TEST(ErrorMetric, NanAndInfinityFailEveryBound) {
  std::vector<double> x{1, 2}, nan{1, std::nan("")}, inf{1, INFINITY};
  EXPECT_FALSE(error_metric(vector_of(x), vector_of(nan)) <= 1);
  EXPECT_FALSE(error_metric(vector_of(nan), vector_of(nan)) <= 1);
  EXPECT_FALSE(error_metric(vector_of(inf), vector_of(inf)) <= 1);
  EXPECT_FALSE(error_metric(vector_of(x), vector_of(inf)) <= 1);
}

TEST(ErrorMetric, ComparesAcrossFormatsAndReadsScales) {
  std::vector<double> exact{1.5, -2, 0.25};
  std::vector<bf16> rounded{bf16(1.5f), bf16(-2.0f), bf16(0.25f)};
  std::vector<e4m3> codes{e4m3(3.0f), e4m3(-4.0f), e4m3(0.5f)};
  std::vector<int32_t> whole{1, -2, 0};
  float half = 0.5f;
  Tensor quantised = vector_of(codes);
  quantised.scales = &half, quantised.scale_ld = 1;
  EXPECT_EQ(error_metric(vector_of(exact), vector_of(rounded)), 0);
  EXPECT_EQ(error_metric(vector_of(exact), quantised), 0);
  EXPECT_GT(error_metric(vector_of(exact), vector_of(whole)), 0);
}

TEST(ErrorMetric, RefusesDifferentShapesAndIgnoresTheGapsBetweenRows) {
  Owned x, y;
  EXPECT_THROW(error_metric(x.view, x.view.slice_rows(0, 4)), InternalError);
  EXPECT_EQ(error_metric(x.view, y.view), 0);  // the gaps are NaN
}

}  // namespace
}  // namespace cachalot
