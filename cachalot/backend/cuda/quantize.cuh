// How a tile of 128 becomes FP8 codes (ops/quantize.h), for all kernels that quantise. In the fast ones sixteen
// neighbouring lanes hold a tile, eight numbers each.
#pragma once

#include "backend/cuda/convert.cuh"
#include "backend/cuda/reduce.cuh"

namespace cachalot::cuda {

constexpr int kTileLanes = int(kScaleBlock) / kEight;
constexpr float kLeastAmax = 1e-4f;

__device__ inline float scale_of(float amax, float largest, bool power_of_two) {
  const float scale = __fdiv_rn(fmaxf(amax, kLeastAmax), largest);
  return power_of_two ? __uint_as_float((__float_as_uint(scale) + 0x7FFFFFu) & ~0x7FFFFFu) : scale;
}

// The largest magnitude; passes over NaN.
__device__ inline float amax_of(const Eight& e) {
  float amax = 0;
#pragma unroll
  for (int i = 0; i < kEight; ++i) amax = fmaxf(amax, fabsf(e.v[i]));
  return amax;
}
// ... over the lanes of a tile.
__device__ inline float tile_max(float x) {
#pragma unroll
  for (int step = kTileLanes / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, step));
  return x;
}

// x / scale: the correctly rounded quotient for every code that is not zero, with the sign of x.
struct Divider {
  float inverse, scale;  // of an infinite scale 0: the quotient alone, without a remainder
  __device__ float operator()(float x) const {
    const float q = x * inverse;
    return copysignf(fmaf(fmaf(-q, scale, x), inverse, q), x);
  }
};
__device__ inline Divider divider(float scale) {
  return {.inverse = __frcp_rn(scale), .scale = isinf(scale) ? 0.0f : scale};
}

// Codes of two quotients, `low` in the lower byte. Up to 448 (1 + 2^-23); NaN becomes 0x7F.
__device__ inline uint32_t two_codes(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  return codes;
#else
  const auto code = [](float q) { return isnan(q) ? 0x7Fu : uint32_t(e4m3(q).bits); };
  return code(low) | code(high) << 8;
#endif
}
__device__ inline uint2 eight_codes(const Eight& e, const Divider& by) {
  float q[kEight];
#pragma unroll
  for (int i = 0; i < kEight; ++i) q[i] = by(e.v[i]);
  return {two_codes(q[0], q[1]) | two_codes(q[2], q[3]) << 16, two_codes(q[4], q[5]) | two_codes(q[6], q[7])
                                                                                           << 16};
}

// The numbers of eight codes, without a scale.
__device__ inline Eight numbers_of(uint2 codes) {
  Eight e;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
#pragma unroll
  for (int i = 0; i < 4; ++i) {  // by way of f16, which holds every E4M3
    const uint16_t two = uint16_t((i < 2 ? codes.x : codes.y) >> 16 * (i % 2));
    asm("{\n.reg .b32 halves;\n.reg .b16 low, high;\ncvt.rn.f16x2.e4m3x2 halves, %2;\n"
        "mov.b32 {low, high}, halves;\ncvt.f32.f16 %0, low;\ncvt.f32.f16 %1, high;\n}"
        : "=f"(e.v[2 * i]), "=f"(e.v[2 * i + 1])
        : "h"(two));
  }
#else
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    e4m3 code;
    code.bits = uint8_t((i < 4 ? codes.x : codes.y) >> 8 * (i % 4));
    e.v[i] = float(code);
  }
#endif
  return e;
}

// Codes [at, at + 8) of a row of `cols`; beyond its end zeros, and nothing is written. `wide`: rows begin on 8
// bytes.
__device__ inline uint2 load_codes(const Tensor& t, int64_t r, int64_t at, bool wide) {
  const uint8_t* from = static_cast<const uint8_t*>(t.data) + r * t.ld + at;
  if (wide && at + kEight <= t.cols) return *reinterpret_cast<const uint2*>(from);
  uint2 codes{0, 0};
  for (int i = 0; i < kEight; ++i)
    if (at + i < t.cols) (i < 4 ? codes.x : codes.y) |= uint32_t(from[i]) << 8 * (i % 4);
  return codes;
}
__device__ inline void store_codes(uint8_t* to, int64_t left, bool wide, uint2 codes) {
  if (wide && left >= kEight) {
    *reinterpret_cast<uint2*>(to) = codes;
    return;
  }
  for (int i = 0; i < kEight; ++i)
    if (i < left) to[i] = uint8_t((i < 4 ? codes.x : codes.y) >> 8 * (i % 4));
}

// One tile's lanes quantise their numbers of row r from column `at` on and write codes and scale. Every lane of
// the warp takes part; `real`: this one has numbers to write.
__device__ inline void write_row_tile(const Tensor& y, int64_t r, int64_t at, bool real, const Eight& e,
                                      bool power_of_two) {
  const float scale = scale_of(tile_max(amax_of(e)), e4m3::kMax, power_of_two);
  if (!real) return;
  store_codes(static_cast<uint8_t*>(y.data) + r * y.ld + at, y.cols - at, true,
              eight_codes(e, divider(scale)));
  if (at % kScaleBlock == 0) y.scales[at / kScaleBlock * y.scale_ld + r] = scale;
}

}  // namespace cachalot::cuda
