// Products of FP8 operands: gemm, grouped_gemm and grouped_weight_grad with row tiles on the left.
#include <algorithm>
#include <cmath>

#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

// What a product in FP8 may differ from the exact one by. Tensor cores of Hopper keep 14 bits within 128 of
// K.
double bound_of(const TestedDevice& tested, DType format) {
  if (format == DType::bf16) return 1e-5;
  return tested.name.find("cuda") == 0 ? 1e-6 : 1e-11;  // few numbers that cancel: more than 1e-12
}

void expect_product(const Body& body, const std::string& what) {
  const ScopedTrace trace(__FILE__, __LINE__, what);
  Bench oracle(ref_device());
  std::vector<std::vector<double>> expected;
  for (const Tensor& t : body(oracle)) expected.push_back(read(oracle.s, t));
  std::string first;
  for (const TestedDevice& tested : tested_devices()) {
    const ScopedTrace trace_device(__FILE__, __LINE__, tested.name);
    Bench b(*tested.device);
    const Outputs outputs = body(b);
    std::string bits;
    for (size_t i = 0; i < outputs.size(); ++i) {
      EXPECT_METRIC(read(b.s, outputs[i]), expected[i], bound_of(tested, outputs[i].dtype));
      EXPECT_TRUE(b.t.padding_intact(outputs[i]));
      bits += read_bits(b.s, outputs[i]);
    }
    if (&tested == &tested_devices()[0]) first = bits;
    if (tested.same_bits_as == 0) {
      EXPECT_TRUE(bits == first) << "other bits than one thread gives";
    }
    if (Test::HasFailure()) return;
  }
}

TEST(Fp8Product, MeetsTheMetricForBlocksAndForRowTiles) {
  int number = 0;
  for (const int64_t m : {1, 3, 17, 130})
    for (const int64_t n : {1, 5, 128, 140})
      for (const int64_t k : {1, 127, 128, 129, 400})
        for (const DType out : {DType::f32, DType::bf16}) {
          const bool weight = ++number % 2;
          const Accumulate mode = number % 3 ? Accumulate::overwrite : Accumulate::add;
          expect_product(
              [&](Bench& b) -> Outputs {
                const Tensor x = b.t.normal_row_tiles(m, k, number % 5),
                             w = weight ? b.t.normal_e4m3(n, k, 0, number % 3) : b.t.normal_row_tiles(n, k);
                const Tensor y =
                    mode == Accumulate::add ? b.t.normal(out, m, n, 30, 2) : b.t.garbage(out, m, n, 2);
                on(b.s).gemm({.a = x, .b = w, .c = y, .trans_b = true, .accumulate = mode});
                return {y};
              },
              fmt::format("{} x {} x {} {} {}", m, n, k, name_of(out), weight ? "blocks" : "tiles"));
        }
}

// Rows that begin on 16 bytes and whole tiles: what tensor cores take.
TEST(Fp8Product, AlignedShapes) {
  for (const auto& [m, n, k] :
       {std::array<int64_t, 3>{64, 128, 256}, {200, 384, 512}, {257, 192, 384}, {128, 64, 128}})
    for (const bool weight : {true, false})
      expect_product(
          [&](Bench& b) -> Outputs {
            const Tensor x = b.t.normal_row_tiles(m, k),
                         w = weight ? b.t.normal_e4m3(n, k) : b.t.normal_row_tiles(n, k);
            const Tensor y = b.t.garbage(weight ? DType::bf16 : DType::f32, m, n);
            on(b.s).gemm({.a = x, .b = w, .c = y, .trans_b = true});
            return {y};
          },
          fmt::format("{} x {} x {}", m, n, k));
}

// The bound at V3's longest sum, with operands that a quantiser made.
TEST(Fp8Product, LongSumsMeetTheBound) {
  const int64_t m = 8, n = 16, k = 18432;
  expect_product(
      [&](Bench& b) -> Outputs {
        const Tensor x = b.t.normal(DType::bf16, m, k), w = b.t.normal(DType::f32, n, k, 0.02);
        const Tensor x8 = b.t.garbage_row_tiles(m, k), w8 = b.t.garbage_e4m3(n, k),
                     y = b.t.garbage(DType::f32, m, n);
        on(b.s).quantize({.x = x, .y = x8});
        on(b.s).quantize_weight({.x = w, .y = w8});
        on(b.s).gemm({.a = x8, .b = w8, .c = y, .trans_b = true});
        return {y};
      },
      "V3's longest sum");
}

// Hopper's tensor cores: 32 products are aligned to the largest of them and of the sum so far, what lies more
// than 13 bits below it is cut off, and the rest is added (DeepSeek-V3 report, section 3.3.2).
class NarrowSum {
 public:
  void add(const double* products) {
    double largest = std::abs(sum_);
    for (int i = 0; i < 32; ++i) largest = std::max(largest, std::abs(products[i]));
    if (largest == 0) return;
    const double unit = std::ldexp(1.0, std::ilogb(largest) - 13);
    double sum = std::trunc(sum_ / unit);
    for (int i = 0; i < 32; ++i) sum += std::trunc(products[i] / unit);
    sum_ = sum * unit;
  }
  double take() { return std::exchange(sum_, 0.0); }

 private:
  double sum_ = 0;
};

// The bound can fail: sums that stay in the tensor cores for the whole of K do not meet it, promoted ones do.
// (Scales are 1, so that they are the same sums.)
TEST(Fp8Product, TheBoundTellsPromotedSumsFromOthers) {
  const int64_t m = 8, n = 16;
  for (const int64_t k : {4096, 18432}) {
    Bench b(ref_device());
    const Tensor x = b.t.uniform(DType::e4m3, m, k, 0, 1), w = b.t.uniform(DType::e4m3, n, k, -0.5, 1);
    const HostTensor a = download(b.s, x), c = download(b.s, w);
    std::vector<double> exact, promoted, narrow;
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) {
        double sum = 0;
        float total = 0;
        NarrowSum short_chain, long_chain;
        for (int64_t at = 0; at < k; at += 32) {
          double products[32];
          for (int64_t d = 0; d < 32; ++d) sum += products[d] = a(i, at + d) * c(j, at + d);
          short_chain.add(products);
          long_chain.add(products);
          if ((at + 32) % kScaleBlock == 0) total += float(short_chain.take());
        }
        exact.push_back(sum), promoted.push_back(total), narrow.push_back(long_chain.take());
      }
    EXPECT_METRIC(promoted, exact, 1e-6);
    EXPECT_GT(metric(narrow, exact), 1e-6) << k;
  }
}

TEST(Fp8Product, ARowHasTheSameBitsWhateverLiesBesideIt) {
  for (const TestedDevice& tested : tested_devices()) {
    Bench b(*tested.device);
    const int64_t k = 700, n = 80;
    const Tensor x = b.t.normal_row_tiles(60, k), w = b.t.normal_e4m3(n, k),
                 all = b.t.garbage(DType::f32, 60, n);
    on(b.s).gemm({.a = x, .b = w, .c = all, .trans_b = true});
    for (const int64_t rows : {1, 4, 20}) {
      const Tensor some = b.t.garbage(DType::f32, rows, n);
      on(b.s).gemm({.a = x.slice_rows(40, rows), .b = w, .c = some, .trans_b = true});
      EXPECT_TRUE(read_bits(b.s, some) == read_bits(b.s, all.slice_rows(40, rows)))
          << tested.name << " " << rows;
    }
  }
}

const std::vector<std::vector<int32_t>> kOffsets = {{0, 0, 1, 1, 8, 15, 15},
                                                    {0, 0, 0, 0, 0, 0, 0},
                                                    {0, 5, 10, 11, 20, 33, 37},
                                                    {0, 129, 129, 129, 130, 257, 257}};
constexpr int64_t kExperts = 6, kOwnerless = 3;

TEST(Fp8Product, EveryExpertMultipliesItsOwnRows) {
  for (const auto& offsets : kOffsets)
    for (const auto& [out, in, part] : {std::array<int64_t, 3>{34, 7, 17}, {140, 150, 140}, {256, 128, 128}})
      for (const DType act : {DType::bf16, DType::f32}) {
        const int64_t owned = offsets.back(), rows = owned + kOwnerless;
        expect_product(
            [&](Bench& b) -> Outputs {
              const Tensor x = b.t.normal_row_tiles(rows, in), w = b.t.normal_e4m3(kExperts * out, in, part),
                           y = b.t.garbage(act, rows, out, 2);
              on(b.s).grouped_gemm(
                  {.x = x, .w = w, .y = y, .offsets = b.t.indices(offsets), .experts = kExperts});
              for (const double number : read(b.s, y.slice_rows(owned, kOwnerless)))
                EXPECT_TRUE(std::isnan(number)) << "rows of nobody";
              return {y.slice_rows(0, owned)};
            },
            fmt::format("{} rows, {} x {} {}", owned, out, in, name_of(act)));
      }
}

// From the numbers: both operands are transposed and padded by the quantiser, whose unused columns hold NaN.
TEST(Fp8Product, WeightGradientsOfEveryExpert) {
  for (const auto& offsets : kOffsets)
    for (const auto& [out, in] : {std::pair<int64_t, int64_t>{33, 7}, {140, 150}, {128, 256}})
      for (const Accumulate mode : {Accumulate::overwrite, Accumulate::add}) {
        const int64_t owned = offsets.back(), rows = owned + kOwnerless;
        expect_product(
            [&](Bench& b) -> Outputs {
              const Tensor from = b.t.indices(offsets), padded = b.t.garbage(DType::i32, 1, kExperts + 1);
              const Tensor dy = b.t.normal(DType::bf16, rows, out), x = b.t.normal_row_tiles(rows, in);
              const int64_t room = padded_rows(rows, kExperts);
              const Tensor dy8 = b.t.garbage_row_tiles(out, room), x8 = b.t.garbage_row_tiles(in, room);
              on(b.s).pad_offsets({.offsets = from, .padded = padded});
              on(b.s).quantize({.x = dy, .transposed = dy8, .offsets = from, .padded = padded});
              on(b.s).quantize({.x = x, .transposed = x8, .offsets = from, .padded = padded});
              const Tensor dw = mode == Accumulate::add ? b.t.normal(DType::f32, kExperts * out, in)
                                                        : b.t.garbage(DType::f32, kExperts * out, in);
              on(b.s).grouped_weight_grad(
                  {.dy = dy8, .x = x8, .dw = dw, .offsets = padded, .experts = kExperts, .accumulate = mode});
              return {dw};
            },
            fmt::format("{} rows, {} x {}", owned, out, in));
      }
}

TEST(Fp8Product, OtherLayoutsAreRefused) {
  expect_refused(
      [](Bench& b) {
        on(b.s).gemm({.a = b.t.normal_row_tiles(4, 20),
                      .b = b.t.normal_e4m3(20, 8),
                      .c = b.t.garbage(DType::f32, 4, 8)});
      },
      "FP8");
  expect_refused(
      [](Bench& b) {
        on(b.s).grouped_gemm({.x = b.t.normal_row_tiles(4, 20),
                              .w = b.t.normal_e4m3(20, 8),
                              .y = b.t.garbage(DType::f32, 4, 8),
                              .offsets = b.t.indices({0, 4}),
                              .experts = 1,
                              .input_grad = true});
      },
      "transposed weight");
}

}  // namespace
}  // namespace cachalot
