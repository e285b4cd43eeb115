// The products of this folder through the operations that call them, against the CPU: sizes around the edges
// of their tiles (64, 128, 192, 256), ragged depths, experts of any size. Without a Hopper GPU there is
// nothing to prove.
#include <array>

#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

class HopperProducts : public Test {
 protected:
  void SetUp() override {
    const CudaStatus status = probe_cuda();
    if (status.devices.empty() || !status.devices[0].usable() || status.devices[0].major != 9)
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
  for (const auto& [m, n, k] : {std::array<int64_t, 3>{1, 2112, 7168},
                                {61, 144, 2064},
                                {64, 4096, 512},
                                {65, 272, 1040},
                                {128, 512, 7168},
                                {129, 2112, 400},
                                {333, 592, 1040},
                                {1000, 256, 128},
                                {2100, 272, 144}})
    for (const DType out : {DType::bf16, DType::f32})
      expect_like_cpu(
          [&](Bench& b) {
            const Tensor x = b.t.normal_row_tiles(m, k), w = b.t.normal_e4m3(n, k),
                         y = b.t.garbage(out, m, n);
            on(b.s).gemm({.a = x, .b = w, .c = y, .trans_b = true});
            return y;
          },
          fmt::format("{} x {} x {} {}", m, n, k, name_of(out)));
}

// The tiles that fp8_tiles.h keeps for many rows, at their edges.
TEST_F(HopperProducts, Fp8ManyRows) {
  for (const auto& [m, n, k] :
       {std::array<int64_t, 3>{2001, 3088, 144}, {3001, 2064, 144}, {3801, 1040, 656}, {333, 5648, 400}})
    expect_like_cpu(
        [&](Bench& b) {
          const Tensor x = b.t.normal_row_tiles(m, k), w = b.t.normal_e4m3(n, k),
                       y = b.t.garbage(DType::bf16, m, n);
          on(b.s).gemm({.a = x, .b = w, .c = y, .trans_b = true});
          return y;
        },
        fmt::format("{} x {} x {}", m, n, k));
}

// An input gradient beside another: C keeps what it held, and the sum is rounded once.
TEST_F(HopperProducts, Fp8AddsToWhatIsThere) {
  for (const auto& [m, n, k] : {std::array<int64_t, 3>{1, 144, 400},
                                {61, 512, 7168},
                                {129, 2112, 1040},
                                {333, 592, 128},
                                {2001, 3088, 144}})
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
  struct Case {
    std::vector<int32_t> offsets;
    int64_t n, k;
  };
  for (const Case& c : {Case{{0, 3000, 6100, 6100, 12003, 15005}, 272, 144},
                        Case{{0, 400, 401, 999, 1300, 1665}, 5648, 144}, Case{{0, 2001, 5000}, 272, 4112}})
    expect_like_cpu(
        [&](Bench& b) {
          const int64_t rows = c.offsets.back(), experts = int64_t(c.offsets.size()) - 1;
          const Tensor x = b.t.normal_row_tiles(rows, c.k), w = b.t.normal_e4m3(experts * c.n, c.k, c.n),
                       y = b.t.garbage(DType::bf16, rows, c.n);
          on(b.s).grouped_gemm(
              {.x = x, .w = w, .y = y, .offsets = b.t.indices(c.offsets), .experts = experts});
          return y;
        },
        fmt::format("{} experts, {} rows, {} x {}", c.offsets.size() - 1, c.offsets.back(), c.n, c.k));
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

TEST_F(HopperProducts, WideWeightGradientsOfExperts) {
  for (const Accumulate mode : {Accumulate::overwrite, Accumulate::add})
    for (const auto& [o, i] : {std::array<int64_t, 2>{2512, 528}, {3008, 272}})
      expect_like_cpu(
          [&](Bench& b) {
            const Tensor dy = b.t.normal_row_tiles(o, 384), x = b.t.normal_row_tiles(i, 384),
                         dw = b.t.normal(DType::f32, 2 * o, i);
            on(b.s).grouped_weight_grad({.dy = dy,
                                         .x = x,
                                         .dw = dw,
                                         .offsets = b.t.indices({0, 128, 384}),
                                         .experts = 2,
                                         .accumulate = mode});
            return dw;
          },
          fmt::format("{} x {} {}", o, i, mode == Accumulate::add ? "add" : "overwrite"));
}

// Long sums of few tiles: K is cut among the blocks of a cluster.
TEST_F(HopperProducts, WeightGradientsOfManyRows) {
  for (const Accumulate mode : {Accumulate::overwrite, Accumulate::add})
    for (const auto& [o, i, rows] : {std::array<int64_t, 3>{272, 336, 8192},
                                     {1024, 384, 4112},
                                     {512, 1040, 6000},
                                     {1040, 1024, 16384}})
      expect_like_cpu(
          [&](Bench& b) {
            const Tensor dy = b.t.normal_row_tiles(o, rows), x = b.t.normal_row_tiles(i, rows),
                         dw = b.t.normal(DType::f32, o, i);
            on(b.s).gemm({.a = dy, .b = x, .c = dw, .trans_b = true, .accumulate = mode});
            return dw;
          },
          fmt::format("{} x {} x {} {}", o, i, rows, mode == Accumulate::add ? "add" : "overwrite"));
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
