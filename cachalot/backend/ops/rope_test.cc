#include "backend/ops/rope.h"

#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

constexpr int64_t kPositions = 40;

struct Tables {
  Tensor cos, sin;
};
Tables tables(Bench& b, int64_t width, double factor = 1) {
  std::vector<double> c, s;
  for (int64_t p = 0; p < kPositions; ++p)
    for (int64_t i = 0; i < width / 2; ++i) {
      const double angle = double(p) * std::pow(100.0, -double(2 * i) / double(width));
      c.push_back(factor * std::cos(angle));
      s.push_back(factor * std::sin(angle));
    }
  return {b.t.values(DType::f32, kPositions, width / 2, c), b.t.values(DType::f32, kPositions, width / 2, s)};
}

TEST(Rope, TurnsItsColumnsOfEveryHeadAndNoOthers) {
  for (const int64_t rows : {0, 1, 7, 65})
    for (const int64_t heads : {1, 3})
      for (const int64_t width : {2, 6, 64})
        for (const DType act : {DType::f32, DType::bf16})
          for (const bool inverse : {false, true})
            expect_like_ref(
                [&](Bench& b) -> Outputs {
                  const int64_t offset = 5, stride = offset + width + 2;
                  const Tensor x = b.t.normal(act, rows, heads * stride, 1, 3);  // all of it is compared
                  std::vector<int32_t> positions;
                  for (int64_t t = 0; t < rows; ++t) positions.push_back(int32_t(t * 7 % kPositions));
                  const Tables table = tables(b, width, 1.3);
                  on(b.s).rope({.x = x,
                                .positions = b.t.indices(positions),
                                .cos = table.cos,
                                .sin = table.sin,
                                .heads = heads,
                                .stride = stride,
                                .offset = offset,
                                .width = width,
                                .inverse = inverse});
                  return {x};
                },
                fmt::format("{} rows, {} heads, width {}, {}", rows, heads, width, name_of(act)));
}

// As V3's queries lie: heads of 192 of which 64 are turned; and one key for all heads.
TEST(Rope, AlignedHeadsOfAnyNumber) {
  for (const int64_t rows : {1, 33})
    for (const int64_t heads : {1, 5, 20, 128})
      for (const DType act : {DType::f32, DType::bf16})
        expect_like_ref(
            [&](Bench& b) -> Outputs {
              const int64_t width = 64, stride = 192;
              const Tensor x = b.t.normal(act, rows, heads * stride);
              std::vector<int32_t> positions;
              for (int64_t t = 0; t < rows; ++t) positions.push_back(int32_t(t * 11 % kPositions));
              const Tables table = tables(b, width, 1.3);
              on(b.s).rope({.x = x,
                            .positions = b.t.indices(positions),
                            .cos = table.cos,
                            .sin = table.sin,
                            .heads = heads,
                            .stride = stride,
                            .offset = stride - width,
                            .width = width});
              return {x};
            },
            fmt::format("{} rows, {} heads, {}", rows, heads, name_of(act)));
}

TEST(Rope, InverseUndoesForward) {
  for (const TestedDevice& tested : tested_devices()) {
    Bench b(*tested.device);
    const Tensor x = b.t.normal(DType::f32, 9, 3 * 8);
    const std::vector<double> before = read(b.s, x);
    const Tables table = tables(b, 8);
    Rope r{.x = x,
           .positions = b.t.indices({0, 1, 2, 3, 39, 5, 6, 7, 8}),
           .cos = table.cos,
           .sin = table.sin,
           .heads = 3,
           .stride = 8,
           .width = 8};
    on(b.s).rope(r);
    EXPECT_NE(read(b.s, x), before);
    r.inverse = true;
    on(b.s).rope(r);
    EXPECT_METRIC(read(b.s, x), before, 1e-12);
  }
}

TEST(Rope, PositionsOutsideTheTablesAreRefused) {
  for (const int32_t position : {-1, int32_t(kPositions)})
    expect_refused(
        [&](Bench& b) {
          const Tables table = tables(b, 4);
          on(b.s).rope({.x = b.t.normal(DType::f32, 1, 4),
                        .positions = b.t.indices({position}),
                        .cos = table.cos,
                        .sin = table.sin,
                        .stride = 4,
                        .width = 4});
        },
        "position");
}

}  // namespace
}  // namespace cachalot
