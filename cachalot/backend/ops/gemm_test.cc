#include "backend/ops/gemm.h"

#include <array>
#include <utility>

#include <array>

#include "backend/cpu/kernels.h"
#include "backend/cpu/peak.h"
#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

struct Case {
  int64_t m = 0, n = 0, k = 0;
  bool trans_a = false, trans_b = false;
  DType a = DType::f32, b = DType::f32, c = DType::f32;
  Accumulate accumulate = Accumulate::overwrite;
  int64_t padding = 0;
  std::string text() const {
    return fmt::format("m {} n {} k {} {}{} {} {} {} {} padding {}", m, n, k, trans_a ? "T" : "N",
                       trans_b ? "T" : "N", name_of(a), name_of(b), name_of(c),
                       accumulate == Accumulate::add ? "add" : "overwrite", padding);
  }
};

Tensor operand(Bench& b, DType format, int64_t rows, int64_t cols, int64_t padding) {
  if (format == DType::e4m3) return b.t.normal_e4m3(rows, cols, 0, padding);
  return b.t.normal(format, rows, cols, 1, padding);
}

Outputs run(Bench& b, const Case& c) {
  const Tensor left = operand(b, c.a, c.trans_a ? c.k : c.m, c.trans_a ? c.m : c.k, c.padding);
  const Tensor right = operand(b, c.b, c.trans_b ? c.n : c.k, c.trans_b ? c.k : c.n, 2 * c.padding);
  const Tensor out = c.accumulate == Accumulate::add ? b.t.normal(c.c, c.m, c.n, 1, c.padding)
                                                     : b.t.garbage(c.c, c.m, c.n, c.padding);
  on(b.s).gemm({.a = left,
                .b = right,
                .c = out,
                .trans_a = c.trans_a,
                .trans_b = c.trans_b,
                .accumulate = c.accumulate});
  return {out};
}

// Where a row's bits do not depend on the rows beside it. On a GPU few rows take other kernels than many
// (docs/numerics.md, "Determinism"); what it repeats is shown by expect_like_ref.
bool keeps_rows(const TestedDevice& d) { return !d.name.starts_with("cuda"); }

const int64_t kShapes[][3] = {{1, 1, 1},    {3, 7, 5},     {7, 1, 33},   {1, 33, 129},   {17, 33, 7},
                              {33, 65, 17}, {129, 17, 33}, {5, 257, 65}, {65, 129, 257}, {257, 300, 3}};

TEST(Gemm, EveryLayoutAndFormatMeetsTheMetric) {
  const DType acts[] = {DType::f32, DType::bf16}, weights[] = {DType::f32, DType::bf16, DType::e4m3};
  int number = 0;
  for (const auto& [m, n, k] : kShapes)
    for (const bool trans_a : {false, true})
      for (const bool trans_b : {false, true})
        for (const DType weight : weights) {
          ++number;  // the remaining choices change from case to case: all pairs come up
          const Case c{.m = m,
                       .n = n,
                       .k = k,
                       .trans_a = trans_a,
                       .trans_b = trans_b,
                       .a = acts[number % 2],
                       .b = weight,
                       .c = acts[number / 2 % 2],
                       .accumulate = number % 3 == 0 ? Accumulate::add : Accumulate::overwrite,
                       .padding = number % 5};
          expect_like_ref([&](Bench& b) { return run(b, c); }, c.text());
        }
}

// Rows on 16 bytes and whole tiles: what libraries and tensor cores take; one row and few rows: decoding.
TEST(Gemm, AlignedShapesInEveryFormat) {
  const DType formats[] = {DType::f32, DType::bf16, DType::e4m3};
  int number = 0;
  for (const auto& [m, n, k] :
       {std::array<int64_t, 3>{72, 136, 200}, {1, 264, 512}, {5, 72, 264}, {136, 72, 64}})
    for (const bool trans_a : {false, true})
      for (const bool trans_b : {false, true})
        for (const DType a : formats)
          for (const DType b : formats) {
            if (trans_a && m % 8 != 0) continue;  // not aligned
            ++number;
            const Case c{.m = m,
                         .n = n,
                         .k = k,
                         .trans_a = trans_a,
                         .trans_b = trans_b,
                         .a = a,
                         .b = b,
                         .c = number % 2 ? DType::f32 : DType::bf16,
                         .accumulate = number % 3 ? Accumulate::overwrite : Accumulate::add,
                         .padding = number % 5 ? 0 : 8};
            expect_like_ref([&](Bench& bench) { return run(bench, c); }, c.text());
          }
}

// Decoding of some sequences: rows that fill tiles of eight and do not, columns and K that end inside a tile.
void expect_like_ref_in_bf16(const std::vector<int64_t>& rows) {
  int number = 0;
  for (const int64_t m : rows)
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{40, 8}, {24, 264}, {72, 1032}, {16, 2048}}) {
      ++number;
      const Case c{.m = m,
                   .n = n,
                   .k = k,
                   .trans_a = false,
                   .trans_b = true,
                   .a = DType::bf16,
                   .b = DType::bf16,
                   .c = number % 2 ? DType::f32 : DType::bf16,
                   .accumulate = number % 3 ? Accumulate::overwrite : Accumulate::add,
                   .padding = number % 5 ? 0 : 8};
      expect_like_ref([&](Bench& bench) { return run(bench, c); }, c.text());
    }
}
TEST(Gemm, SomeRowsOfBf16) { expect_like_ref_in_bf16({2, 7, 8, 9, 17, 32}); }
// What they take of small weights, and what no kernel for some rows takes any more.
TEST(Gemm, MoreRowsOfBf16) { expect_like_ref_in_bf16({33, 40, 130}); }

TEST(Gemm, ScaledWeightsMayStandOnTheLeft) {
  for (const bool trans : {false, true}) {
    const Case c{.m = 140, .n = 9, .k = 150, .trans_a = trans, .a = DType::e4m3};
    expect_like_ref([&](Bench& b) { return run(b, c); }, c.text());
  }
}

TEST(Gemm, SlicesOfStackedScaledWeightsKeepTheirScales) {
  for (const bool trans_b : {false, true})
    expect_like_ref([&](Bench& b) -> Outputs {
      const Tensor w =
          b.t.normal_e4m3(3 * 150, 140, 150).slice_rows(150 + 20, 130);  // [130, 140] of the second part
      const Tensor x = b.t.normal(DType::bf16, 5, trans_b ? 140 : 130);
      const Tensor y = b.t.garbage(DType::f32, 5, trans_b ? 130 : 140);
      on(b.s).gemm({.a = x, .b = w, .c = y, .trans_b = trans_b});
      return {y};
    });
}

TEST(Gemm, LongSumsStayAccurate) {
  for (const int64_t k : {4099, 18432})
    for (const bool positive : {false, true})  // positive: sums grow like k, not like its root
      expect_like_ref([&](Bench& b) -> Outputs {
        const double low = positive ? 0 : -1;
        const Tensor x = b.t.uniform(DType::f32, 3, k, low, 1), w = b.t.uniform(DType::f32, 5, k, low, 1);
        const Tensor y = b.t.garbage(DType::f32, 3, 5);
        on(b.s).gemm({.a = x, .b = w, .c = y, .trans_b = true});
        return {y};
      });
}

TEST(Gemm, NothingToSumGivesZerosOrLeavesWhatWasThere) {
  for (const Accumulate mode : {Accumulate::overwrite, Accumulate::add})
    for (const DType format : {DType::f32, DType::bf16})
      expect_like_ref(
          [&](Bench& b) { return run(b, {.m = 3, .n = 5, .k = 0, .c = format, .accumulate = mode}); });
}

TEST(Gemm, NoRowsOrNoColumnsAreFine) {
  for (const TestedDevice& tested : tested_devices()) {
    Bench b(*tested.device);
    run(b, {.m = 0, .n = 5, .k = 3});
    run(b, {.m = 4, .n = 0, .k = 3});
  }
}

// Decoding one token must give what the same token gave in a batch.
TEST(Gemm, ARowHasTheSameBitsWhateverStandsBesideIt) {
  const int64_t k = 700, n = 70;
  for (const TestedDevice& tested : tested_devices())
    for (const bool trans_b : {false, true})
      for (const DType weight : {DType::f32, DType::bf16, DType::e4m3}) {
        if (!keeps_rows(tested)) continue;
        Bench b(*tested.device);
        const Tensor x = b.t.normal(DType::bf16, 300, k);
        const Tensor w = operand(b, weight, trans_b ? n : k, trans_b ? k : n, 0);
        const Tensor all = b.t.garbage(DType::f32, 300, n);
        on(b.s).gemm({.a = x, .b = w, .c = all, .trans_b = trans_b});
        for (const int64_t rows : {1, 3, 7, 13}) {
          const Tensor some = b.t.garbage(DType::f32, rows, n);
          on(b.s).gemm({.a = x.slice_rows(250, rows), .b = w, .c = some, .trans_b = trans_b});
          EXPECT_TRUE(read_bits(b.s, some) == read_bits(b.s, all.slice_rows(250, rows)))
              << tested.name << ", " << rows << " rows, " << name_of(weight);
        }
        // Transposed on the left: the same numbers, another way into the panels.
        const Tensor one = b.t.garbage(DType::f32, 1, n), column = b.t.copy(b.s, x.slice_rows(299, 1));
        Tensor upright = column;
        upright.rows = k, upright.cols = 1, upright.ld = 1;
        on(b.s).gemm({.a = upright, .b = w, .c = one, .trans_a = true, .trans_b = trans_b});
        EXPECT_TRUE(read_bits(b.s, one) == read_bits(b.s, all.slice_rows(299, 1))) << tested.name;
      }
}

// Decoding reads the weights where they are, training packs them: rows of every count and K of every
// remainder, with columns that fill no vector and scales that change inside.
TEST(Gemm, FewRowsHaveTheBitsOfManyForEveryLength) {
  for (const TestedDevice& tested : tested_devices())
    for (const int64_t k : {1, 2, 7, 15, 33, 64, 127, 130, 257, 512, 515, 1024, 2100})
      for (const bool trans_b : {false, true})
        for (const auto& [act, weight] : {std::pair{DType::f32, DType::f32},
                                          {DType::f32, DType::bf16},
                                          {DType::f32, DType::e4m3},
                                          {DType::bf16, DType::bf16},
                                          {DType::bf16, DType::e4m3}}) {
          const int64_t n = 37 + k % 5 * 16, many = 18, padding = k % 3;
          if (!keeps_rows(tested)) continue;
          Bench b(*tested.device);
          const Tensor x = b.t.normal(act, many, k, 1, padding);
          const Tensor w = operand(b, weight, trans_b ? n : k, trans_b ? k : n, padding);
          const Tensor all = b.t.garbage(DType::f32, many, n);
          on(b.s).gemm({.a = x, .b = w, .c = all, .trans_b = trans_b});
          for (const int64_t rows : {1, 2, 4, 5, 8, 9}) {
            const Tensor some = b.t.garbage(DType::f32, rows, n, padding);
            on(b.s).gemm({.a = x.slice_rows(many - rows, rows), .b = w, .c = some, .trans_b = trans_b});
            EXPECT_TRUE(read_bits(b.s, some) == read_bits(b.s, all.slice_rows(many - rows, rows)))
                << tested.name << ", " << rows << " rows, k " << k << " " << trans_b << " " << name_of(act)
                << " " << name_of(weight);
            EXPECT_TRUE(b.t.padding_intact(some));
          }
        }
}

// Blocks of C, chunks of K, panels shared by many tiles: larger than one of each.
TEST(Gemm, BlocksAndChunksChangeNothing) {
  for (const auto& [m, n, k] : {std::array<int64_t, 3>{1540, 7, 40}, {30, 1545, 70}, {200, 80, 31000}})
    for (const DType act : {DType::f32, DType::bf16}) {
      if (k > 1000 && act == DType::bf16) continue;  // the same loops, twice the time to make the numbers
      std::string first;
      for (const TestedDevice& tested : tested_devices()) {
        if (!keeps_rows(tested)) continue;
        if (tested.name.find("emulated") != std::string::npos) continue;  // takes minutes
        Bench b(*tested.device);
        const Tensor x = b.t.normal(act, m, k), w = b.t.normal(act, n, k);
        const Tensor all = b.t.garbage(DType::f32, m, n), some = b.t.garbage(DType::f32, 17, n);
        on(b.s).gemm({.a = x, .b = w, .c = all, .trans_b = true});
        on(b.s).gemm({.a = x.slice_rows(m - 17, 17), .b = w, .c = some, .trans_b = true});
        const std::string bits = read_bits(b.s, all);
        EXPECT_TRUE(read_bits(b.s, some) == read_bits(b.s, all.slice_rows(m - 17, 17))) << tested.name;
        if (tested.same_bits_as == 0) {
          EXPECT_TRUE(bits == first) << tested.name;
        }
        if (&tested == &tested_devices()[0]) first = bits;
      }
    }
}

// Instructions that multiply bf16 take numbers below 2^-126 for zero; beside ordinary ones that is no matter.
TEST(Gemm, DenormalNumbersDoNoHarm) {
  for (const DType format : {DType::f32, DType::bf16})
    for (const int64_t m : {1, 20})
      expect_like_ref([&](Bench& b) -> Outputs {
        std::vector<double> numbers(size_t(m * 70));
        for (size_t i = 0; i < numbers.size(); ++i)
          numbers[i] = i % 3 ? std::ldexp(double(i % 7) - 3, -130) : double(i % 5) - 1.5;
        const Tensor x = b.t.values(format, m, 70, numbers), w = b.t.normal(format, 33, 70);
        const Tensor y = b.t.garbage(DType::f32, m, 33);
        on(b.s).gemm({.a = x, .b = w, .c = y, .trans_b = true});
        return {y};
      });
}

TEST(Gemm, NanCodesOfScaledWeightsReachTheirColumn) {
  for (const TestedDevice& tested : tested_devices())
    for (const DType act : {DType::f32, DType::bf16})
      for (const int64_t m : {1, 13}) {
        Bench b(*tested.device);
        const Tensor x = b.t.normal(act, m, 140), w = b.t.normal_e4m3(40, 140),
                     y = b.t.zeros(DType::f32, m, 40);
        const uint8_t nan = 0xFF;
        Tensor code = w.slice_rows(6, 1);
        code.data = static_cast<uint8_t*>(code.data) + 131, code.cols = 1;
        on(b.s).upload(&nan, code);
        on(b.s).gemm({.a = x, .b = w, .c = y, .trans_b = true});
        const std::vector<double> values = read(b.s, y);
        for (size_t i = 0; i < values.size(); ++i)
          EXPECT_EQ(std::isnan(values[i]), i % 40 == 6) << tested.name << " " << m << " " << i;
      }
}

TEST(Gemm, AColumnHasTheSameBitsWhateverStandsBesideIt) {
  for (const TestedDevice& tested : tested_devices()) {
    if (!keeps_rows(tested)) continue;
    Bench b(*tested.device);
    const Tensor x = b.t.normal(DType::f32, 5, 300), w = b.t.normal(DType::f32, 520, 300);
    const Tensor all = b.t.garbage(DType::f32, 5, 520), one = b.t.garbage(DType::f32, 5, 1);
    on(b.s).gemm({.a = x, .b = w, .c = all, .trans_b = true});
    for (const int64_t column : {0, 255, 256, 519}) {
      on(b.s).gemm({.a = x, .b = w.slice_rows(column, 1), .c = one, .trans_b = true});
      EXPECT_EQ(read(b.s, one), read(b.s, all.slice_cols(column, 1))) << tested.name;
    }
  }
}

TEST(Gemm, NanReachesItsOwnRowOnly) {
  for (const TestedDevice& tested : tested_devices()) {
    Bench b(*tested.device);
    const Tensor x = b.t.normal(DType::f32, 14, 30), w = b.t.normal(DType::f32, 20, 30);
    const Tensor y = b.t.zeros(DType::f32, 14, 20);
    const float nan = NAN;
    on(b.s).upload(&nan, x.slice_rows(6, 1).slice_cols(3, 1));
    on(b.s).gemm({.a = x, .b = w, .c = y, .trans_b = true});
    const std::vector<double> values = read(b.s, y);
    for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(std::isnan(values[i]), i / 20 == 6) << tested.name;
  }
}

TEST(Gemm, DoubleIsForRefOnly) {
  expect_refused(
      [](Bench& b) { run(b, {.m = 2, .n = 3, .k = 4, .a = DType::f64, .b = DType::f64, .c = DType::f64}); },
      "gemm: f64");
}

// The kernels are chosen when a device opens.
TEST(CpuIsa, AnUnknownNameIsAnErrorThatListsWhatThereIs) {
  const ForcedIsa forced("avx1024");
  try {
    open_cpu_device(1);
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("avx1024"), std::string::npos) << e.what();
    EXPECT_FALSE(e.hint().empty());
  }
}

TEST(CpuIsa, EveryChoiceSaysWhyAndOneIsMade) {
  int chosen = 0;
  for (int i = 0; i < cpu::kKernelChoices; ++i) {
    const cpu::KernelChoice& c = cpu::kernel_choices()[i];
    EXPECT_NE(std::string(c.why), "") << c.isa;
    EXPECT_TRUE(c.runs || !c.chosen) << c.isa;
    chosen += c.chosen;
    const ForcedIsa forced(c.isa);
    if (c.runs) {
      EXPECT_EQ(&cpu::choose_kernels(), c.kernels);
    } else {
      EXPECT_THROW(cpu::choose_kernels(), Error) << c.isa;
    }
  }
  EXPECT_EQ(chosen, 1);
}

TEST(CpuIsa, PeaksAreMeasured) {
  const cpu::Kernels& kernels = cpu::choose_kernels();
  EXPECT_GT(cpu::measure_peak_flops(*kernels.floats, 2, 0.01), 1e8);
  EXPECT_GT(cpu::measure_read_bandwidth(kernels, 1 << 20, 2, 0.01), 1e7);
}

// AVX2 and AVX-512 both multiply and add with one rounding, in the same order.
TEST(CpuIsa, Avx2AndAvx512GiveTheSameGemmBits) {
  std::vector<std::string> bits;
  for (const TestedDevice& tested : tested_devices()) {
    if (tested.name != "cpu, avx2" && tested.name != "cpu, avx512") continue;
    Bench b(*tested.device);
    bits.push_back(read_bits(b.s, run(b, {.m = 33, .n = 65, .k = 300, .trans_b = true})[0]));
  }
  if (bits.size() < 2) return;  // not of this machine
  EXPECT_TRUE(bits[0] == bits[1]);
}

}  // namespace
}  // namespace cachalot
