#include "backend/ops/swiglu.h"

#include <array>

#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

TEST(Swiglu, ForwardAndBackwardMeetTheMetric) {
  for (const int64_t rows : {0, 1, 3, 33, 129})
    for (const int64_t width : {1, 7, 17, 257})
      for (const DType act : {DType::f32, DType::bf16})
        expect_like_ref(
            [&](Bench& b) -> Outputs {
              const Tensor x = b.t.normal(act, rows, 2 * width, 3, 1),
                           dy = b.t.normal(act, rows, width, 1, 2);
              const Tensor y = b.t.garbage(act, rows, width, 3), dx = b.t.garbage(act, rows, 2 * width);
              on(b.s).swiglu_forward({.x = x, .y = y});
              on(b.s).swiglu_backward({.dy = dy, .x = x, .dx = dx});
              return {y, dx};
            },
            fmt::format("{} x {} {}", rows, width, name_of(act)));
}

TEST(Swiglu, WhatIsQuantisedOnTheWayIsWhatWouldBeWritten) {
  int number = 0;
  for (const int64_t rows : {0, 1, 33, 130})
    for (const int64_t width : {1, 64, 100, 257})
      for (const DType act : {DType::f32, DType::bf16}) {
        const bool power_of_two = ++number % 2;
        expect_fused(
            [&](Bench& b) -> std::vector<Fused> {
              const Tensor x = b.t.normal(act, rows, 2 * width, 3, 1),
                           dy = b.t.normal(act, rows, width, 1, 2);
              const Tensor y = b.t.garbage(act, rows, width), dx = b.t.garbage(act, rows, 2 * width);
              std::vector<Tensor> to;
              for (const int64_t cols : {width, width, 2 * width, 2 * width, 2 * width})
                to.push_back(b.t.garbage_row_tiles(rows, cols, 3));
              const bool p = power_of_two;
              on(b.s).swiglu_forward({.x = x, .y = y, .quantized = to[0], .power_of_two = p});
              on(b.s).swiglu_forward(
                  {.x = x, .y = {}, .quantized = to[1], .cached = to[2], .power_of_two = p});
              on(b.s).swiglu_backward({.dy = dy, .x = x, .dx = dx, .quantized = to[3], .power_of_two = p});
              on(b.s).swiglu_backward({.dy = dy, .x = x, .dx = {}, .quantized = to[4], .power_of_two = p});
              return {{to[0], y, p}, {to[1], y, p}, {to[2], x, p}, {to[3], dx, p}, {to[4], dx, p}};
            },
            fmt::format("{} x {} {}", rows, width, name_of(act)));
      }
}

// The backward from what the forward cached in FP8, and the output that it computes again.
TEST(Swiglu, TheBackwardReadsACachedInput) {
  for (const int64_t rows : {1, 33, 130})
    for (const int64_t width : {1, 64, 257})
      for (const DType act : {DType::f32, DType::bf16}) {
        expect_like_ref(
            [&](Bench& b) -> Outputs {
              const Tensor x = b.t.normal_row_tiles(rows, 2 * width), dy = b.t.normal(act, rows, width);
              const Tensor y = b.t.garbage(act, rows, width, 1), dx = b.t.garbage(act, rows, 2 * width, 1);
              on(b.s).swiglu_backward({.dy = dy, .x = x, .dx = dx, .y = y});
              return {y, dx};
            },
            fmt::format("{} x {} {}", rows, width, name_of(act)));
        expect_fused([&](Bench& b) -> std::vector<Fused> {
          const Tensor x = b.t.normal_row_tiles(rows, 2 * width), dy = b.t.normal(act, rows, width);
          const Tensor dx = b.t.garbage(act, rows, 2 * width), y = b.t.garbage(act, rows, width);
          const Tensor q = b.t.garbage_row_tiles(rows, 2 * width), r = b.t.garbage_row_tiles(rows, 2 * width);
          on(b.s).swiglu_backward({.dy = dy, .x = x, .dx = dx, .quantized = q});
          on(b.s).swiglu_backward({.dy = dy, .x = x, .dx = {}, .y = y, .quantized = r});
          return {{q, dx}, {r, dx}};
        });
      }
}

// Rows with weights, as experts have them: of numbers, of cached codes, and quantised on the way.
TEST(Swiglu, WeightsOfRowsAndTheirGradients) {
  for (const int64_t rows : {1, 5, 131})
    for (const int64_t width : {1, 100, 128, 384, 520})
      for (const DType act : {DType::f32, DType::bf16})
        for (const bool codes : {false, true})
          expect_like_ref(
              [&](Bench& b) -> Outputs {
                const Tensor x = codes ? b.t.normal_row_tiles(rows, 2 * width)
                                       : b.t.normal(act, rows, 2 * width, 2),
                             dy = b.t.normal(act, rows, width), weights = b.t.normal(DType::f32, 1, rows);
                const Tensor y = b.t.garbage(act, rows, width), dx = b.t.garbage(act, rows, 2 * width),
                             dweights = b.t.garbage(DType::f32, 1, rows),
                             again = b.t.garbage(DType::f32, 1, rows);
                const Tensor q = b.t.garbage_row_tiles(rows, 2 * width),
                             expected = b.t.garbage_row_tiles(rows, 2 * width);
                on(b.s).swiglu_backward(
                    {.dy = dy, .x = x, .dx = dx, .y = y, .weights = weights, .dweights = dweights});
                on(b.s).swiglu_backward(
                    {.dy = dy, .x = x, .dx = {}, .quantized = q, .weights = weights, .dweights = again});
                on(b.s).quantize({.x = dx, .y = expected});
                EXPECT_EQ(read_bits(b.s, q), read_bits(b.s, expected)) << "codes of what would be written";
                return {y, dx, dweights, again};
              },
              fmt::format("{} x {} {}{}", rows, width, name_of(act), codes ? " from codes" : ""));
}

// Operands of weight gradients: the bytes that quantising dx and y turned would give, from codes and from
// numbers, of a dense layer (no offsets) and of experts with ragged rows, some without any, and rows of nobody.
TEST(Swiglu, TransposesAreThoseOfWhatWouldBeWritten) {
  const std::vector<std::vector<int32_t>> all = {{}, {0, 5, 5, 133}, {0, 0, 128, 131, 260, 389, 389}, {0, 0}};
  int number = 0;
  for (const auto& offsets : all)
    for (const int64_t width : {64, 128, 384, 520})
      for (const DType act : {DType::f32, DType::bf16})
        for (const bool codes : {false, true}) {
          const int64_t owned = offsets.empty() ? std::array{1, 136, 264}[number % 3] : offsets.back(),
                        rows = owned + (offsets.empty() ? 0 : 3), experts = int64_t(offsets.size()) - 1,
                        columns = offsets.empty() ? rows : padded_rows(rows, experts);
          const bool weighted = ++number % 2, two = number % 3 == 0;
          expect_like_ref(
              [&](Bench& b) -> Outputs {
                const auto matrix = [&](int64_t cols) { return b.t.garbage(act, rows, cols); };
                const Tensor x = codes ? b.t.normal_row_tiles(rows, 2 * width)
                                       : b.t.normal(act, rows, 2 * width, 2),
                             weights = weighted ? b.t.normal(DType::f32, 1, rows) : Tensor{};
                std::vector<Tensor> dots, quantized, transposed, y_transposed;
                for (int i = 0; i < 2; ++i) {
                  dots.push_back(weighted ? b.t.garbage(DType::f32, 1, rows) : Tensor{});
                  quantized.push_back(b.t.garbage_row_tiles(rows, 2 * width));
                  transposed.push_back(b.t.garbage_row_tiles(2 * width, columns));
                  y_transposed.push_back(b.t.garbage_row_tiles(width, columns));
                }
                SwigluBackward g{.dy = b.t.normal(act, rows, width),
                                 .x = x,
                                 .dx = matrix(2 * width),
                                 .y = matrix(width),
                                 .quantized = quantized[0],
                                 .power_of_two = two,
                                 .weights = weights,
                                 .dweights = dots[0]};
                on(b.s).swiglu_backward(g);
                Tensor starts, padded;
                if (!offsets.empty()) {
                  starts = b.t.indices(offsets);
                  padded = b.t.indices(std::vector<int32_t>(offsets.size(), -1));
                  on(b.s).pad_offsets({.offsets = starts, .padded = padded});
                }
                for (const auto& [from, to] : {std::pair{g.dx, transposed[0]}, {g.y, y_transposed[0]}})
                  on(b.s).quantize({.x = from,
                                    .transposed = to,
                                    .offsets = starts,
                                    .padded = padded,
                                    .power_of_two = two});
                g.dx = matrix(2 * width), g.y = matrix(width);
                g.quantized = quantized[1], g.dweights = dots[1];
                g.transposed = transposed[1], g.y_transposed = y_transposed[1];
                g.offsets = starts, g.padded = padded;
                on(b.s).swiglu_backward(g);
                const auto expect_equal = [&](const Tensor& got, const Tensor& expected, const char* what) {
                  if (got.size() == 0) return;
                  EXPECT_TRUE(read_bits(b.s, got) == read_bits(b.s, expected)) << "codes of " << what;
                  EXPECT_TRUE(read_bits(b.s, scales_of(got)) == read_bits(b.s, scales_of(expected)))
                      << "scales of " << what;
                };
                expect_equal(transposed[1], transposed[0], "dx, transposed");
                expect_equal(y_transposed[1], y_transposed[0], "y, transposed");
                expect_equal(quantized[1].slice_rows(0, owned), quantized[0].slice_rows(0, owned), "dx");
                EXPECT_TRUE(b.t.padding_intact(transposed[1]) && b.t.padding_intact(y_transposed[1]));
                if (!weighted) return {};
                return {b.t.copy(b.s, dots[0].slice_cols(0, owned)),
                        b.t.copy(b.s, dots[1].slice_cols(0, owned))};
              },
              fmt::format("{} rows, {} experts, width {} {}{}", rows, experts, width, name_of(act),
                          codes ? " from codes" : ""));
        }
}

TEST(Swiglu, LargeGatesNeitherOverflowNorLoseTheirSign) {
  for (const double gate : {-80.0, -30.0, 88.5, 200.0, 1e30})
    expect_like_ref(
        [&](Bench& b) -> Outputs {
          const Tensor x = b.t.values(DType::f32, 1, 2, {gate, 1.5}), y = b.t.garbage(DType::f32, 1, 1);
          const Tensor dx = b.t.garbage(DType::f32, 1, 2);
          on(b.s).swiglu_forward({.x = x, .y = y});
          on(b.s).swiglu_backward({.dy = b.t.values(DType::f32, 1, 1, {1}), .x = x, .dx = dx});
          return {y, dx};
        },
        fmt::format("gate {}", gate));
  for (const TestedDevice& tested : tested_devices())
    for (const double gate : {-88.5, -200.0, -1e30}) {  // the true value is no normal float
      Bench b(*tested.device);
      const Tensor x = b.t.values(DType::f32, 1, 2, {gate, 1.5}), y = b.t.garbage(DType::f32, 1, 1);
      on(b.s).swiglu_forward({.x = x, .y = y});
      EXPECT_LT(std::abs(read_number(b.s, y)), 1e-35) << tested.name << ", gate " << gate;
    }
}

}  // namespace
}  // namespace cachalot
