#include "backend/cpu/convert.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string>

namespace cachalot::cpu {

namespace {

const std::array<float, 256> kE4m3 = [] {
  std::array<float, 256> table{};
  for (int i = 0; i < 256; ++i) {
    e4m3 x;
    x.bits = uint8_t(i);
    table[i] = float(x);
  }
  return table;
}();

void floats_from_bf16(const bf16* in, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = std::bit_cast<float>(uint32_t(in[i].bits) << 16);
}

// As bf16's constructor, but a selection instead of a branch, so that the loop vectorises.
void bf16_from_floats(const float* in, int64_t n, bf16* out) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t u = std::bit_cast<uint32_t>(in[i]);
    const uint32_t rounded = (u + 0x7FFFu + (u >> 16 & 1u)) >> 16, nan = u >> 16 | 0x0040u;
    out[i].bits = uint16_t(in[i] == in[i] ? rounded : nan);
  }
}

}  // namespace

void load_row(const Tensor& t, int64_t r, int64_t c, int64_t n, float* out) {
  switch (t.dtype) {
    case DType::f32:
      std::memcpy(out, static_cast<const float*>(t.data) + r * t.ld + c, size_t(n) * sizeof(float));
      return;
    case DType::bf16: floats_from_bf16(static_cast<const bf16*>(t.data) + r * t.ld + c, n, out); return;
    case DType::e4m3: {
      const uint8_t* in = static_cast<const uint8_t*>(t.data) + r * t.ld;
      for (int64_t first = c, end; first < c + n; first = end) {  // one run of equal scales at a time
        end = std::min(c + n, (first / kScaleBlock + 1) * kScaleBlock);
        const float scale = t.scale(r, first);
        for (int64_t i = first; i < end; ++i) out[i - c] = kE4m3[in[i]] * scale;
      }
      return;
    }
    default: CHECK(false, "the cpu backend reads f32, bf16 and e4m3, not " + t.describe());
  }
}

void store_row(const Tensor& t, int64_t r, int64_t c, int64_t n, const float* in) {
  switch (t.dtype) {
    case DType::f32: {
      float* out = static_cast<float*>(t.data) + r * t.ld + c;
      if (out != in) std::memcpy(out, in, size_t(n) * sizeof(float));
      return;
    }
    case DType::bf16: bf16_from_floats(in, n, static_cast<bf16*>(t.data) + r * t.ld + c); return;
    default: CHECK(false, "the cpu backend writes f32 and bf16, not " + t.describe());
  }
}

void copy_row(const Tensor& from, int64_t from_row, const Tensor& to, int64_t to_row) {
  const int64_t size = size_of(from.dtype);
  std::memcpy(static_cast<uint8_t*>(to.data) + to_row * to.ld * size,
              static_cast<const uint8_t*>(from.data) + from_row * from.ld * size, size_t(from.cols * size));
}

void require_no_f64(const char* op, std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* t : tensors)
    CHECK(t->dtype != DType::f64 || !*t,
          std::string(op) + ": f64 runs on the ref device only, got " + t->describe());
}

float dot(const float* a, const float* b, int64_t n) {
  constexpr int64_t kLanes = 32;
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  for (int64_t lane = 0; i < n; ++i, ++lane) sums[lane] += a[i] * b[i];
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  return sums[0];
}

}  // namespace cachalot::cpu
