// LatentAppend and LatentGather of ops/latent_attention.h, and attention over a cache in e4m3.
#include <bit>
#include <cmath>
#include <cstring>

#include "backend/ops/latent_attention.h"
#include "backend/ops/latent_row.h"
#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

struct Case {
  int64_t tokens = 5, latent = 512, rope = 64, heads = 3;
  DType act = DType::bf16, cache = DType::bf16;
  double scale = 1;    // of x
  bool exact = false;  // numbers whose norm and turn need no rounding, so that every device makes the same
  bool queries = true;
  int64_t padding = 0;
};

constexpr int64_t kSlots = 16;

struct Appended {
  Tensor cache, q;
};

Appended append(Bench& b, const Case& c) {
  const int64_t width = c.latent + c.rope, stride = c.rope + 6, table = 9;
  const auto numbers = [&](DType dtype, int64_t rows, int64_t cols, int seed, int64_t padding) {
    if (!c.exact) return b.t.normal(dtype, rows, cols, c.scale, padding);
    std::vector<double> values;
    for (int64_t i = 0; i < rows * cols; ++i)
      values.push_back(std::floor(8 * random_uniform(uint64_t(seed), 3, uint64_t(i))) - 4);
    return b.t.values(dtype, rows, cols, values, padding);
  };
  const Tensor x = numbers(c.act, c.tokens, width, 1, c.padding),
               gain = numbers(DType::f32, 1, c.latent, 2, 0),
               cos = numbers(DType::f32, table, c.rope / 2, 3, 0),
               sin = numbers(DType::f32, table, c.rope / 2, 4, 0);
  const Tensor q = numbers(c.act, c.tokens, c.heads * stride, 5, c.padding);
  std::vector<int32_t> positions, slots;
  for (int64_t t = 0; t < c.tokens; ++t) {
    positions.push_back(int32_t(t * 4 % table));
    slots.push_back(t % 4 == 2 ? -1 : int32_t((t * 7 + 3) % kSlots));
  }
  const bool codes = c.cache == DType::e4m3;
  const Tensor cache = codes ? b.t.zeros(DType::e4m3, kSlots, latent_bytes(c.latent, c.rope))
                             : b.t.zeros(c.act, kSlots, width, c.padding);
  on(b.s).latent_append({.x = x,
                         .gain = gain,
                         .positions = b.t.indices(positions),
                         .cos = cos,
                         .sin = sin,
                         .slots = b.t.indices(slots),
                         .cache = cache,
                         .latent = c.latent,
                         .rope = c.rope,
                         .eps = 1e-3,
                         .q = c.queries ? q : Tensor{},
                         .heads = c.heads,
                         .q_stride = stride,
                         .q_offset = 6});
  return {cache, q};
}

// Every row of a cache, as numbers.
Tensor gathered(Bench& b, const Case& c, const Tensor& cache) {
  std::vector<int32_t> rows{-1};
  for (int32_t i = 0; i < kSlots; ++i) rows.push_back(i);
  const Tensor y = b.t.garbage(c.act, kSlots + 1, c.latent + c.rope, c.padding);
  on(b.s).latent_gather(
      {.cache = cache, .rows = b.t.indices(rows), .y = y, .latent = c.latent, .rope = c.rope});
  return y;
}

TEST(LatentAppend, MeetsTheMetric) {
  for (const DType act : {DType::f32, DType::bf16})
    for (const bool queries : {true, false})
      for (const auto& [latent, rope, padding] :
           {std::tuple(512, 64, 0), std::tuple(9, 4, 3), std::tuple(300, 2, 1), std::tuple(8, 0, 0)})
        expect_like_ref(
            [&](Bench& b) -> Outputs {
              const Appended a = append(b, {.latent = latent,
                                            .rope = rope,
                                            .act = act,
                                            .cache = act,
                                            .queries = queries,
                                            .padding = padding});
              return {a.cache, a.q};
            },
            fmt::format("{} + {} {}", latent, rope, name_of(act)));
}

TEST(LatentAppend, NoTokensIsNoWork) {
  expect_like_ref([&](Bench& b) -> Outputs { return {append(b, {.tokens = 0}).cache}; });
}

// Codes that a last bit of the norm moved would be far away in f32: the formats meet through bf16.
TEST(LatentAppend, CodesMeetTheMetricOfBf16) {
  for (const auto& [latent, rope] : {std::tuple(512, 64), std::tuple(20, 4), std::tuple(300, 2)})
    expect_like_ref([&](Bench& b) -> Outputs {
      const Case c{.latent = latent, .rope = rope, .cache = DType::e4m3};
      const Appended a = append(b, c);
      return {gathered(b, c, a.cache), a.q};
    });
}

// What lies in a cache in e4m3 is the contract's quantiser on what would lie in one in bf16, byte for byte.
TEST(LatentAppend, TheBytesAreTheQuantisersOfTheRoundedNumbers) {
  for (const TestedDevice& tested : tested_devices())
    for (const double scale : {1.0, 1e-6})
      for (const int64_t latent : {512, 300}) {
        Bench b(*tested.device), other(*tested.device);
        Case c{.latent = latent, .scale = scale};
        const std::vector<double> numbers = read(b.s, append(b, c).cache);
        c.cache = DType::e4m3;
        const std::string bytes = read_bits(other.s, append(other, c).cache);
        const int64_t width = latent + c.rope, row_bytes = latent_bytes(latent, c.rope);
        for (int64_t slot = 0; slot < kSlots; ++slot) {
          const double* x = numbers.data() + slot * width;
          bool empty = true;
          for (int64_t i = 0; i < width; ++i) empty = empty && x[i] == 0;
          std::vector<uint8_t> expected(size_t(row_bytes), 0);
          const LatentRow row{expected.data(), latent, c.rope};
          for (int64_t tile = 0; tile < row.tiles() && !empty; ++tile) {
            double largest = 1e-4;
            const int64_t end = std::min(latent, (tile + 1) * kScaleBlock);
            for (int64_t i = tile * kScaleBlock; i < end; ++i) largest = std::max(largest, std::fabs(x[i]));
            const float power = float(std::exp2(std::ceil(std::log2(float(float(largest) / 448.0f)))));
            row.set_scale(tile, power);
            for (int64_t i = tile * kScaleBlock; i < end; ++i)
              row.codes()[i] = e4m3(float(x[i]) / power).bits;
          }
          for (int64_t i = 0; i < c.rope; ++i) row.set_key(i, bf16(float(x[latent + i])));
          EXPECT_EQ(std::memcmp(bytes.data() + slot * row_bytes, expected.data(), size_t(row_bytes)), 0)
              << tested.name << ", slot " << slot;
        }
      }
}

// Where no rounding depends on an order of sums, every device writes the same bytes as the oracle.
TEST(LatentAppend, EveryDeviceWritesTheSameBytes) {
  for (const DType act : {DType::bf16, DType::f32})
    for (const int64_t latent : {512, 300}) {
      const Case c{.latent = latent, .act = act, .cache = DType::e4m3, .exact = true};
      Bench oracle(ref_device());
      const std::string expected = read_bits(oracle.s, append(oracle, c).cache);
      for (const TestedDevice& tested : tested_devices()) {
        Bench b(*tested.device);
        EXPECT_TRUE(read_bits(b.s, append(b, c).cache) == expected) << tested.name;
      }
    }
}

// The largest scale is 2^7: what no code holds is the largest code, infinities included.
TEST(LatentAppend, BeyondTheLargestScaleNumbersSaturate) {
  const auto run = [](Bench& b) {
    std::vector<double> gain(128, 1.0), x(128, 1.0);
    gain[0] = 1e6, gain[1] = -1e6, gain[2] = INFINITY;
    const Tensor cache = b.t.zeros(DType::e4m3, 1, latent_bytes(128, 0));
    on(b.s).latent_append({.x = b.t.values(DType::f32, 1, 128, x),
                           .gain = b.t.values(DType::f32, 1, 128, gain),
                           .positions = b.t.indices({0}),
                           .cos = b.t.zeros(DType::f32, 1, 0),
                           .sin = b.t.zeros(DType::f32, 1, 0),
                           .slots = b.t.indices({0}),
                           .cache = cache,
                           .latent = 128,
                           .rope = 0,
                           .eps = 0});
    return read_bits(b.s, cache);
  };
  Bench oracle(ref_device());
  const std::string expected = run(oracle);
  EXPECT_EQ(uint8_t(expected[0]), 0x7E);
  EXPECT_EQ(uint8_t(expected[1]), 0xFE);
  EXPECT_EQ(uint8_t(expected[2]), 0x7E);
  for (const TestedDevice& tested : tested_devices()) {
    Bench b(*tested.device);
    EXPECT_TRUE(run(b) == expected) << tested.name;
  }
}

TEST(LatentAppend, RowsOutsideTheCacheAreRefused) {
  expect_refused(
      [](Bench& b) {
        on(b.s).latent_append({.x = b.t.normal(DType::f32, 1, 6),
                               .gain = b.t.normal(DType::f32, 1, 4),
                               .positions = b.t.indices({0}),
                               .cos = b.t.normal(DType::f32, 1, 1),
                               .sin = b.t.normal(DType::f32, 1, 1),
                               .slots = b.t.indices({3}),
                               .cache = b.t.normal(DType::f32, 3, 6),
                               .latent = 4,
                               .rope = 2,
                               .eps = 1e-3});
      },
      "cache row");
}

// Attention over a cache in e4m3 meets the metric on the numbers that the codes stand for.
TEST(LatentAttention, OverACacheInE4m3) {
  for (const DType act : {DType::bf16, DType::f32})
    for (const auto& [latent, rope, heads] :
         {std::tuple(512, 64, 16), std::tuple(512, 64, 3), std::tuple(20, 6, 5), std::tuple(300, 2, 1)})
      for (const bool planned : {false, true}) {
        expect_like_ref(
            [&](Bench& b) -> Outputs {
              const int64_t page_size = 64, pages = 12, row = latent_bytes(latent, rope),
                            slots = pages * page_size;
              const std::vector<int32_t> lens{300, 1, 64}, starts{0, 2, 3, 4};
              // Bytes that are a cache: codes of any kind but NaN, scales between 2^-9 and 2^-6, keys near 1.
              std::vector<uint8_t> bytes(size_t(slots * row));
              for (int64_t s = 0; s < slots; ++s) {
                const LatentRow to{bytes.data() + s * row, latent, rope};
                for (int64_t i = 0; i < latent; ++i) {
                  const auto code = uint8_t(256 * random_uniform(7, uint64_t(s), uint64_t(i)));
                  to.codes()[i] = (code & 0x7F) == 0x7F ? 0 : code;
                }
                for (int64_t i = 0; i < to.tiles(); ++i)
                  to.set_scale(i, std::ldexp(1.0f, -9 + int(s + i) % 4));
                for (int64_t i = 0; i < rope; ++i)
                  to.set_key(i, bf16(float(random_normal(8, uint64_t(s), uint64_t(i)))));
              }
              const Tensor cache = b.t.garbage(DType::e4m3, slots, row);
              on(b.s).upload(bytes.data(), cache);
              const Tensor table = b.t.indices(
                               3, 6, {7, 2, 9, 0, 11, -1, 3, -1, -1, -1, -1, -1, 5, -1, -1, -1, -1, -1}),
                           kv_lens = b.t.indices(lens), q_starts = b.t.indices(starts);
              const Tensor q_latent = b.t.normal(act, 4, heads * latent, 0.1),
                           q_rope = b.t.normal(act, 4, heads * rope, 0.1),
                           o = b.t.garbage(act, 4, heads * latent);
              const Tensor plan = b.t.garbage(DType::i32, 1, latent_plan_size(3));
              if (planned)
                on(b.s).latent_plan({.page_table = table,
                                     .kv_lens = kv_lens,
                                     .q_starts = q_starts,
                                     .plan = plan,
                                     .cache = DType::e4m3,
                                     .rows = 4,
                                     .heads = heads,
                                     .page_size = page_size,
                                     .sequences = 3});
              on(b.s).latent_attention({.q_latent = q_latent,
                                        .q_rope = q_rope,
                                        .cache = cache,
                                        .page_table = table,
                                        .kv_lens = kv_lens,
                                        .q_starts = q_starts,
                                        .o_latent = o,
                                        .heads = heads,
                                        .latent = latent,
                                        .rope = rope,
                                        .q_rope_stride = rope,
                                        .page_size = page_size,
                                        .sequences = 3,
                                        .scale = 0.3,
                                        .plan = planned ? plan : Tensor{}});
              return {o};
            },
            fmt::format("{} + {}, {} heads, {}{}", latent, rope, heads, name_of(act),
                        planned ? ", planned" : ""));
      }
}

TEST(LatentGather, RowsOutsideTheCacheAreRefused) {
  expect_refused(
      [](Bench& b) {
        on(b.s).latent_gather({.cache = b.t.zeros(DType::e4m3, 3, latent_bytes(4, 2)),
                               .rows = b.t.indices({3}),
                               .y = b.t.garbage(DType::f32, 1, 6),
                               .latent = 4,
                               .rope = 2});
      },
      "cache row");
}

}  // namespace
}  // namespace cachalot
