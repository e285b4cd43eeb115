// Number formats. Storage types convert to float exactly and from float with round-to-nearest-even.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <string_view>

#ifdef __CUDACC__
#define CACHALOT_HD __host__ __device__
#else
#define CACHALOT_HD
#endif

namespace cachalot {

enum class DType : uint8_t { f64, f32, bf16, e4m3, i32 };

constexpr int64_t size_of(DType t) {
  switch (t) {
    case DType::f64: return 8;
    case DType::f32:
    case DType::i32: return 4;
    case DType::bf16: return 2;
    case DType::e4m3: return 1;
  }
  return 0;
}

constexpr std::string_view name_of(DType t) {
  switch (t) {
    case DType::f64: return "f64";
    case DType::f32: return "f32";
    case DType::bf16: return "bf16";
    case DType::e4m3: return "e4m3";
    case DType::i32: return "i32";
  }
  return "?";
}

// bfloat16: the upper half of a float.
struct bf16 {
  uint16_t bits = 0;
  bf16() = default;
  CACHALOT_HD explicit bf16(float x) {
    const uint32_t u = std::bit_cast<uint32_t>(x);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) bits = uint16_t(u >> 16 | 0x0040u);  // NaN stays NaN
    else bits = uint16_t((u + 0x7FFFu + (u >> 16 & 1u)) >> 16);
  }
  CACHALOT_HD explicit operator float() const { return std::bit_cast<float>(uint32_t(bits) << 16); }
};

// FP8 E4M3 as the checkpoints use it ("e4m3fn"): 1 sign, 4 exponent (bias 7), 3 mantissa bits; largest 448,
// no infinity, NaN is S1111111. Micikevicius et al., "FP8 formats for deep learning", arXiv:2209.05433, table
// 1.
struct e4m3 {
  uint8_t bits = 0;
  static constexpr float kMax = 448.0f;
  e4m3() = default;
  // Rounds to nearest even; beyond 464 (half a step past the largest) becomes NaN, as PyTorch's cast does.
  // Quantisers clamp to +-448 before they round.
  CACHALOT_HD explicit e4m3(float x) {
    const uint32_t u = std::bit_cast<uint32_t>(x);
    const uint8_t sign = uint8_t(u >> 24 & 0x80u);
    const uint32_t a = u & 0x7FFFFFFFu;
    if (a >= 0x43F00000u) {  // |x| >= 480, infinities and NaN
      bits = uint8_t(sign | 0x7Fu);
    } else if (a < 0x3C800000u) {                                // below 2^-6: subnormal, a multiple of 2^-9
      const float shifted = std::bit_cast<float>(a) + 16384.0f;  // 2^14: its last bit is worth 2^-9
      bits = uint8_t(sign | (std::bit_cast<uint32_t>(shifted) - 0x46800000u));
    } else {
      const uint32_t rounded = a + 0x7FFFFu + (a >> 20 & 1u);  // keep 3 mantissa bits
      bits = uint8_t(sign | ((rounded >> 20) - (120u << 3)));  // rebias 127 -> 7; 480 would be the NaN code
    }
  }
  CACHALOT_HD explicit operator float() const {
    const uint32_t sign = uint32_t(bits & 0x80u) << 24, magnitude = bits & 0x7Fu;
    if (magnitude == 0x7Fu) return std::bit_cast<float>(sign | 0x7FC00000u);
    if (magnitude < 8u) {  // subnormal: magnitude * 2^-9
      const float x = float(magnitude) * 0.001953125f;
      return sign ? -x : x;
    }
    return std::bit_cast<float>(sign | ((magnitude + (120u << 3)) << 20));
  }
};

template <class T>
struct dtype_of_t;
template <>
struct dtype_of_t<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct dtype_of_t<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct dtype_of_t<bf16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct dtype_of_t<e4m3> {
  static constexpr DType value = DType::e4m3;
};
template <>
struct dtype_of_t<int32_t> {
  static constexpr DType value = DType::i32;
};
template <class T>
constexpr DType dtype_of = dtype_of_t<std::remove_cv_t<T>>::value;

}  // namespace cachalot
