#include "backend/ops/rmsnorm.h"

#include <array>
#include <span>

#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

using Shape = std::array<int64_t, 2>;  // rows, cols
constexpr Shape kShapes[] = {{0, 5},    {1, 1},     {1, 3},   {3, 7},    {17, 33},
                             {33, 129}, {129, 257}, {300, 9}, {3, 7168}, {3, 14336}};
// Minutes on an emulated processor (scripts/check_cross.sh leaves them out).
constexpr Shape kLargeShapes[] = {{700, 264}, {300, 7168}};
// Rows that begin on 16 bytes, where they are padded by 8, and hold a multiple of eight: other kernels.
constexpr Shape kAlignedShapes[] = {{1, 256},   {29, 256},  {9, 264},  {33, 512},
                                    {40, 1024}, {21, 1536}, {3, 7168}, {2, 14336}};

void forward_meets_the_metric(std::span<const Shape> shapes, int64_t padding) {
  for (const auto& [rows, cols] : shapes)
    for (const DType act : {DType::f32, DType::bf16})
      expect_like_ref(
          [&](Bench& b) -> Outputs {
            const Tensor x = b.t.normal(act, rows, cols, 3, padding), gain = b.t.normal(DType::f32, 1, cols);
            const Tensor y = b.t.garbage(act, rows, cols, padding), r = b.t.garbage(DType::f32, 1, rows);
            on(b.s).rmsnorm_forward({.x = x, .gain = gain, .y = y, .r = r, .eps = 1e-3});
            return {y, r};
          },
          fmt::format("{} x {} {}", rows, cols, name_of(act)));
}

TEST(RmsNorm, ForwardMeetsTheMetric) { forward_meets_the_metric(kShapes, 2); }
TEST(RmsNorm, ForwardOfAlignedRowsMeetsTheMetric) { forward_meets_the_metric(kAlignedShapes, 8); }
TEST(RmsNorm, ForwardOfLargeShapesMeetsTheMetric) { forward_meets_the_metric(kLargeShapes, 2); }

void quantised_is_what_would_be_written(std::span<const Shape> shapes, int64_t padding) {
  for (const auto& [rows, cols] : shapes)
    for (const DType act : {DType::f32, DType::bf16})
      for (const bool power_of_two : {false, true})
        expect_fused(
            [&](Bench& b) -> std::vector<Fused> {
              const Tensor x = b.t.normal(act, rows, cols, 3, padding),
                           gain = b.t.normal(DType::f32, 1, cols);
              const Tensor y = b.t.garbage(act, rows, cols, padding), r = b.t.garbage(DType::f32, 1, rows),
                           r_again = b.t.garbage(DType::f32, 1, rows);
              const Tensor both = b.t.garbage_row_tiles(rows, cols, 3),
                           alone = b.t.garbage_row_tiles(rows, cols);
              on(b.s).rmsnorm_forward({.x = x,
                                       .gain = gain,
                                       .y = y,
                                       .r = r,
                                       .eps = 1e-3,
                                       .quantized = both,
                                       .power_of_two = power_of_two});
              on(b.s).rmsnorm_forward({.x = x,
                                       .gain = gain,
                                       .y = {},
                                       .r = r_again,
                                       .eps = 1e-3,
                                       .quantized = alone,
                                       .power_of_two = power_of_two});
              EXPECT_EQ(read(b.s, r), read(b.s, r_again));
              return {{both, y, power_of_two}, {alone, y, power_of_two}};
            },
            fmt::format("{} x {} {}", rows, cols, name_of(act)));
}

TEST(RmsNorm, WhatIsQuantisedOnTheWayIsWhatWouldBeWritten) { quantised_is_what_would_be_written(kShapes, 2); }
TEST(RmsNorm, WhatIsQuantisedOfAlignedRowsIsWhatWouldBeWritten) {
  quantised_is_what_would_be_written(kAlignedShapes, 8);
}
TEST(RmsNorm, WhatIsQuantisedOfLargeShapesIsWhatWouldBeWritten) {
  quantised_is_what_would_be_written(kLargeShapes, 2);
}

void backward_overwrites_dx_and_adds_to_the_gain(std::span<const Shape> shapes) {
  int number = 0;
  for (const auto& [rows, cols] : shapes)
    for (const DType act : {DType::f32, DType::bf16})
      for (const Accumulate mode : {Accumulate::overwrite, Accumulate::add}) {
        const bool with_residual = ++number % 2, in_place = number % 3 == 0;
        expect_like_ref(
            [&](Bench& b) -> Outputs {
              const Tensor dy = b.t.normal(act, rows, cols, 1, 1), x = b.t.normal(act, rows, cols, 3, 2);
              const Tensor gain = b.t.normal(DType::f32, 1, cols),
                           r = b.t.uniform(DType::f32, 1, rows, 0.2, 0.5);
              const Tensor residual = b.t.normal(act, rows, cols, 1, 3);
              const Tensor dx = with_residual && in_place ? residual : b.t.garbage(act, rows, cols, 3);
              const Tensor dgain = mode == Accumulate::add ? b.t.normal(DType::f32, 1, cols)
                                                           : b.t.garbage(DType::f32, 1, cols);
              on(b.s).rmsnorm_backward({.dy = dy,
                                        .x = x,
                                        .gain = gain,
                                        .r = r,
                                        .residual = with_residual ? residual : Tensor{},
                                        .dx = dx,
                                        .dgain = dgain,
                                        .accumulate_gain = mode});
              return {dx, dgain};
            },
            fmt::format("{} x {} {} case {}", rows, cols, name_of(act), number));
      }
}

TEST(RmsNorm, BackwardOverwritesDxAndAddsToTheGainWhenAsked) {
  backward_overwrites_dx_and_adds_to_the_gain(kShapes);
}
TEST(RmsNorm, BackwardOfLargeShapesOverwritesDxAndAddsToTheGainWhenAsked) {
  backward_overwrites_dx_and_adds_to_the_gain(kLargeShapes);
}

TEST(RmsNorm, BackwardOfAlignedRows) {
  for (const auto& [rows, cols] : kAlignedShapes)
    for (const DType act : {DType::f32, DType::bf16})
      for (const bool with_residual : {false, true}) {
        const int64_t padding = with_residual ? 8 : 0;
        expect_like_ref(
            [&](Bench& b) -> Outputs {
              const Tensor dy = b.t.normal(act, rows, cols, 1, padding),
                           x = b.t.normal(act, rows, cols, 3, 8);
              const Tensor gain = b.t.normal(DType::f32, 1, cols), dgain = b.t.garbage(DType::f32, 1, cols);
              const Tensor r = b.t.uniform(DType::f32, 1, rows, 0.2, 0.5);
              const Tensor dx =
                  with_residual ? b.t.normal(act, rows, cols, 1, 16) : b.t.garbage(act, rows, cols, padding);
              on(b.s).rmsnorm_backward({.dy = dy,
                                        .x = x,
                                        .gain = gain,
                                        .r = r,
                                        .residual = with_residual ? dx : Tensor{},
                                        .dx = dx,
                                        .dgain = dgain});
              return {dx, dgain};
            },
            fmt::format("{} x {} {}{}", rows, cols, name_of(act), with_residual ? ", residual" : ""));
      }
}

// Many rows of few kinds: each has the bits that it has among few, and the gain's gradient is that many times
// theirs.
TEST(RmsNorm, BackwardOfLargeShapesGivesARowTheBitsItHasAmongFew) {
  constexpr int64_t kFew = 37;
  for (const auto& [times, cols] : {Shape{140, 1024}, Shape{19, 7168}})
    for (const bool with_residual : {false, true})
      for (const TestedDevice& tested : tested_devices()) {
        Bench b(*tested.device);
        const Tensor gain = b.t.normal(DType::f32, 1, cols);
        const auto backward = [&](const Tensor& x, const Tensor& dy, const Tensor& r) {
          const Tensor dx = b.t.garbage(DType::bf16, x.rows, cols), dgain = b.t.garbage(DType::f32, 1, cols);
          on(b.s).rmsnorm_backward({.dy = dy,
                                    .x = x,
                                    .gain = gain,
                                    .r = r,
                                    .residual = with_residual ? dy : Tensor{},
                                    .dx = dx,
                                    .dgain = dgain});
          return std::array{read(b.s, dx), read(b.s, dgain)};
        };
        std::vector<int32_t> kinds;
        for (int64_t t = 0; t < times * kFew; ++t) kinds.push_back(int32_t(t % kFew));
        const Tensor rows = b.t.indices(kinds);
        const auto repeated = [&](const Tensor& t) {
          const Tensor y = b.t.garbage(t.dtype, times * kFew, t.cols);
          on(b.s).gather_rows({.x = t, .rows = rows, .y = y});
          return y;
        };
        const Tensor x = b.t.normal(DType::bf16, kFew, cols), dy = b.t.normal(DType::bf16, kFew, cols),
                     r = b.t.uniform(DType::f32, 1, kFew, 0.2, 0.5),
                     rs = repeated(make_tensor(r.data, DType::f32, kFew, 1));
        auto [dx, dgain] = backward(x, dy, r);
        const auto [dxs, dgains] =
            backward(repeated(x), repeated(dy), make_tensor(rs.data, DType::f32, 1, times * kFew));
        int64_t others = 0;
        for (size_t i = 0; i < dxs.size(); ++i) others += dxs[i] != dx[i % dx.size()];
        EXPECT_EQ(others, 0) << tested.name << ", width " << cols;
        for (double& each : dgain) each *= double(times);
        EXPECT_METRIC(dgains, dgain, bound_of(DType::f32));
      }
}

TEST(RmsNorm, ARowOfZerosStaysZeroAndFinite) {
  expect_like_ref([](Bench& b) -> Outputs {
    const Tensor x = b.t.zeros(DType::f32, 2, 5), y = b.t.garbage(DType::f32, 2, 5),
                 r = b.t.garbage(DType::f32, 1, 2);
    on(b.s).rmsnorm_forward({.x = x, .gain = b.t.normal(DType::f32, 1, 5), .y = y, .r = r, .eps = 1e-6});
    return {y, r};
  });
}

}  // namespace
}  // namespace cachalot
