#include "backend/ops/elementwise.h"

#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

const int64_t kShapes[][2] = {{0, 3}, {1, 1}, {3, 7}, {33, 129}, {1, 20000}, {130, 65}};
const DType kActs[] = {DType::f32, DType::bf16};

TEST(Fill, WritesEveryFormatAndNoPadding) {
  for (const auto& [rows, cols] : kShapes)
    for (const DType format : {DType::f64, DType::f32, DType::bf16, DType::i32})
      for (const double value : {0.0, -2.75})  // i32 truncates to -2
        expect_like_ref([&](Bench& b) -> Outputs {
          const Tensor y = b.t.garbage(format, rows, cols, 3);
          on(b.s).fill({.y = y, .value = value});
          return {y};
        });
}

TEST(Cast, RoundsOnceFromEveryFormat) {
  for (const auto& [rows, cols] : kShapes)
    for (const DType to : kActs)
      for (const DType from : {DType::f32, DType::bf16, DType::e4m3})
        expect_like_ref([&](Bench& b) -> Outputs {
          const Tensor x =
              from == DType::e4m3 ? b.t.normal_e4m3(rows, cols, 0, 2) : b.t.normal(from, rows, cols, 1, 2);
          const Tensor y = b.t.garbage(to, rows, cols, 1);
          on(b.s).cast({.x = x, .y = y});
          return {y};
        });
  expect_like_ref([](Bench& b) -> Outputs {
    const Tensor y = b.t.garbage(DType::i32, 2, 2);
    on(b.s).cast({.x = b.t.indices(2, 2, {1, -5, 2000000001, 0}), .y = y});
    return {y};
  });
}

TEST(Cast, RoundsTiesToEvenAndKeepsTheSpecialNumbers) {
  const double ulp = 1.0 / 128;  // of bf16 in [1, 2)
  const std::vector<double> x = {1 + ulp / 2, 1 + 1.5 * ulp, 1 + ulp / 2 + 1e-6, INFINITY, -INFINITY, -0.0,
                                 3.4e38,      1e-40};
  for (const TestedDevice& tested : tested_devices()) {
    Bench b(*tested.device);
    const Tensor y = b.t.garbage(DType::bf16, 1, 8), nan = b.t.garbage(DType::bf16, 1, 1);
    on(b.s).cast({.x = b.t.values(DType::f32, 1, 8, x), .y = y});
    const std::vector<double> got = read(b.s, y);
    for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(got[i], double(float(bf16(float(x[i]))))) << x[i];
    EXPECT_EQ(got[0], 1);
    EXPECT_EQ(got[1], 1 + 2 * ulp);
    on(b.s).cast({.x = b.t.garbage(DType::f32, 1, 1), .y = nan});
    EXPECT_TRUE(std::isnan(read_number(b.s, nan)));
  }
}

TEST(Add, MeetsTheMetricAlsoInPlace) {
  for (const auto& [rows, cols] : kShapes)
    for (const DType format : kActs)
      for (const int where : {0, 1, 2, 3})  // y apart, y = a, y = b, all the same
        expect_like_ref([&](Bench& b) -> Outputs {
          const Tensor x = b.t.normal(format, rows, cols, 1, 2), z = b.t.normal(format, rows, cols, 1, 1);
          const Tensor y = where == 0 ? b.t.garbage(format, rows, cols) : where == 2 ? z : x;
          on(b.s).add({.a = x, .b = where == 3 ? x : z, .y = y});
          return {y};
        });
  expect_like_ref([](Bench& b) -> Outputs {
    const Tensor y = b.t.garbage(DType::i32, 1, 3);
    on(b.s).add({.a = b.t.indices({1, 2, 1 << 30}), .b = b.t.indices({-5, 7, 5}), .y = y});
    return {y};
  });
}

TEST(SumSquares, AddsInDoubleToWhatIsThere) {
  for (const auto& [rows, cols] : kShapes)
    expect_like_ref([&](Bench& b) -> Outputs {
      const Tensor out = b.t.values(DType::f64, 1, 1, {1000});
      on(b.s).sum_squares({.x = b.t.normal(DType::f32, rows, cols, 100), .out = out});
      return {out};
    });
}

TEST(SumSquares, TheSameNumbersInAnotherShapeHaveTheSameBits) {
  for (const TestedDevice& tested : tested_devices()) {
    Bench b(*tested.device);
    const Tensor x = b.t.normal(DType::f32, 1, 40000), first = b.t.zeros(DType::f64, 1, 1),
                 second = b.t.zeros(DType::f64, 1, 1);
    Tensor rows = x;
    rows.rows = 5, rows.cols = rows.ld = 8000;
    on(b.s).sum_squares({.x = x, .out = first});
    on(b.s).sum_squares({.x = rows, .out = second});
    EXPECT_NEAR(read_number(b.s, first) / read_number(b.s, second), 1, 1e-14);
  }
}

TEST(Elementwise, DoubleIsForRefOnly) {
  expect_refused(
      [](Bench& b) { on(b.s).cast({.x = b.t.normal(DType::f64, 1, 1), .y = b.t.garbage(DType::f32, 1, 1)}); },
      "cast: f64");
  expect_refused(
      [](Bench& b) {
        const Tensor x = b.t.normal(DType::f64, 1, 1);
        on(b.s).add({.a = x, .b = x, .y = x});
      },
      "add: f64");
  expect_refused(
      [](Bench& b) {
        on(b.s).sum_squares({.x = b.t.normal(DType::f64, 1, 1), .out = b.t.zeros(DType::f64, 1, 1)});
      },
      "sum_squares: f64");
}

}  // namespace
}  // namespace cachalot
