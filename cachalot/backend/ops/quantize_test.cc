#include "backend/ops/quantize.h"

#include <algorithm>
#include <numeric>

#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

std::vector<int32_t> padded_of(const std::vector<int32_t>& offsets) {
  std::vector<int32_t> padded{0};
  for (size_t e = 1; e < offsets.size(); ++e)
    padded.push_back(padded.back() + (offsets[e] - offsets[e - 1] + 127) / 128 * 128);
  return padded;
}

TEST(Quantize, RowTilesAndThoseOfTheTranspose) {
  int number = 0;
  for (const int64_t rows : {0, 1, 3, 127, 128, 129, 300})
    for (const int64_t cols : {1, 7, 16, 128, 130, 257, 400})
      for (const DType act : {DType::f32, DType::bf16}) {
        const int64_t padding = ++number % 4;
        const bool power_of_two = number / 2 % 2;
        expect_like_ref(
            [&](Bench& b) -> Outputs {
              const Tensor x = b.t.normal(act, rows, cols, 3, padding);
              const Tensor y = b.t.garbage_row_tiles(rows, cols, padding),
                           transposed = b.t.garbage_row_tiles(cols, rows, padding);
              const Tensor only_y = b.t.garbage_row_tiles(rows, cols),
                           only_transposed = b.t.garbage_row_tiles(cols, rows);
              on(b.s).quantize({.x = x, .y = y, .transposed = transposed, .power_of_two = power_of_two});
              on(b.s).quantize({.x = x, .y = only_y, .power_of_two = power_of_two});
              on(b.s).quantize({.x = x, .transposed = only_transposed, .power_of_two = power_of_two});
              return {y, transposed, only_y, only_transposed};
            },
            fmt::format("{} x {} {} {}", rows, cols, name_of(act), power_of_two));
      }
}

// Every code is a nearest one, and a scale is no larger than it must be.
TEST(Quantize, CodesAreTheNearestOnes) {
  std::vector<double> numbers;  // that codes stand for
  for (int i = 0; i < 127; ++i) numbers.push_back(float(std::bit_cast<e4m3>(uint8_t(i))));
  for (const bool power_of_two : {false, true}) {
    Bench b(ref_device());
    const Tensor x = b.t.normal(DType::f32, 40, 200, 1), y = b.t.garbage_row_tiles(40, 200);
    on(b.s).quantize({.x = x, .y = y, .power_of_two = power_of_two});
    const HostTensor from = download(b.s, x), to = download(b.s, y);
    for (int64_t r = 0; r < 40; ++r)
      for (int64_t c = 0; c < 200; ++c) {
        const double scale = to.tensor().scale(r, c), size = std::abs(from(r, c)) / scale;
        double nearest = 1e30;
        for (const double number : numbers) nearest = std::min(nearest, std::abs(number - size));
        EXPECT_LE(std::abs(std::abs(to(r, c)) / scale - size), nearest * (1 + 1e-5));
        EXPECT_LE(size, 448.001);
      }
    for (int64_t r = 0; r < 40; ++r)
      for (int64_t tile = 0; tile < 2; ++tile) {
        double largest = 0;
        for (int64_t c = tile * 128; c < std::min<int64_t>(200, tile * 128 + 128); ++c)
          largest = std::max(largest, std::abs(from(r, c)) / to.tensor().scale(r, c));
        EXPECT_GE(largest, power_of_two ? 223.99 : 447.99);
      }
  }
}

// Amax, what the scale must be, and with powers of two.
TEST(Quantize, ScalesByHand) {
  const double cases[][3] = {{0, 1e-4f / 448.0f, 0x1p-22},
                             {5e-5, 1e-4f / 448.0f, 0x1p-22},
                             {448, 1, 1},
                             {449, 449.0f / 448.0f, 2},
                             {896, 2, 2},
                             {7, 0x1p-6, 0x1p-6},
                             {1e30, 1e30f / 448.0f, 0}};
  for (const TestedDevice& tested : tested_devices()) {
    Bench b(*tested.device);
    for (const auto& [amax, scale, power] : cases)
      for (const bool power_of_two : {false, true}) {
        if (power_of_two && power == 0) continue;
        std::vector<double> values(130, amax / 2);
        values[77] = -amax, values[128] = values[129] = 0;
        const Tensor x = b.t.values(DType::f32, 1, 130, values), y = b.t.garbage_row_tiles(1, 130);
        on(b.s).quantize({.x = x, .y = y, .power_of_two = power_of_two});
        const HostTensor got = download(b.s, y);
        EXPECT_EQ(got.tensor().scale(0, 0), float(power_of_two ? power : scale))
            << tested.name << " " << amax;
        EXPECT_EQ(got.tensor().scale(0, 128), power_of_two ? 0x1p-22f : 1e-4f / 448.0f) << tested.name;
        if (amax >= 1e-4) {
          EXPECT_NEAR(got(0, 77), -amax, power_of_two ? amax / 16 : amax * 1e-6) << tested.name;
        }
      }
  }
}

TEST(Quantize, WhatIsNotFiniteShowsInItsTileAndInNoOther) {
  constexpr int64_t kCols = 304;
  const double nan = std::nan(""), inf = INFINITY;
  for (const DType act : {DType::f32, DType::bf16})
    for (const double bad : {nan, -nan, inf, -inf})
      for (const bool power_of_two : {false, true})
        expect_like_ref(
            [&](Bench& b) -> Outputs {
              std::vector<double> values(3 * kCols);
              for (size_t i = 0; i < values.size(); ++i) values[i] = std::sin(double(i));
              values[kCols + 130] = bad;
              const Tensor x = b.t.values(act, 3, kCols, values), y = b.t.garbage_row_tiles(3, kCols),
                           transposed = b.t.garbage_row_tiles(kCols, 3),
                           of_codes = b.t.garbage_row_tiles(kCols, 3);
              on(b.s).quantize({.x = x, .y = y, .transposed = transposed, .power_of_two = power_of_two});
              on(b.s).quantize({.x = y, .transposed = of_codes, .power_of_two = power_of_two});
              const HostTensor got = download(b.s, y);
              for (int64_t r = 0; r < 3; ++r)
                for (int64_t c = 0; c < kCols; ++c) {
                  const bool tile = r == 1 && c / 128 == 1, itself = tile && c == 130;
                  EXPECT_EQ(std::isnan(got(r, c)), std::isinf(bad) ? tile : itself) << r << " " << c;
                }
              return {y, transposed, of_codes};
            },
            fmt::format("{} {} {}", bad, name_of(act), power_of_two));
}

// Rows that begin on 16 bytes take other paths: whole tiles and ragged ones, numbers and codes.
TEST(Quantize, TransposesOfRowsThatAreReadInEights) {
  for (const int64_t rows : {128, 141})
    for (const int64_t cols : {136, 384})
      for (const DType act : {DType::f32, DType::bf16})
        for (const bool power_of_two : {false, true})
          expect_like_ref(
              [&](Bench& b) -> Outputs {
                const Tensor x = b.t.normal(act, rows, cols, 3, 8), y = b.t.garbage_row_tiles(rows, cols),
                             transposed = b.t.garbage_row_tiles(cols, rows),
                             alone = b.t.garbage_row_tiles(cols, rows),
                             of_codes = b.t.garbage_row_tiles(cols, rows);
                on(b.s).quantize({.x = x, .y = y, .transposed = transposed, .power_of_two = power_of_two});
                on(b.s).quantize({.x = x, .transposed = alone, .power_of_two = power_of_two});
                on(b.s).quantize({.x = y, .transposed = of_codes, .power_of_two = power_of_two});
                return {y, transposed, alone, of_codes};
              },
              fmt::format("{} x {} {} {}", rows, cols, name_of(act), power_of_two));
}

// A bf16 over a scale of a bf16 / 448 may be the middle between two codes, less or more only by how the scale
// was rounded: every mantissa of x below every one of amax, wherever E4M3 has numbers.
TEST(Quantize, QuotientsNearTheMiddleOfTwoCodesRoundAsTheContractSays) {
  constexpr int kMantissas = 128, kBinades = 20;
  std::vector<double> values;
  for (int amax = kMantissas; amax < 2 * kMantissas; ++amax)
    for (int binade = 0; binade < kBinades; ++binade) {
      values.push_back(amax);
      for (int x = kMantissas; x < 2 * kMantissas - 1; ++x) {
        const double size = std::ldexp(x, -binade);
        values.push_back(std::copysign(size <= amax ? size : size / 2, x % 3 - 1));
      }
    }
  for (const bool power_of_two : {false, true})
    expect_like_ref(
        [&](Bench& b) -> Outputs {
          const Tensor x = b.t.values(DType::bf16, kMantissas, kBinades * kScaleBlock, values),
                       y = b.t.garbage_row_tiles(x.rows, x.cols),
                       transposed = b.t.garbage_row_tiles(x.cols, x.rows);
          on(b.s).quantize({.x = x, .y = y, .transposed = transposed, .power_of_two = power_of_two});
          return {y, transposed};
        },
        power_of_two ? "powers of two" : "");
}

const std::vector<std::vector<int32_t>> kOffsets = {{0, 0, 1, 1, 8, 15, 15},
                                                    {0, 0, 0, 0, 0, 0, 0},
                                                    {0, 128, 128, 129, 256, 257, 400},
                                                    {0, 129, 129, 300, 301, 557, 557}};

TEST(Quantize, ExpertsArePaddedToWholeTiles) {
  constexpr int64_t kOwnerless = 3;
  for (const auto& offsets : kOffsets)
    for (const int64_t cols : {5, 130, 272})
      for (const DType act : {DType::bf16, DType::f32, DType::e4m3})
        expect_like_ref(
            [&](Bench& b) -> Outputs {
              const int64_t owned = offsets.back(), rows = owned + kOwnerless, experts = 6;
              const std::vector<int32_t> padded = padded_of(offsets);
              const bool codes = act == DType::e4m3;
              const Tensor x = codes ? b.t.normal_row_tiles(rows, cols) : b.t.normal(act, rows, cols, 2, 1);
              const Tensor y = b.t.garbage_row_tiles(rows, cols),
                           transposed = b.t.garbage_row_tiles(cols, padded_rows(rows, experts));
              EXPECT_LE(padded.back(), transposed.cols);
              const Tensor made = b.t.garbage(DType::i32, 1, experts + 1), from = b.t.indices(offsets);
              on(b.s).pad_offsets({.offsets = from, .padded = made});
              EXPECT_EQ(read_indices(b.s, made), padded);
              on(b.s).quantize({.x = x,
                                .y = codes ? Tensor{} : y,
                                .transposed = transposed,
                                .offsets = from,
                                .padded = made,
                                .power_of_two = cols == 130});
              for (const double number : read(b.s, y.slice_rows(owned, kOwnerless)))
                EXPECT_TRUE(std::isnan(number)) << "rows of nobody";
              for (const double number :
                   read(b.s, transposed.slice_cols(padded.back(), transposed.cols - padded.back())))
                EXPECT_TRUE(std::isnan(number)) << "columns of nobody";
              const Tensor filled = transposed.slice_cols(0, padded.back());
              const HostTensor columns = download(b.s, filled), in = download(b.s, x);
              for (size_t e = 0; e + 1 < offsets.size(); ++e)
                for (int64_t i = padded[e]; i < padded[e + 1]; ++i) {
                  const int64_t r = offsets[e] + i - padded[e];
                  const double wanted = r < offsets[e + 1] ? in(r, cols - 1) : 0;
                  EXPECT_NEAR(columns(cols - 1, i), wanted, 0.07 * std::abs(wanted) + 0.05);
                }
              if (codes) return {filled};
              return {y.slice_rows(0, owned), filled};
            },
            fmt::format("{} rows x {} {}", offsets.back(), cols, name_of(act)));
}

// Activations that were kept as codes: their numbers, quantised again along the other direction.
TEST(Quantize, CodesAreTiledAnew) {
  for (const int64_t rows : {1, 100, 257})
    for (const int64_t cols : {3, 144, 200, 272})
      for (const bool power_of_two : {false, true})
        expect_like_ref([&](Bench& b) -> Outputs {
          const Tensor x = b.t.normal_row_tiles(rows, cols, cols % 16 == 0 ? 16 : 5),
                       again = b.t.garbage_row_tiles(cols, rows);
          on(b.s).quantize({.x = x, .transposed = again, .power_of_two = power_of_two});
          return {again};
        });
}

// So many tiles that whoever makes one goes on to others: of hundreds of experts with few rows or none.
TEST(Quantize, CodesOfManyExpertsAreTiledAnew) {
  constexpr int64_t kExperts = 600, kCols = 144;
  std::vector<int32_t> offsets{0};
  for (int64_t e = 0; e < kExperts; ++e)
    offsets.push_back(offsets.back() + int32_t(e % 7 == 3 ? 0 : e % 50 == 9 ? 130 : 1 + e % 2));
  const std::vector<int32_t> padded = padded_of(offsets);
  expect_like_ref([&](Bench& b) -> Outputs {
    const int64_t rows = offsets.back();
    const Tensor x = b.t.normal_row_tiles(rows, kCols, 16),
                 transposed = b.t.garbage_row_tiles(kCols, padded_rows(rows, kExperts));
    on(b.s).quantize({.x = x,
                      .transposed = transposed,
                      .offsets = b.t.indices(offsets),
                      .padded = b.t.indices(padded),
                      .power_of_two = true});
    return {transposed.slice_cols(0, padded.back())};
  });
}

TEST(Quantize, WrongOffsetsAreRefused) {
  for (const auto& [offsets, padded] :
       {std::pair{std::vector<int32_t>{0, 5, 9}, std::vector<int32_t>{0, 128, 256}},  // beyond the rows
        {std::vector<int32_t>{0, 5, 8}, std::vector<int32_t>{0, 128, 1024}}})         // beyond the columns
    expect_refused(
        [&](Bench& b) {
          on(b.s).quantize({.x = b.t.normal(DType::f32, 8, 4),
                            .y = {},
                            .transposed = b.t.garbage_row_tiles(4, 256),
                            .offsets = b.t.indices(offsets),
                            .padded = b.t.indices(padded)});
        },
        "quantize");
}

struct Stack {
  int64_t experts, outputs, part_rows, inputs;
};

TEST(QuantizeWeight, BlocksOfTheWeightAndOfItsTranspose) {
  for (const Stack& w : {Stack{1, 1, 1, 1}, Stack{1, 300, 300, 130}, Stack{3, 20, 10, 33},
                         Stack{2, 256, 128, 200}, Stack{2, 130, 65, 129}})
    for (const DType format : {DType::f32, DType::bf16})
      for (const bool power_of_two : {false, true})
        expect_like_ref(
            [&](Bench& b) -> Outputs {
              const int64_t rows = w.experts * w.outputs;
              const Tensor x = b.t.normal(format, rows, w.inputs, 0.1, 2);
              const Tensor y = b.t.garbage_e4m3(rows, w.inputs, w.part_rows, 1),
                           transposed = b.t.garbage_e4m3(w.experts * w.inputs, w.outputs, w.inputs, 3);
              on(b.s).quantize_weight({.x = x,
                                       .y = y,
                                       .transposed = transposed,
                                       .experts = w.experts,
                                       .power_of_two = power_of_two});
              const Tensor alone = b.t.garbage_e4m3(w.experts * w.inputs, w.outputs, w.inputs);
              on(b.s).quantize_weight(
                  {.x = x, .transposed = alone, .experts = w.experts, .power_of_two = power_of_two});
              return {y, transposed, alone};
            },
            fmt::format("{} of {} x {}, {} {}", w.experts, w.outputs, w.inputs, name_of(format),
                        power_of_two));
}

// Where the blocks are the same, the transpose of a checkpoint's codes is those codes, whatever made its
// scales; and what is made from the numbers is the transpose of what is made from them as they lie.
TEST(QuantizeWeight, TheTransposeCarriesCodesAndScalesOver) {
  for (const Stack& w : {Stack{1, 300, 300, 130}, Stack{2, 256, 128, 200}, Stack{3, 100, 100, 40}})
    for (const TestedDevice& tested : tested_devices()) {
      Bench b(*tested.device);
      const int64_t rows = w.experts * w.outputs, turned_rows = w.experts * w.inputs;
      const Tensor codes = b.t.normal_e4m3(rows, w.inputs, w.part_rows, 3);
      const Tensor turned = b.t.garbage_e4m3(turned_rows, w.outputs, w.inputs);
      const Tensor x = b.t.normal(DType::f32, rows, w.inputs),
                   y = b.t.garbage_e4m3(rows, w.inputs, w.part_rows),
                   of_x = b.t.garbage_e4m3(turned_rows, w.outputs, w.inputs);
      on(b.s).quantize_weight({.x = codes, .transposed = turned, .experts = w.experts});
      on(b.s).quantize_weight({.x = x, .y = y, .transposed = of_x, .experts = w.experts});
      for (const auto& [from, to] : {std::pair{codes, turned}, {y, of_x}}) {
        const HostTensor a = download(b.s, from), c = download(b.s, to);
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t k = 0; k < w.inputs; ++k) {
            const int64_t e = r / w.outputs, to_row = e * w.inputs + k, to_col = r % w.outputs;
            ASSERT_EQ(a(r, k), c(to_row, to_col)) << tested.name;
            ASSERT_EQ(a.tensor().scale(r, k), c.tensor().scale(to_row, to_col)) << tested.name;
          }
      }
    }
}

// Parts of 65 rows have other blocks than 130 columns.
TEST(QuantizeWeight, CodesInOtherBlocksAreQuantisedAgain) {
  expect_like_ref([&](Bench& b) -> Outputs {
    const Tensor codes = b.t.normal_e4m3(2 * 130, 200, 65), turned = b.t.garbage_e4m3(2 * 200, 130, 200);
    on(b.s).quantize_weight({.x = codes, .transposed = turned, .experts = 2});
    return {turned};
  });
}

Outputs pack(Bench& b, const Tensor& x) {
  const Tensor packed = b.t.garbage(DType::i32, x.rows, (x.cols + 7) / 8 * 3),
               scales = b.t.garbage(DType::f32, (x.cols + 127) / 128, x.rows),
               y = b.t.garbage(x.dtype, x.rows, x.cols, 2);
  on(b.s).pack_e5m6({.x = x, .packed = packed, .scales = scales});
  on(b.s).unpack_e5m6({.packed = packed, .scales = scales, .y = y});
  return {packed, scales, y};
}

TEST(E5m6, PacksAndUnpacksTheSameBits) {
  for (const int64_t rows : {0, 1, 5, 130})
    for (const int64_t cols : {1, 7, 8, 13, 128, 200, 260})
      for (const DType act : {DType::f32, DType::bf16})
        expect_like_ref([&](Bench& b) { return pack(b, b.t.normal(act, rows, cols, 2, 1)); },
                        fmt::format("{} x {} {}", rows, cols, name_of(act)));
}

// Zeros, numbers that become subnormal or vanish, and what is not finite, beside others.
TEST(E5m6, SmallNumbersAndZerosBesideLargeOnes) {
  for (const DType act : {DType::f32, DType::bf16})
    for (const double unit : {1.0, 1e-30, 1e30})
      for (const bool finite : {true, false})
        expect_like_ref(
            [&](Bench& b) -> Outputs {
              std::vector<double> values(6 * 384);
              for (size_t i = 0; i < values.size(); ++i)
                values[i] =
                    i / 384 == 5 && i % 3 == 0 ? 0.0 : unit * std::ldexp(std::sin(double(i)), -int(i % 37));
              values[3 * 384 + 300] = -0.0;
              if (!finite) values[384 + 9] = std::nan(""), values[2 * 384 + 140] = INFINITY;
              const Outputs out = pack(b, b.t.values(act, 6, 384, values));
              return finite ? out : Outputs{out[0]};
            },
            fmt::format("{} x {}{}", name_of(act), unit, finite ? "" : ", not all finite"));
}

// All 4096 - 2 * 64 numbers of the format, beside the largest one so that the scale is 1: bits and values
// survive.
TEST(E5m6, EveryNumberOfTheFormatIsKept) {
  std::vector<double> numbers;
  for (int bits = 0; bits < 31 * 64; ++bits) {
    const int exponent = bits / 64, mantissa = bits % 64;
    numbers.push_back(exponent == 0 ? std::ldexp(mantissa, -20) : std::ldexp(64 + mantissa, exponent - 21));
  }
  for (const TestedDevice& tested : tested_devices()) {
    Bench b(*tested.device);
    std::vector<double> values;
    for (size_t i = 0; i < numbers.size(); ++i) {
      if (values.size() % 128 == 0) values.push_back(65024);
      values.push_back(i % 2 ? -numbers[i] : numbers[i]);
    }
    const Outputs out = pack(b, b.t.values(DType::f32, 1, int64_t(values.size()), values));
    EXPECT_EQ(read(b.s, out[2]), values) << tested.name;
    for (const double scale : read(b.s, out[1])) EXPECT_EQ(scale, 1) << tested.name;
  }
}

TEST(E5m6, RoundsTiesToEvenAndShowsWhatIsNotFinite) {
  for (const TestedDevice& tested : tested_devices()) {
    Bench b(*tested.device);
    // Between 64 and 66 steps of 1; subnormals: steps of 2^-20; the carry into the next exponent.
    const double step = 0x1p-20;
    const Tensor x = b.t.values(
        DType::f32, 2, 10,
        {65024, 64.5,         65.5, -64.5,     0.5 * step, 1.5 * step, 63.5 * step, 127.5, 127.49, -0.0,  //
         65024, std::nan(""), 1,    -INFINITY, 0,          2,          3,           4,     5,      6});
    const auto y = read(b.s, pack(b, x)[2]);
    const std::vector<double> expected{65024, 64, 66, -64, 0, 2 * step, 64 * step, 128, 127, -0.0};
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(y[i], expected[i]) << tested.name << " " << i;
    EXPECT_TRUE(std::signbit(y[9])) << tested.name;
    for (size_t i = 10; i < 20; ++i) EXPECT_TRUE(std::isnan(y[i])) << tested.name << " " << i;
  }
}

// 1 2 4 ... 128 have exponents 15 to 22 and no mantissa; 65024 makes the scale 1.
TEST(E5m6, WordsHoldTheirHighestBitsFirst) {
  for (const TestedDevice& tested : tested_devices()) {
    Bench b(*tested.device);
    const Tensor x = b.t.values(DType::f32, 1, 9, {1, 2, 4, 8, -16, 32, 64, 128, 65024});
    const auto words = read_indices(b.s, pack(b, x)[0]);
    const std::vector<uint32_t> codes{0x3C0, 0x400, 0x440, 0x480, 0xCC0, 0x500, 0x540, 0x580, 0x7BF};
    EXPECT_EQ(uint32_t(words[0]), codes[0] << 20 | codes[1] << 8 | codes[2] >> 4) << tested.name;
    EXPECT_EQ(uint32_t(words[1]), codes[2] << 28 | codes[3] << 16 | codes[4] << 4 | codes[5] >> 8);
    EXPECT_EQ(uint32_t(words[2]), codes[5] << 24 | codes[6] << 12 | codes[7]);
    EXPECT_EQ(uint32_t(words[3]), codes[8] << 20) << tested.name << ": behind the end of a row";
    EXPECT_EQ(words[4], 0);
    EXPECT_EQ(words[5], 0);
  }
}

TEST(Quantize, OutputsThatKernelsCouldNotReadAreRefused) {
  expect_refused(
      [](Bench& b) {
        Tensor y = b.t.garbage_row_tiles(4, 20);
        y.ld = 20;
        on(b.s).quantize({.x = b.t.normal(DType::f32, 4, 20), .y = y});
      },
      "16 bytes");
  expect_refused(
      [](Bench& b) {
        on(b.s).quantize({.x = b.t.normal_row_tiles(4, 20), .y = b.t.garbage_row_tiles(4, 20)});
      },
      "no y");
}

}  // namespace
}  // namespace cachalot
