#include "backend/ops/grouped_gemm.h"

#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

const std::vector<std::vector<int32_t>> kOffsets = {
    {0, 0, 1, 1, 8, 15, 15},  // empty experts first, between and last
    {0, 0, 0, 0, 0, 0, 0},    // nobody chose anybody
    {0, 5, 10, 11, 20, 33, 37},
    {0, 129, 129, 129, 130, 257, 257}};
constexpr int64_t kExperts = 6, kOwnerless = 3;  // rows behind the last expert's

// The product of the rows that have an owner; those of nobody in y keep their bits.
Tensor multiply_owned(Bench& b, const Tensor& x, const Tensor& w, const Tensor& y,
                      const std::vector<int32_t>& offsets, bool input_grad) {
  const int64_t owned = offsets.back();
  const std::string ownerless = read_bits(b.s, y.slice_rows(owned, kOwnerless));
  on(b.s).grouped_gemm({.x = x,
                        .w = w,
                        .y = y,
                        .offsets = b.t.indices(offsets),
                        .experts = kExperts,
                        .input_grad = input_grad});
  EXPECT_TRUE(read_bits(b.s, y.slice_rows(owned, kOwnerless)) == ownerless) << "rows of nobody";
  return y.slice_rows(0, owned);
}

// dW of all experts, which begins as garbage where it is overwritten.
Tensor weight_grad(Bench& b, const Tensor& dy, const Tensor& x, const std::vector<int32_t>& offsets,
                   Accumulate mode) {
  const Tensor dw = mode == Accumulate::add ? b.t.normal(DType::f32, kExperts * dy.cols, x.cols)
                                            : b.t.garbage(DType::f32, kExperts * dy.cols, x.cols);
  on(b.s).grouped_weight_grad(
      {.dy = dy, .x = x, .dw = dw, .offsets = b.t.indices(offsets), .experts = kExperts, .accumulate = mode});
  return dw;
}

TEST(GroupedGemm, EveryExpertMultipliesItsOwnRows) {
  int number = 0;
  for (const auto& offsets : kOffsets)
    for (const bool input_grad : {false, true})
      for (const DType weight : {DType::f32, DType::bf16, DType::e4m3})
        for (const DType act : {DType::f32, DType::bf16})
          for (const auto& [out, in] : {std::pair<int64_t, int64_t>{33, 7}, {140, 150}}) {
            const int64_t owned = offsets.back(), rows = owned + kOwnerless, padding = ++number % 4;
            if (owned > 100 && number % 4) continue;  // the oracle is slow
            expect_like_ref(
                [&](Bench& b) -> Outputs {
                  const Tensor x = b.t.normal(act, rows, input_grad ? out : in, 1, padding);
                  const Tensor w = weight == DType::e4m3 ? b.t.normal_e4m3(kExperts * out, in, out, padding)
                                                         : b.t.normal(weight, kExperts * out, in, 1, padding);
                  const Tensor y = b.t.garbage(act, rows, input_grad ? in : out, padding);
                  return {multiply_owned(b, x, w, y, offsets, input_grad)};
                },
                fmt::format("{} rows, {} x {}, {} {} {}", owned, out, in, input_grad, name_of(weight),
                            name_of(act)));
          }
}

// Aligned rows: what tensor cores take, with tiles that end inside, and few rows.
TEST(GroupedGemm, AlignedRowsInBf16) {
  for (const auto& offsets : {kOffsets[0], kOffsets[3], std::vector<int32_t>{0, 1, 200, 200, 333, 340, 341}})
    for (const bool input_grad : {false, true})
      for (const auto& [out, in] : {std::pair<int64_t, int64_t>{72, 136}, {264, 40}})
        expect_like_ref(
            [&](Bench& b) -> Outputs {
              const int64_t rows = offsets.back() + kOwnerless;
              const Tensor x = b.t.normal(DType::bf16, rows, input_grad ? out : in, 1, 8);
              const Tensor w = b.t.normal(DType::bf16, kExperts * out, in, 1, 16);
              const Tensor y = b.t.garbage(DType::bf16, rows, input_grad ? in : out, 24);
              return {multiply_owned(b, x, w, y, offsets, input_grad)};
            },
            fmt::format("{} rows, {} x {}, {}", offsets.back(), out, in, input_grad));
}

TEST(GroupedGemm, ARowHasTheSameBitsWhateverItsExpertElseGets) {
  for (const TestedDevice& tested : tested_devices()) {
    Bench b(*tested.device);
    const Tensor x = b.t.normal(DType::bf16, 40, 300), w = b.t.normal(DType::bf16, 2 * 50, 300);
    const Tensor many = b.t.garbage(DType::bf16, 40, 50), one = b.t.garbage(DType::bf16, 1, 50);
    on(b.s).grouped_gemm({.x = x, .w = w, .y = many, .offsets = b.t.indices({0, 3, 40}), .experts = 2});
    on(b.s).grouped_gemm(
        {.x = x.slice_rows(30, 1), .w = w, .y = one, .offsets = b.t.indices({0, 0, 1}), .experts = 2});
    EXPECT_TRUE(read_bits(b.s, one) == read_bits(b.s, many.slice_rows(30, 1))) << tested.name;
  }
}

TEST(GroupedGemm, OffsetsBeyondTheRowsAreRefused) {
  for (const std::vector<int32_t>& offsets :
       {std::vector<int32_t>{0, 2, 6}, {0, 4, 3}, {1, 2, 3}, {0, -1, 3}})
    expect_refused(
        [&](Bench& b) {
          on(b.s).grouped_gemm({.x = b.t.normal(DType::f32, 5, 3),
                                .w = b.t.normal(DType::f32, 2 * 4, 3),
                                .y = b.t.garbage(DType::f32, 5, 4),
                                .offsets = b.t.indices(offsets),
                                .experts = 2});
        },
        "grouped_gemm");
}

TEST(GroupedWeightGrad, OverwritesOrAddsAndZeroesEmptyExperts) {
  for (const auto& offsets : kOffsets)
    for (const Accumulate mode : {Accumulate::overwrite, Accumulate::add})
      for (const DType act : {DType::f32, DType::bf16}) {
        const int64_t owned = offsets.back(), rows = owned + kOwnerless, out = 33, in = 65;
        expect_like_ref(
            [&](Bench& b) -> Outputs {
              const Tensor dy = b.t.normal(act, rows, out, 1, 3), x = b.t.normal(act, rows, in, 1, 1);
              return {weight_grad(b, dy, x, offsets, mode)};
            },
            fmt::format("{} rows, {}", owned, name_of(act)));
      }
}

TEST(GroupedWeightGrad, AlignedRowsInBf16) {
  for (const Accumulate mode : {Accumulate::overwrite, Accumulate::add})
    for (const auto& offsets : {kOffsets[0], std::vector<int32_t>{0, 1, 65, 65, 203, 210, 211}})
      expect_like_ref(
          [&](Bench& b) -> Outputs {
            const int64_t owned = offsets.back(), rows = owned + kOwnerless, out = 136, in = 264;
            const Tensor dy = b.t.garbage(DType::bf16, rows, out, 8),
                         x = b.t.garbage(DType::bf16, rows, in, 16);
            on(b.s).cast({.x = b.t.normal(DType::f32, owned, out), .y = dy.slice_rows(0, owned)});
            on(b.s).cast({.x = b.t.normal(DType::f32, owned, in), .y = x.slice_rows(0, owned)});
            return {weight_grad(b, dy, x, offsets, mode)};
          },
          fmt::format("{} rows", offsets.back()));
}

// A rank that nobody sent a token: nothing to write, but gradients begin at zero.
TEST(GroupedGemm, NoRowsAtAll) {
  const std::vector<int32_t> offsets(kExperts + 1, 0);
  for (const DType act : {DType::f32, DType::bf16})
    for (const bool input_grad : {false, true}) {
      expect_like_ref([&](Bench& b) -> Outputs {
        const Tensor x = b.t.normal(act, 0, 16), w = b.t.normal(act, kExperts * 16, 16),
                     y = b.t.garbage(act, 0, 16);
        on(b.s).grouped_gemm({.x = x,
                              .w = w,
                              .y = y,
                              .offsets = b.t.indices(offsets),
                              .experts = kExperts,
                              .input_grad = input_grad});
        return {y, weight_grad(b, y, x, offsets, Accumulate::overwrite),
                weight_grad(b, y, x, offsets, Accumulate::add)};
      });
    }
  expect_like_ref([&](Bench& b) -> Outputs {  // transposes of no columns
    const Tensor dy = b.t.normal_row_tiles(16, 0), x = b.t.normal_row_tiles(32, 0),
                 dw = b.t.garbage(DType::f32, kExperts * 16, 32);
    on(b.s).grouped_weight_grad(
        {.dy = dy, .x = x, .dw = dw, .offsets = b.t.indices(offsets), .experts = kExperts});
    return {dw};
  });
}

// NaN in rows that belong to nobody must not be read.
TEST(GroupedWeightGrad, RowsOfNobodyAreNotRead) {
  expect_like_ref([](Bench& b) -> Outputs {
    const Tensor dy = b.t.garbage(DType::f32, 5, 4), x = b.t.garbage(DType::f32, 5, 3);
    const std::vector<float> ones(20, 1.0f);
    on(b.s).upload(ones.data(), dy.slice_rows(0, 3));
    on(b.s).upload(ones.data(), x.slice_rows(0, 3));
    const Tensor dw = b.t.garbage(DType::f32, 8, 3);
    on(b.s).grouped_weight_grad(
        {.dy = dy, .x = x, .dw = dw, .offsets = b.t.indices({0, 1, 3}), .experts = 2});
    return {dw};
  });
}

}  // namespace
}  // namespace cachalot
