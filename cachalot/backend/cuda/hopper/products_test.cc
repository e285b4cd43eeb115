// The products of this folder through the operations that call them, against the CPU: sizes around the edges
// of their tiles (64, 128, 192, 256), ragged depths, experts of any size. Without a Hopper GPU there is
// nothing to prove.
#include <array>

#include "backend/cuda/hopper/tested_shapes.h"
#include "backend/masked_gemm.h"
#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;
using namespace cuda::hopper;

class HopperProducts : public Test {
 protected:
  void SetUp() override {
    const CudaStatus status = probe_cuda();
    if (status.devices.empty() || cuda_generation(status.devices[0]) != 9)
      GTEST_SKIP() << "runs on machines with a Hopper GPU, in the preset cuda: " << status.message;
    cuda = open_device("cuda");
    cpu = open_device("cpu");
  }
  // What `body` returns meets the metric against the CPU, leaves what lies behind its rows alone, and has
  // the same bits when it is computed again.
  void expect_like_cpu(const std::function<Tensor(Bench&)>& body, const std::string& what) {
    const ScopedTrace trace(__FILE__, __LINE__, what);
    Bench expected(*cpu), got(*cuda), again(*cuda);
    const Tensor x = body(expected), y = body(got), z = body(again);
    EXPECT_METRIC(read(got.s, y), read(expected.s, x), y.dtype == DType::bf16 ? 1e-5 : 1e-6);
    EXPECT_TRUE(got.t.padding_intact(y));
    EXPECT_TRUE(read_bits(got.s, y) == read_bits(again.s, z)) << "other bits the second time";
  }
  std::unique_ptr<Device> cuda, cpu;
};

TEST_F(HopperProducts, Fp8TilesOfEverySizeWithRaggedEdges) {
  for (const auto& [m, n, k] : kTestedDense)
    for (const DType out : {DType::bf16, DType::f32}) {
      if (out == DType::f32 && n * k > 1 << 22) continue;  // one kernel for all: the smaller ones do
      expect_like_cpu(
          [&](Bench& b) {
            const Tensor x = b.t.normal_row_tiles(m, k), w = b.t.normal_e4m3(n, k),
                         y = b.t.garbage(out, m, n);
            on(b.s).gemm({.a = x, .b = w, .c = y, .trans_b = true});
            return y;
          },
          fmt::format("{} x {} x {} {}", m, n, k, name_of(out)));
    }
}

// An input gradient beside another: C keeps what it held, and the sum is rounded once.
TEST_F(HopperProducts, Fp8AddsToWhatIsThere) {
  for (const auto& [m, n, k] : kTestedAdd)
    for (const DType out : {DType::bf16, DType::f32})
      expect_like_cpu(
          [&](Bench& b) {
            const Tensor x = b.t.normal_row_tiles(m, k), w = b.t.normal_e4m3(n, k), y = b.t.normal(out, m, n);
            on(b.s).gemm({.a = x, .b = w, .c = y, .trans_b = true, .accumulate = Accumulate::add});
            return y;
          },
          fmt::format("{} x {} x {} {}", m, n, k, name_of(out)));
}

TEST_F(HopperProducts, Fp8WeightsOfSeveralPartsKeepTheirScales) {  // gate above up
  for (const int64_t part : {128, 256, 144})
    expect_like_cpu(
        [&](Bench& b) {
          const Tensor x = b.t.normal_row_tiles(70, 512), w = b.t.normal_e4m3(2 * part, 512, part),
                       y = b.t.garbage(DType::bf16, 70, 2 * part);
          on(b.s).gemm({.a = x, .b = w, .c = y, .trans_b = true});
          return y;
        },
        fmt::format("parts of {}", part));
}

// Views: rows of a weight from a block's first on, columns of both operands and of D.
TEST_F(HopperProducts, Fp8SlicesKeepTheirScales) {
  for (const auto& [first, n] : {std::array<int64_t, 2>{0, 240}, {128, 256}, {384, 256}})
    expect_like_cpu(
        [&](Bench& b) {
          const Tensor x = b.t.normal_row_tiles(132, 1024), w = b.t.normal_e4m3(640, 1024),
                       y = b.t.garbage(DType::bf16, 128, n + 64), made = y.slice_cols(32, n),
                       alone = b.t.garbage(DType::bf16, 128, n);
          on(b.s).gemm({.a = x.slice_rows(4, 128).slice_cols(first, 528),
                        .b = w.slice_rows(first, n).slice_cols(first, 528),
                        .c = made,
                        .trans_b = true});
          on(b.s).cast({.x = made, .y = alone});
          for (const Tensor& beside : {y.slice_cols(0, 32), y.slice_cols(32 + n, 32)})
            for (const double number : read(b.s, beside)) EXPECT_TRUE(std::isnan(number)) << "beside D";
          return alone;
        },
        fmt::format("from {}", first));
}

const std::vector<int32_t> kOffsets[] = {
    {0, 77, 77, 78, 400, 411}, {0, 0, 129, 129, 386, 411}, {0, 1, 2, 3, 4, 5}};

TEST_F(HopperProducts, ExpertsOfAnySize) {
  for (const auto& offsets : kOffsets)
    for (const DType out : {DType::bf16, DType::f32})
      for (const bool fp8 : {true, false})
        expect_like_cpu(
            [&](Bench& b) {
              const int64_t n = 272, k = 400;
              const Tensor x = fp8 ? b.t.normal_row_tiles(420, k) : b.t.normal(DType::bf16, 420, k),
                           w = fp8 ? b.t.normal_e4m3(5 * n, k, n) : b.t.normal(DType::bf16, 5 * n, k),
                           y = b.t.normal(out, 420, n);  // rows of nobody keep what they hold
              on(b.s).grouped_gemm({.x = x, .w = w, .y = y, .offsets = b.t.indices(offsets), .experts = 5});
              return y;
            },
            fmt::format("offsets {} ... {} {}", offsets[1], name_of(out), fp8 ? "fp8" : "bf16"));
}

TEST_F(HopperProducts, ExpertsWithManyRows) {
  for (const TestedExperts& c : kTestedExperts)
    expect_like_cpu(
        [&](Bench& b) {
          const Tensor x = b.t.normal_row_tiles(c.rows(), c.k),
                       w = b.t.normal_e4m3(c.experts() * c.n, c.k, c.n),
                       y = b.t.garbage(DType::bf16, c.rows(), c.n);
          on(b.s).grouped_gemm(
              {.x = x, .w = w, .y = y, .offsets = b.t.indices(c.offsets), .experts = c.experts()});
          return y;
        },
        fmt::format("{} experts, {} rows, {} x {}", c.experts(), c.rows(), c.n, c.k));
}

// Rows that stand apart, as decoding over expert-parallel ranks receives them. What lies in the rest of an
// expert's room is NaN in x and stays as it is in y; the tile that a guess of the counts chooses changes no bit.
TEST_F(HopperProducts, ExpertsWithRoomForMoreRows) {
  uint64_t seed = 40;
  for (const TestedRoom& c : kTestedRooms) {
    const ScopedTrace trace(
        __FILE__, __LINE__,
        fmt::format("{} x {} rows, {} x {}, {} expected", c.experts(), c.max_rows, c.n, c.k, c.expected));
    const int64_t rows = c.experts() * c.max_rows;
    ++seed;
    Bench b(*cuda, seed), oracle(ref_device(), seed);
    const auto operands = [&](Bench& of) {
      const Tensor x = of.t.normal_row_tiles(rows, c.k);
      return std::pair{x, of.t.normal_e4m3(c.experts() * c.n, c.k, c.n)};
    };
    const auto [x, w] = operands(b);
    const auto [ref_x, ref_w] = operands(oracle);
    const auto rest = [&](const Tensor& t, int64_t e) {
      return t.slice_rows(e * c.max_rows + c.counts[size_t(e)], c.max_rows - c.counts[size_t(e)]);
    };
    for (int64_t e = 0; e < c.experts(); ++e) {
      Tensor codes = rest(x, e);
      codes.scales = nullptr;
      const std::string nan(size_t(codes.size()), '\x7F');
      if (codes.size() > 0) on(b.s).upload(nan.data(), codes);
    }
    const Tensor counts = b.t.indices(c.counts);
    std::vector<Tensor> made;
    for (const int64_t expected : {c.expected, c.expected, int64_t(0)}) {
      made.push_back(b.t.garbage(DType::bf16, rows, c.n, 24));
      ASSERT_TRUE(masked_gemm(on(b.s), {.x = x,
                                        .w = w,
                                        .y = made.back(),
                                        .counts = counts,
                                        .experts = c.experts(),
                                        .max_rows = c.max_rows,
                                        .expected_rows = expected}));
      EXPECT_TRUE(b.t.padding_intact(made.back()));
      EXPECT_TRUE(read_bits(b.s, made.back()) == read_bits(b.s, made[0])) << "other bits than the first time";
    }
    for (int64_t e = 0; e < c.experts(); ++e) {
      const int64_t first = e * c.max_rows, count = c.counts[size_t(e)];
      const Tensor expected = oracle.t.garbage(DType::bf16, count, c.n), untouched = rest(made[0], e);
      on(oracle.s).gemm({.a = ref_x.slice_rows(first, count),
                         .b = ref_w.slice_rows(e * c.n, c.n),
                         .c = expected,
                         .trans_b = true});
      EXPECT_METRIC(read(b.s, made[0].slice_rows(first, count)), read(oracle.s, expected), 1e-5)
          << "expert " << e;
      EXPECT_TRUE(read_bits(b.s, untouched) == std::string(size_t(2 * untouched.size()), '\xFF'))
          << "rows behind those of expert " << e;
    }
  }
}

TEST_F(HopperProducts, InputGradientsOfExperts) {
  for (const auto& offsets : kOffsets)
    expect_like_cpu(
        [&](Bench& b) {
          const int64_t o = 272, i = 400;
          const Tensor dy = b.t.normal(DType::bf16, 420, o), w = b.t.normal(DType::bf16, 5 * o, i),
                       dx = b.t.normal(DType::bf16, 420, i);
          on(b.s).grouped_gemm(
              {.x = dy, .w = w, .y = dx, .offsets = b.t.indices(offsets), .experts = 5, .input_grad = true});
          return dx;
        },
        fmt::format("offsets {} ...", offsets[1]));
}

TEST_F(HopperProducts, WideAndDeepWeightGradientsOfExperts) {
  for (const Accumulate mode : {Accumulate::overwrite, Accumulate::add})
    for (const TestedGradients& c : kTestedGradients)
      expect_like_cpu(
          [&](Bench& b) {
            const Tensor dy = b.t.normal_row_tiles(c.m, c.offsets.back()),
                         x = b.t.normal_row_tiles(c.n, c.offsets.back()),
                         dw = b.t.normal(DType::f32, c.experts() * c.m, c.n);
            on(b.s).grouped_weight_grad({.dy = dy,
                                         .x = x,
                                         .dw = dw,
                                         .offsets = b.t.indices(c.offsets),
                                         .experts = c.experts(),
                                         .accumulate = mode});
            return dw;
          },
          fmt::format("{} x {} {}", c.m, c.n, mode == Accumulate::add ? "add" : "overwrite"));
}

// Long sums of few tiles: K is cut among the blocks of a cluster.
TEST_F(HopperProducts, WeightGradientsOfManyRows) {
  for (const Accumulate mode : {Accumulate::overwrite, Accumulate::add})
    for (const auto& [o, i, rows] : kTestedGradient)
      expect_like_cpu(
          [&](Bench& b) {
            const Tensor dy = b.t.normal_row_tiles(o, rows), x = b.t.normal_row_tiles(i, rows),
                         dw = b.t.normal(DType::f32, o, i);
            on(b.s).gemm({.a = dy, .b = x, .c = dw, .trans_b = true, .accumulate = mode});
            return dw;
          },
          fmt::format("{} x {} x {} {}", o, i, rows, mode == Accumulate::add ? "add" : "overwrite"));
}

// One expert alone, with room for far more columns than it has: blocks of a cluster whose share of K is empty.
TEST_F(HopperProducts, WeightGradientsOfOneExpertWithRoomToSpare) {
  for (const Accumulate mode : {Accumulate::overwrite, Accumulate::add})
    for (const int32_t columns : {0, 128, 384, 4096})
      expect_like_cpu(
          [&](Bench& b) {
            const Tensor dy = b.t.normal_row_tiles(272, 8192), x = b.t.normal_row_tiles(336, 8192),
                         dw = b.t.normal(DType::f32, 272, 336);
            on(b.s).grouped_weight_grad({.dy = dy,
                                         .x = x,
                                         .dw = dw,
                                         .offsets = b.t.indices({0, columns}),
                                         .experts = 1,
                                         .accumulate = mode});
            return dw;
          },
          fmt::format("{} columns {}", columns, mode == Accumulate::add ? "add" : "overwrite"));
}

TEST_F(HopperProducts, WeightGradientsOfExperts) {
  for (const Accumulate mode : {Accumulate::overwrite, Accumulate::add})
    for (const bool fp8 : {true, false})
      for (const auto& offsets : fp8 ? std::vector<std::vector<int32_t>>{{0, 128, 128, 640}, {0, 0, 0, 384}}
                                     : std::vector<std::vector<int32_t>>{{0, 77, 77, 400}, {0, 0, 1, 130}})
        expect_like_cpu(
            [&](Bench& b) {
              const int64_t o = 272, i = 336, rows = 640;
              const Tensor dy = fp8 ? b.t.normal_row_tiles(o, rows) : b.t.normal(DType::bf16, rows, o),
                           x = fp8 ? b.t.normal_row_tiles(i, rows) : b.t.normal(DType::bf16, rows, i),
                           dw = b.t.normal(DType::f32, 3 * o, i);
              on(b.s).grouped_weight_grad({.dy = dy,
                                           .x = x,
                                           .dw = dw,
                                           .offsets = b.t.indices(offsets),
                                           .experts = 3,
                                           .accumulate = mode});
              return dw;
            },
            fmt::format("{} offsets {} ... {}", fp8 ? "fp8" : "bf16", offsets[1],
                        mode == Accumulate::add ? "add" : "overwrite"));
}

}  // namespace
}  // namespace cachalot
