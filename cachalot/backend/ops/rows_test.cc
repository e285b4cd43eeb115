#include "backend/ops/rows.h"

#include <tuple>

#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

const DType kActs[] = {DType::f32, DType::bf16};

// `count` indices below n, every fourth negative; unique when asked (n must be large enough).
std::vector<int32_t> some_rows(int64_t count, int64_t n, bool unique) {
  std::vector<int32_t> rows;
  for (int64_t i = 0; i < count; ++i)
    rows.push_back(i % 4 == 3 ? -1 - int32_t(i)
                              : int32_t(unique ? (i * 7 + 2) % n
                                               : int64_t(random_below(2, 1, uint64_t(i), uint64_t(n)))));
  return rows;
}

TEST(Rows, GatherConvertsAndZeroesNegativeOnes) {
  for (const int64_t count : {0, 1, 5, 129})
    for (const int64_t width : {1, 7, 257})
      for (const DType from : kActs)
        for (const DType to : kActs)
          expect_like_ref([&](Bench& b) -> Outputs {
            const Tensor x = b.t.normal(from, 31, width, 1, 2), y = b.t.garbage(to, count, width, 1);
            on(b.s).gather_rows({.x = x, .rows = b.t.indices(some_rows(count, 31, false)), .y = y});
            return {y};
          });
}

TEST(Rows, ScatterWritesItsRowsAndNoOthers) {
  for (const int64_t count : {0, 1, 5, 29})
    for (const int64_t width : {1, 7, 257})
      for (const DType from : kActs)
        for (const DType to : kActs)
          expect_like_ref([&](Bench& b) -> Outputs {
            const Tensor x = b.t.normal(from, count, width, 1, 2), y = b.t.normal(to, 31, width, 1, 1);
            on(b.s).scatter_rows({.x = x, .rows = b.t.indices(some_rows(count, 31, true)), .y = y});
            return {y};
          });
}

TEST(Rows, ScatterAddSumsRepeatedRows) {
  for (const int64_t count : {0, 1, 5, 300})
    for (const int64_t width : {1, 7, 65, 257})
      for (const DType from : kActs)
        for (const Accumulate mode : {Accumulate::overwrite, Accumulate::add})
          expect_like_ref([&](Bench& b) -> Outputs {
            const Tensor x = b.t.normal(from, count, width, 1, 2);
            const Tensor y = mode == Accumulate::add ? b.t.normal(DType::f32, 11, width)
                                                     : b.t.garbage(DType::f32, 11, width);
            on(b.s).scatter_add_rows(
                {.x = x, .rows = b.t.indices(some_rows(count, 11, false)), .y = y, .accumulate = mode});
            return {y};
          });
}

// Rows longer than a block's columns, more of them than are looked at at once, and hundreds of one index.
TEST(Rows, ScatterAddOfManyAndLongRows) {
  for (const auto& [count, n, width] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
           {9000, 40, 8}, {9000, 5000, 3}, {60, 40, 9000}, {150, 3, 4104}})
    for (const DType from : kActs)
      for (const Accumulate mode : {Accumulate::overwrite, Accumulate::add})
        expect_like_ref(
            [&](Bench& b) -> Outputs {
              const Tensor x = b.t.normal(from, count, width), y = b.t.normal(DType::f32, n, width);
              on(b.s).scatter_add_rows(
                  {.x = x, .rows = b.t.indices(some_rows(count, n, false)), .y = y, .accumulate = mode});
              return {y};
            },
            fmt::format("{} x {} into {}, {}", count, width, n, name_of(from)));
}

// Every number of equal indices beside others, as few, many and very many are added in different ways.
TEST(Rows, ScatterAddOfEachNumberOfEqualRows) {
  std::vector<int32_t> rows;
  int32_t row = 0;
  for (const int count : {1, 2, 3, 4, 5, 14, 15, 16, 17, 18, 31, 32, 33, 34, 47, 48, 49, 64, 65, 100, 1}) {
    for (int i = 0; i < count; ++i) rows.push_back(row);
    ++row;
  }
  for (size_t i = rows.size() - 1; i > 0; --i)
    std::swap(rows[i], rows[random_below(2, 3, uint64_t(i), uint64_t(i + 1))]);
  for (const int64_t width : {7, 264, 4104})
    for (const DType from : kActs)
      expect_like_ref(
          [&](Bench& b) -> Outputs {
            const Tensor x = b.t.normal(from, int64_t(rows.size()), width),
                         y = b.t.normal(DType::f32, row, width);
            on(b.s).scatter_add_rows(
                {.x = x, .rows = b.t.indices(rows), .y = y, .accumulate = Accumulate::add});
            return {y};
          },
          fmt::format("width {}, {}", width, name_of(from)));
}

// The order is part of the contract: each 1 is lost beside 2^24, unless it is added last.
TEST(Rows, ScatterAddTakesTheRowsInOrder) {
  for (const TestedDevice& tested : tested_devices())
    for (const int count : {4, 15, 16, 40, 100})
      for (const int64_t width : {1, 8}) {
        Bench b(*tested.device);
        const Tensor y = b.t.garbage(DType::f32, 1, width);
        std::vector<double> x(size_t(count * width), 1);
        for (int64_t c = 0; c < width; ++c) {
          x[size_t(c)] = 16777216;
          x[size_t((count - 2) * width + c)] = -16777216;
        }
        on(b.s).scatter_add_rows({.x = b.t.values(DType::f32, count, width, x),
                                  .rows = b.t.indices(std::vector<int32_t>(size_t(count), 0)),
                                  .y = y});
        EXPECT_EQ(read(b.s, y), std::vector<double>(size_t(width), 1)) << tested.name << ", " << count;
      }
}

TEST(Rows, IndicesBeyondTheRowsAreRefused) {
  expect_refused(
      [](Bench& b) {
        on(b.s).gather_rows({.x = b.t.normal(DType::f32, 3, 2),
                             .rows = b.t.indices({3}),
                             .y = b.t.garbage(DType::f32, 1, 2)});
      },
      "gather_rows");
  expect_refused(
      [](Bench& b) {
        on(b.s).scatter_rows({.x = b.t.normal(DType::f32, 1, 2),
                              .rows = b.t.indices({3}),
                              .y = b.t.garbage(DType::f32, 3, 2)});
      },
      "scatter_rows");
  expect_refused(
      [](Bench& b) {
        on(b.s).scatter_add_rows({.x = b.t.normal(DType::f32, 1, 2),
                                  .rows = b.t.indices({3}),
                                  .y = b.t.garbage(DType::f32, 3, 2)});
      },
      "scatter_add_rows");
}

}  // namespace
}  // namespace cachalot
