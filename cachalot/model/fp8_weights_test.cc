#include "model/fp8_weights.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <random>

#include "base/error.h"
#include "base/thread_pool.h"
#include "model/checkpoint_testing.h"
#include "model/safetensors.h"
#include "tensor/dtype.h"

namespace cachalot {
namespace {

struct Quantised {
  int64_t rows, cols;
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  std::vector<float> values() const {
    std::vector<float> x(codes.size());
    dequantise(codes.data(), scales.data(), rows, cols, x.data());
    return x;
  }
  bool operator==(const Quantised& o) const {  // scales bit for bit
    return codes == o.codes && scales.size() == o.scales.size() &&
           std::memcmp(scales.data(), o.scales.data(), scales.size() * 4) == 0;
  }
};

// The recipe and nothing else, written down a second time.
Quantised plain(const std::vector<float>& x, int64_t rows, int64_t cols, ScaleFormat format) {
  Quantised q{rows, cols, std::vector<uint8_t>(x.size()),
              std::vector<float>(size_t(fp8_blocks(rows) * fp8_blocks(cols)), 1e-4f)};
  for (int64_t i = 0; i < rows * cols; ++i) {
    float& amax = q.scales[size_t(i / cols / 128 * fp8_blocks(cols) + i % cols / 128)];
    amax = std::max(amax, std::abs(x[size_t(i)]));
  }
  for (float& s : q.scales) {
    s = s / 448.0f;
    if (format == ScaleFormat::power_of_two) s = std::exp2(std::ceil(std::log2(s)));
  }
  for (int64_t i = 0; i < rows * cols; ++i)
    q.codes[size_t(i)] =
        e4m3(x[size_t(i)] / q.scales[size_t(i / cols / 128 * fp8_blocks(cols) + i % cols / 128)]).bits;
  return q;
}

Quantised quantised(const std::vector<float>& x, int64_t rows, int64_t cols,
                    const QuantiseOptions& options = {}) {
  Quantised q{rows, cols, std::vector<uint8_t>(x.size()),
              std::vector<float>(size_t(fp8_blocks(rows) * fp8_blocks(cols)))};
  choose_scales(x.data(), rows, cols, options, q.scales.data());
  quantise(x.data(), q.scales.data(), rows, cols, options, q.codes.data());
  return q;
}

std::vector<float> normal(int64_t n, float stddev, uint32_t seed, bool through_bf16 = false) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution(0, stddev);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) {
    v = distribution(generator);
    if (through_bf16) v = float(bf16(v));
  }
  return x;
}

std::vector<float> to_bf16(std::vector<float> x) {
  for (float& v : x) v = float(bf16(v));
  return x;
}

const ScaleFormat kFormats[] = {ScaleFormat::float32, ScaleFormat::power_of_two};

TEST(Fp8Weights, FreshWeightsGetTheRecipesScalesAndCodes) {
  for (const ScaleFormat format : kFormats)
    for (const bool bf16_values : {false, true}) {
      const auto x = normal(300 * 261, 0.03f, 1, bf16_values);
      EXPECT_EQ(quantised(x, 300, 261, {.format = format, .name = "x"}), plain(x, 300, 261, format));
    }
}

TEST(Fp8Weights, GoldenCheckpointsAreReproducedFromTheirBf16Originals) {
  for (const std::string& model : golden_models()) {
    const SafetensorsFile wide = SafetensorsFile::open(model + "/model/model.safetensors");
    const SafetensorsFile narrow = SafetensorsFile::open(model + "/model_fp8/model.safetensors");
    int compared = 0;
    for (const StoredTensor& t : narrow.tensors()) {
      if (t.type != StoredType::f8_e4m3) continue;
      const StoredTensor* from = wide.find(t.name);
      ASSERT_TRUE(from) << t.name;
      std::vector<float> x(static_cast<size_t>(t.size()));
      for (size_t i = 0; i < x.size(); ++i) {
        bf16 value;
        std::memcpy(&value, from->data + 2 * i, 2);
        x[i] = float(value);
      }
      const Quantised q = quantised(x, t.shape[0], t.shape[1], {.stored_as_bf16 = true, .name = t.name});
      EXPECT_EQ(std::memcmp(q.codes.data(), t.data, q.codes.size()), 0) << t.name;
      EXPECT_EQ(std::memcmp(q.scales.data(), narrow.find(t.name + "_scale_inv")->data, q.scales.size() * 4),
                0)
          << t.name;
      ++compared;
    }
    EXPECT_GT(compared, 50) << model;
  }
}

TEST(Fp8Weights, GoldenFp8ThroughFloat32IsTheIdentity) {
  for (const std::string& model : golden_models()) {
    const SafetensorsFile file = SafetensorsFile::open(model + "/model_fp8/model.safetensors");
    for (const StoredTensor& t : file.tensors()) {
      if (t.type != StoredType::f8_e4m3) continue;
      Quantised q{t.shape[0], t.shape[1], std::vector<uint8_t>(t.data, t.data + t.bytes()), {}};
      q.scales.resize(size_t(fp8_blocks(q.rows) * fp8_blocks(q.cols)));
      std::memcpy(q.scales.data(), file.find(t.name + "_scale_inv")->data, q.scales.size() * 4);
      EXPECT_EQ(quantised(q.values(), q.rows, q.cols, {.name = t.name}), q) << model << " " << t.name;
    }
  }
}

// As `plain`, with the scale that a multiplication by 1/448 gives: up to one float beside the recipe's.
Quantised by_reciprocal(const std::vector<float>& x, int64_t rows, int64_t cols) {
  Quantised q = plain(x, rows, cols, ScaleFormat::float32);
  for (float& s : q.scales) s = s * 448.0f * (1 / 448.0f);
  quantise(x.data(), q.scales.data(), rows, cols, {.name = "x"}, q.codes.data());
  return q;
}

TEST(Fp8Weights, Float32ScalesSurviveFloat32EvenWhereTheRecipeAloneWouldNot) {
  int recipe_fails = 0;
  for (uint32_t seed = 0; seed < 60; ++seed) {
    const int64_t rows = 3 + seed * 7 % 200, cols = 8 + seed * 13 % 300;
    for (const bool bf16_values : {false, true}) {
      const auto original = normal(rows * cols, std::exp2(float(seed % 20) - 12), seed, bf16_values);
      const Quantised q = plain(original, rows, cols, ScaleFormat::float32);
      EXPECT_EQ(quantised(q.values(), rows, cols, {.name = "x"}), q) << seed << " " << bf16_values;
      const Quantised r = by_reciprocal(original, rows, cols);
      EXPECT_EQ(quantised(r.values(), rows, cols, {.name = "x"}), r) << seed << " " << bf16_values;
      recipe_fails += !(plain(r.values(), rows, cols, ScaleFormat::float32) == r);
    }
  }
  EXPECT_GT(recipe_fails, 10);  // otherwise this test proves nothing
}

TEST(Fp8Weights, PowerOfTwoScalesSurviveFloat32AndBfloat16) {
  int blocks = 0;
  for (uint32_t seed = 0; seed < 60; ++seed) {
    const int64_t rows = 1 + seed * 7 % 200, cols = 3 + seed * 13 % 300;
    const Quantised q = plain(normal(rows * cols, 0.02f, seed), rows, cols, ScaleFormat::power_of_two);
    uint8_t largest = 0;
    for (const uint8_t c : q.codes) largest = std::max<uint8_t>(largest, c & 0x7F);
    if (float(std::bit_cast<e4m3>(largest)) <= 224 || q.scales.size() > 1) continue;
    EXPECT_EQ(quantised(q.values(), rows, cols, {.format = ScaleFormat::power_of_two, .name = "x"}), q)
        << seed;
    EXPECT_EQ(quantised(to_bf16(q.values()), rows, cols,
                        {.format = ScaleFormat::power_of_two, .stored_as_bf16 = true, .name = "x"}),
              q);
    ++blocks;
  }
  EXPECT_GT(blocks, 5);
}

TEST(Fp8Weights, KnownScalesSettleWhatTheValuesLeaveOpen) {
  // amax 228 at scale 1 rounds to the code 224; the values alone then fit scale 1/2 as well.
  const Quantised q = plain({228, 3, -16}, 1, 3, ScaleFormat::power_of_two);
  ASSERT_EQ(q.scales[0], 1);
  ASSERT_EQ(q.values()[0], 224);
  QuantiseOptions options{.format = ScaleFormat::power_of_two, .name = "x"};
  EXPECT_EQ(quantised(q.values(), 1, 3, options).scales[0], 0.5f);
  options.known_scales = q.scales.data();
  EXPECT_EQ(quantised(q.values(), 1, 3, options), q);
  // A scale format that cannot hold the known scale, or values that it does not reproduce: the recipe.
  const float third = 1 / 3.0f;
  const Quantised odd{1, 3, q.codes, {third}};
  options.known_scales = &third;
  EXPECT_NE(quantised(odd.values(), 1, 3, options), odd);
  options.format = ScaleFormat::float32;
  EXPECT_EQ(quantised(odd.values(), 1, 3, options), odd);
  auto changed = odd.values();
  changed[1] *= 1.01f;
  EXPECT_EQ(quantised(changed, 1, 3, options), plain(changed, 1, 3, ScaleFormat::float32));
  for (const float bad : {0.0f, -1.0f, std::nanf(""), INFINITY}) {
    options.known_scales = &bad;
    EXPECT_EQ(quantised(changed, 1, 3, options), plain(changed, 1, 3, ScaleFormat::float32)) << bad;
  }
}

TEST(Fp8Weights, KnownScalesSurviveBfloat16Exactly) {
  const Quantised q = plain(normal(200 * 150, 0.02f, 5), 200, 150, ScaleFormat::float32);
  const auto x = to_bf16(q.values());
  EXPECT_EQ(quantised(x, 200, 150, {.known_scales = q.scales.data(), .stored_as_bf16 = true, .name = "x"}),
            q);
  EXPECT_EQ(quantised(x, 200, 150, {.known_scales = q.scales.data(), .name = "x"}),
            q);  // widened again since
}

TEST(Fp8Weights, ThroughBfloat16CodesAreEqualAndScalesWithin2ToMinus8) {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    const int64_t rows = 1 + seed * 11 % 170, cols = 1 + seed * 29 % 280;
    const Quantised q = plain(normal(rows * cols, 0.05f, seed), rows, cols, ScaleFormat::float32);
    const Quantised back = quantised(to_bf16(q.values()), rows, cols, {.stored_as_bf16 = true, .name = "x"});
    EXPECT_EQ(back.codes, q.codes) << seed;
    for (size_t i = 0; i < q.scales.size(); ++i)
      EXPECT_NEAR(back.scales[i], q.scales[i], q.scales[i] / 256) << seed;
  }
}

TEST(Fp8Weights, ZerosTinyValuesAndSignsOfZeroSurvive) {
  for (const ScaleFormat format : kFormats) {
    std::vector<float> x = normal(130 * 130, 1e-6f, 9);  // below the amax floor
    for (int i = 0; i < 128; ++i) x[size_t(i)] = 0;
    for (int r = 0; r < 130; ++r)
      x[size_t(r * 130 + 128)] = x[size_t(r * 130 + 129)] = r % 2 ? -0.0f : 0.0f;  // a block of zeros
    const Quantised q = plain(x, 130, 130, format);
    EXPECT_EQ(q.codes[128 + 130], 0x80);
    EXPECT_EQ(quantised(q.values(), 130, 130, {.format = format, .name = "x"}), q);
  }
}

TEST(Fp8Weights, BlocksWithoutAPowerOfTwoCodeFindTheirScaleBesideTheRecipes) {
  int recipe_fails = 0;
  for (uint32_t seed = 0; seed < 400; ++seed) {
    const float scale = std::abs(normal(1, 0.02f, seed)[0]) + 1e-4f;
    const Quantised q{
        1, 4, {e4m3(448.0f).bits, e4m3(-416.0f).bits, e4m3(0.34375f).bits, e4m3(9.0f).bits}, {scale}};
    const Quantised back = quantised(q.values(), 1, 4, {.name = "x"});
    EXPECT_EQ(back.codes, q.codes) << seed;
    EXPECT_EQ(back.values(), q.values()) << seed;  // two scales may give the same four products
    recipe_fails += plain(q.values(), 1, 4, ScaleFormat::float32).values() != q.values();
  }
  EXPECT_GT(recipe_fails, 10);
}

TEST(Fp8Weights, ValuesThatAreNotFiniteAreRefusedByName) {
  for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
    auto x = normal(200 * 150, 1, 3);
    x[140 * 150 + 130] = bad;
    try {
      quantised(x, 200, 150, {.name = "layer.weight"});
      ADD_FAILURE() << bad;
    } catch (const Error& e) {
      EXPECT_EQ(std::string(e.what()).find("layer.weight: element [140, 130]"), 0u) << e.what();
    }
  }
}

TEST(Fp8Weights, ThreadsDoNotChangeTheResult) {
  const auto x = normal(1000 * 131, 1, 4);
  ThreadPool pool(3);
  EXPECT_EQ(quantised(x, 1000, 131, {.pool = &pool, .name = "x"}), quantised(x, 1000, 131, {.name = "x"}));
}

TEST(Fp8Weights, CodesAreRoundedToTheNearestEvenAndSaturate) {
  const float scale = 1;
  const std::vector<float> x = {17, 19, 21, 0.5f / 512, 1.5f / 512, 1000, -1000, 232};
  std::vector<uint8_t> codes(x.size());
  quantise(x.data(), &scale, 1, int64_t(x.size()), {.name = "x"}, codes.data());
  std::vector<float> back(x.size());
  dequantise(codes.data(), &scale, 1, int64_t(x.size()), back.data());
  EXPECT_EQ(back, (std::vector<float>{16, 20, 20, 0, 2.0f / 512, 448, -448, 224}));
}

}  // namespace
}  // namespace cachalot
