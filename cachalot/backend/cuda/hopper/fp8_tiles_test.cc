#include "backend/cuda/hopper/fp8_tiles.h"

#include <gtest/gtest.h>

#include <array>
#include <set>

#include "backend/cuda/hopper/tested_shapes.h"

namespace cachalot::cuda::hopper {
namespace {

constexpr int kH200 = 132;

TEST(Fp8Tiles, EveryKernelFitsTheMultiprocessor) {
  const auto fits = [](std::span<const Fp8Choice> choices) {
    for (const Fp8Choice& c : choices) {
      const Fp8Kernel& k = c.kernel;
      SCOPED_TRACE(testing::Message() << k.tile_m() << " x " << k.tile_n() << ", " << k.stages << " stages");
      EXPECT_LE(k.shared() * k.blocks_per_sm, 232448 - 1024 * (k.blocks_per_sm - 1));
      EXPECT_LE(k.cluster(), 8);  // what every Hopper card can place
      EXPECT_EQ(k.columns % 16, 0);
      EXPECT_TRUE(!k.aligned || k.tile_n() % 128 == 0 || 128 % k.tile_n() == 0);
      EXPECT_LE(k.groups(), 32);               // one lane each
      EXPECT_LE(k.tile_m() / k.share_n, 256);  // a copy's box
      EXPECT_LE(k.tile_n() / k.share_m, 256);
      EXPECT_FALSE(k.turns && k.overlap);
      EXPECT_TRUE(k.lag == 0 || (k.turns && k.math() == 2 && k.lag + 1 < k.stages));
      // Registers: sums and accumulators beside what a loop needs.
      EXPECT_LE(k.width() / 2 + (k.overlap ? 2 : 1) * k.columns / 2 + 24,
                (65536 / k.blocks_per_sm - 40 * 128) / (k.math() * 128));
    }
  };
  fits(kFp8Dense), fits(kFp8DenseF32), fits(kFp8DenseAdd), fits(kFp8Grouped), fits(kFp8GroupedF32),
      fits(kFp8Masked), fits(kFp8WeightGrad), fits(kFp8DenseWeightGrad);
}

struct Expected {
  int64_t m, n, k;
  int tile_m, tile_n, splits;
};

TEST(Fp8Tiles, DeepSeekShapesTakeTheTileThatMeasuredFastest) {
  const Expected all[] = {
      {64, 2112, 7168, 64, 64, 4},      {64, 24576, 1536, 64, 96, 1},     {64, 32768, 512, 64, 128, 1},
      {64, 7168, 16384, 64, 128, 4},    {64, 4096, 7168, 64, 64, 2},      {64, 7168, 2048, 64, 64, 1},
      {128, 2112, 7168, 64, 64, 2},     {128, 24576, 1536, 128, 192, 1},  {128, 32768, 512, 128, 128, 1},
      {128, 7168, 16384, 128, 112, 2},  {128, 4096, 7168, 128, 64, 2},    {128, 7168, 2048, 128, 64, 1},
      {4096, 2112, 7168, 128, 176, 1},  {4096, 24576, 1536, 128, 192, 1}, {4096, 32768, 512, 128, 192, 1},
      {4096, 7168, 16384, 128, 256, 1}, {4096, 4096, 7168, 128, 256, 1},  {4096, 7168, 2048, 128, 256, 1},
  };
  for (const Expected& e : all) {
    SCOPED_TRACE(testing::Message() << e.m << " x " << e.n << " x " << e.k);
    const Fp8Kernel& k = kFp8Dense[size_t(choose(kFp8Dense, {.m = e.m, .n = e.n, .k = e.k}, kH200))].kernel;
    EXPECT_EQ(k.tile_m(), e.tile_m);
    EXPECT_EQ(k.tile_n(), e.tile_n);
    EXPECT_EQ(k.splits, e.splits);
  }
}

TEST(Fp8Tiles, ExpertsShareWeightsWhereTheirRowsFillTheUnits) {
  const auto grouped = [](int64_t experts, int64_t m, int64_t n, int64_t k) {
    return kFp8Grouped[size_t(choose(kFp8Grouped, {.m = m, .n = n, .k = k, .experts = experts}, kH200))]
        .kernel;
  };
  for (const int64_t m : {4096, 8192}) {
    EXPECT_EQ(grouped(32768 / m, m, 4096, 7168).share_m, 2);
    EXPECT_EQ(grouped(32768 / m, m, 4096, 7168).lag, 0);
    EXPECT_EQ(grouped(32768 / m, m, 7168, 2048).share_m, 2);
    EXPECT_EQ(grouped(32768 / m, m, 7168, 2048).lag, 1);
  }
  for (const int64_t m : {256, 300, 1024}) {
    EXPECT_EQ(grouped(32, m, 4096, 7168).share_m, 1);
    EXPECT_EQ(grouped(32, m, 4096, 7168).tile_m(), 128);
  }
}

TEST(Fp8Tiles, MaskedRowsTakeTheWidthThatFillsTheWaves) {
  for (const auto& [experts, m] : {std::array<int64_t, 2>{1, 1024}, {2, 512}, {4, 256}}) {
    const auto width = [&](int64_t n, int64_t k) {
      return kFp8Masked[size_t(choose(kFp8Masked, {.m = m, .n = n, .k = k, .experts = experts}, kH200))]
          .kernel.tile_n();
    };
    EXPECT_EQ(width(4096, 7168), 256);
    EXPECT_EQ(width(7168, 2048), 224);
  }
}

TEST(Fp8Tiles, LongSumsOfFewTilesAreCutAmongBlocks) {
  for (const auto& [m, n, k, splits] : {std::array<int64_t, 4>{1024, 1024, 32768, 2},
                                        {576, 1024, 32768, 2},
                                        {512, 1024, 32768, 3},
                                        {1024, 384, 32768, 4},
                                        {7168, 2048, 4096, 1},
                                        {24576, 1536, 4096, 1}}) {
    const int chosen = choose(kFp8DenseWeightGrad, {.m = m, .n = n, .k = k}, kH200);
    EXPECT_EQ(kFp8DenseWeightGrad[chosen].kernel.splits, splits) << m << " x " << n << " x " << k;
  }
}

// A kernel that no shape of products_test.cc takes would be compared with nothing.
TEST(Fp8Tiles, EveryKernelIsTakenByATestedShape) {
  const auto missing = [](std::span<const Fp8Choice> choices, const std::vector<Fp8Shape>& shapes) {
    std::set<int> left;
    for (int i = 0; i < int(choices.size()); ++i) left.insert(i);
    for (const Fp8Shape& s : shapes) left.erase(choose(choices, s, kH200));
    return left;
  };
  const auto all = [](std::span<const TestedShape> tested) {
    std::vector<Fp8Shape> shapes;
    for (const auto& [m, n, k] : tested) shapes.push_back({.m = m, .n = n, .k = k});
    return shapes;
  };
  std::vector<Fp8Shape> grouped, apart, gradients;  // as fp8_grouped.cu and fp8_weight_grad.cu ask
  for (const TestedRoom& c : kTestedRooms)
    apart.push_back({.m = c.expected ? c.expected : 64, .n = c.n, .k = c.k, .experts = c.experts()});
  for (const TestedExperts& c : kTestedExperts)
    grouped.push_back(
        {.m = (c.rows() + c.experts() - 1) / c.experts(), .n = c.n, .k = c.k, .experts = c.experts()});
  for (const TestedGradients& c : kTestedGradients)
    gradients.push_back({.m = c.m,
                         .n = c.n,
                         .k = (c.offsets.back() + c.experts() - 1) / c.experts(),
                         .experts = c.experts()});
  const std::set<int> none;
  EXPECT_EQ(missing(kFp8Dense, all(kTestedDense)), none);
  EXPECT_EQ(missing(kFp8DenseF32, all(kTestedDense)), none);
  EXPECT_EQ(missing(kFp8DenseAdd, all(kTestedAdd)), none);
  EXPECT_EQ(missing(kFp8DenseWeightGrad, all(kTestedGradient)), none);
  EXPECT_EQ(missing(kFp8Grouped, grouped), none);
  EXPECT_EQ(missing(kFp8Masked, apart), none);
  EXPECT_EQ(missing(kFp8WeightGrad, gradients), none);
}

TEST(Fp8Tiles, MoreWorkNeverTakesLess) {
  for (const Fp8Choice& c : kFp8Dense)
    for (const int64_t m : {1, 64, 128, 1000, 4096})
      for (const int64_t n : {16, 2112, 7168})
        for (const int64_t k : {16, 512, 7168}) {
          const double time = predicted_time(c, {.m = m, .n = n, .k = k}, kH200);
          EXPECT_GT(time, 0);
          EXPECT_LE(time, 1.001 * predicted_time(c, {.m = m + 64, .n = n, .k = k}, kH200) + 40);
          EXPECT_LE(time, predicted_time(c, {.m = m, .n = n, .k = 4 * k}, kH200) * 1.001);
        }
}

}  // namespace
}  // namespace cachalot::cuda::hopper
