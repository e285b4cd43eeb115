#include "model/fp8_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <optional>

#include "base/error.h"
#include "base/thread_pool.h"
#include "tensor/dtype.h"
#include "tensor/tensor.h"

namespace cachalot {

namespace {

constexpr int64_t kB = kScaleBlock;
constexpr float kAmaxFloor = 1e-4f;

struct Block {  // a view of at most 128 x 128 values
  const float* x;
  int64_t rows, cols, ld;
};

template <class Body> void for_block_rows(int64_t rows, ThreadPool* pool, const Body& body) {
  if (pool) pool->parallel_for(fp8_blocks(rows), body);
  else
    for (int64_t r = 0; r < fp8_blocks(rows); ++r) body(r);
}

bool is_power_of_two(float s) {
  return std::isnormal(s) && s > 0 && (std::bit_cast<uint32_t>(s) & 0x7FFFFFu) == 0;
}

float recipe_scale(float amax, ScaleFormat format) {
  const float scale = std::max(amax, kAmaxFloor) / e4m3::kMax;
  if (format == ScaleFormat::float32) return scale;
  const uint32_t bits = std::bit_cast<uint32_t>(scale);  // normal: at least 1e-4 / 448
  return std::bit_cast<float>((bits + 0x7FFFFFu) & ~0x7FFFFFu);
}

e4m3 code_of(float x, float scale) { return e4m3(std::clamp(x / scale, -e4m3::kMax, e4m3::kMax)); }

// Is every value some code times `scale`, bit for bit, after an optional rounding to bfloat16?
bool reproduces(const Block& b, float scale, bool through_bf16) {
  for (int64_t r = 0; r < b.rows; ++r)
    for (int64_t c = 0; c < b.cols; ++c) {
      const float x = b.x[r * b.ld + c];
      float y = float(code_of(x, scale)) * scale;
      if (through_bf16) y = float(bf16(y));
      if (std::bit_cast<uint32_t>(x) != std::bit_cast<uint32_t>(y)) return false;
    }
  return true;
}

// The scale read off the first value whose code is a power of two: that product was exact, so its quotient is
// too.
std::optional<float> pinned_scale(const Block& b, float recipe) {
  for (int64_t r = 0; r < b.rows; ++r)
    for (int64_t c = 0; c < b.cols; ++c) {
      const float x = std::abs(b.x[r * b.ld + c]);
      const float code = std::abs(float(code_of(x, recipe)));
      if (is_power_of_two(code)) return x / code;
    }
  return std::nullopt;
}

float neighbour(float s, int steps) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(s) + uint32_t(steps));
}

float choose_scale(const Block& b, float amax, const QuantiseOptions& o, const float* known) {
  const float recipe = recipe_scale(amax, o.format);
  if (known && std::isnormal(*known) && *known > 0 &&
      (o.format == ScaleFormat::float32 || is_power_of_two(*known)) &&
      (reproduces(b, *known, false) || reproduces(b, *known, true)))
    return *known;
  // Products with a power of two are exact, so amax gives the scale back. Values that were rounded to
  // bfloat16 keep no trace of a scale's last bits.
  if (o.format == ScaleFormat::power_of_two || o.stored_as_bf16 || reproduces(b, recipe, false))
    return recipe;
  if (const auto pinned = pinned_scale(b, recipe)) return reproduces(b, *pinned, false) ? *pinned : recipe;
  for (const int step : {-1, 1})
    if (const float s = neighbour(recipe, step); reproduces(b, s, false)) return s;
  return recipe;
}

const std::array<float, 256>& code_values() {
  static const auto table = [] {
    std::array<float, 256> t;
    for (int i = 0; i < 256; ++i) t[i] = float(std::bit_cast<e4m3>(uint8_t(i)));
    return t;
  }();
  return table;
}

}  // namespace

void dequantise(const uint8_t* codes, const float* scales, int64_t rows, int64_t cols, float* x) {
  const auto& values = code_values();
  const int64_t scale_ld = fp8_blocks(cols);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c0 = 0; c0 < cols; c0 += kB) {
      const float scale = scales[r / kB * scale_ld + c0 / kB];
      for (int64_t c = c0; c < std::min(cols, c0 + kB); ++c)
        x[r * cols + c] = values[codes[r * cols + c]] * scale;
    }
}

void choose_scales(const float* x, int64_t rows, int64_t cols, const QuantiseOptions& o, float* scales) {
  const int64_t scale_ld = fp8_blocks(cols);
  for_block_rows(rows, o.pool, [&](int64_t i) {
    for (int64_t j = 0; j < scale_ld; ++j) {
      const Block b{.x = x + i * kB * cols + j * kB,
                    .rows = std::min(kB, rows - i * kB),
                    .cols = std::min(kB, cols - j * kB),
                    .ld = cols};
      float amax = 0;
      for (int64_t r = 0; r < b.rows; ++r)
        for (int64_t c = 0; c < b.cols; ++c) {
          const float value = b.x[r * b.ld + c];
          if (!std::isfinite(value))
            throw Error(fmt::format("{}: element [{}, {}] of the matrix is {}", o.name, i * kB + r,
                                    j * kB + c, value))
                .hint("weights must be finite: the model diverged, or the file is damaged");
          amax = std::max(amax, std::abs(value));
        }
      const int64_t at = i * scale_ld + j;
      scales[at] = choose_scale(b, amax, o, o.known_scales ? o.known_scales + at : nullptr);
    }
  });
}

void quantise(const float* x, const float* scales, int64_t rows, int64_t cols, const QuantiseOptions& o,
              uint8_t* codes) {
  const int64_t scale_ld = fp8_blocks(cols);
  for_block_rows(rows, o.pool, [&](int64_t i) {
    for (int64_t r = i * kB; r < std::min(rows, (i + 1) * kB); ++r)
      for (int64_t c = 0; c < cols; ++c)
        codes[r * cols + c] = code_of(x[r * cols + c], scales[i * scale_ld + c / kB]).bits;
  });
}

}  // namespace cachalot
