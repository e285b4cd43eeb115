// The tools that other tests trust must themselves be able to fail.
#include "backend/testing.h"

namespace cachalot {
namespace {

using namespace testing;

class TestingTest : public Test {
 protected:
  std::unique_ptr<Device> device = open_device("ref");
  Stream s{*device};
  TestTensors t{*device, s, 3};
};

TEST_F(TestingTest, OneSeedGivesTheSameNumbersOnEveryDevice) {
  const auto fake = open_device("fake", {.threads = 1});
  Stream f(*fake);
  TestTensors u(*fake, f, 3), v(*fake, f, 4);
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::e4m3}) {
    const std::vector<double> x = read(s, t.normal(dtype, 3, 5, 2)), y = read(f, u.normal(dtype, 3, 5, 2, 7));
    EXPECT_EQ(x, y);
    EXPECT_NE(x, read(f, v.normal(dtype, 3, 5, 2)));
    EXPECT_NE(x, read(s, t.normal(dtype, 3, 5, 2))) << "the next tensor is another one";
    u.normal(dtype, 3, 5, 2);  // keeps in step
  }
  EXPECT_EQ(read(s, t.normal_e4m3(300, 130, 150)), read(f, u.normal_e4m3(300, 130, 150, 2)));
}

TEST_F(TestingTest, PaddingIsNaNAndWritesToItAreSeen) {
  const Tensor x = t.normal(DType::bf16, 3, 5, 1, 2);
  EXPECT_EQ(x.ld, 7);
  EXPECT_TRUE(t.padding_intact(x));
  Tensor wide = x;
  wide.cols = 6;
  on(s).fill({.y = wide.slice_rows(1, 1), .value = 0});
  EXPECT_FALSE(t.padding_intact(x));
}

TEST_F(TestingTest, GarbageIsNaN) {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::e4m3})
    for (const double x : read(s, t.garbage(dtype, 2, 3))) EXPECT_TRUE(std::isnan(x)) << name_of(dtype);
  EXPECT_EQ(read_indices(s, t.garbage(DType::i32, 1, 2)), (std::vector<int32_t>{-1, -1}));
}

TEST_F(TestingTest, ScalesOfStackedPartsComeAlong) {
  const Tensor w = t.normal_e4m3(300, 130, 150);  // two parts of 150 rows: 2 blocks of rows each
  const HostTensor all = download(s, w), second = download(s, w.slice_rows(150, 150));
  EXPECT_EQ(all(150, 0), second(0, 0));
  EXPECT_EQ(all(299, 129), second(149, 129));
  EXPECT_NE(all.tensor().scale(149, 0), all.tensor().scale(150, 0));
}

TEST_F(TestingTest, MetricFailsOnDifferenceSizeAndNaN) {
  const std::vector<double> x{1, 2, 3};
  EXPECT_TRUE(metric_at_most("", "", "", x, x, 0));
  EXPECT_FALSE(metric_at_most("", "", "", x, std::vector<double>{1, 2, 3.1}, 1e-4));
  EXPECT_TRUE(metric_at_most("", "", "", x, std::vector<double>{1, 2, 3.1}, 1e-3));
  EXPECT_FALSE(metric_at_most("", "", "", x, std::vector<double>{1, 2}, 1));
  EXPECT_FALSE(metric_at_most("", "", "", x, std::vector<double>{1, 2, NAN}, 1));
}

TEST_F(TestingTest, NumericGradientOfACubicAndItsInputIsRestored) {
  const Tensor x = t.values(DType::f64, 1, 3, {1, -2, 0.5}, 2);
  const auto loss = [&] {
    double sum = 0;
    for (const double v : read(s, x)) sum += v * v * v;
    return sum;
  };
  EXPECT_METRIC(numeric_gradient(s, x, loss), (std::vector<double>{3, 12, 0.75}), kFiniteDifferences);
  EXPECT_EQ(read(s, x), (std::vector<double>{1, -2, 0.5}));
}

}  // namespace
}  // namespace cachalot
