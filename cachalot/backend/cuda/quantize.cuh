// How a tile of 128 becomes FP8 codes (ops/quantize.h), for all kernels that quantise. In the fast ones sixteen
// neighbouring lanes hold a tile, eight numbers each.
#pragma once

#include "backend/cuda/convert.cuh"
#include "backend/cuda/reduce.cuh"

namespace cachalot::cuda {

constexpr int kTileLanes = int(kScaleBlock) / kEight;
constexpr float kLeastAmax = 1e-4f;

// amax / largest, rounded to nearest, for a constant `largest`: the correction by the remainder makes it that
// wherever nothing is subnormal (Markstein), and amax >= 1e-4.
__device__ inline float scale_of(float amax, float largest, bool power_of_two) {
  amax = fmaxf(amax, kLeastAmax);
  const float q = amax * (1.0f / largest);
  const float corrected = fmaf(fmaf(-q, largest, amax), 1.0f / largest, q);
  const float scale = isinf(amax) ? amax : corrected;
  return power_of_two ? __uint_as_float((__float_as_uint(scale) + 0x7FFFFFu) & ~0x7FFFFFu) : scale;
}

// The largest magnitude; passes over NaN.
__device__ inline float amax_of(const Eight& e) {
  float amax = 0;
#pragma unroll
  for (int i = 0; i < kEight; ++i) amax = fmaxf(amax, fabsf(e.v[i]));
  return amax;
}
// ... of numbers as they lie in memory: of bf16 two at a time.
__device__ inline uint32_t larger_two(uint32_t a, uint32_t b) {
  asm("max.bf16x2 %0, %1, %2;" : "=r"(a) : "r"(a), "r"(b));
  return a;
}
__device__ inline float amax_of(const Packed<bf16>& p) {
  uint32_t two = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) two = larger_two(two, p.w[i] & 0x7FFF7FFFu);
  return fmaxf(__uint_as_float(two << 16), __uint_as_float(two & 0xFFFF0000u));
}
__device__ inline float amax_of(const Packed<float>& p) { return amax_of(unpack(p)); }
// ... over the lanes of a tile.
__device__ inline float tile_max(float x) {
#pragma unroll
  for (int step = kTileLanes / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, step));
  return x;
}
// The same of `count` tiles (a power of two up to 16) that these sixteen lanes hold pieces of. Every lane gets
// one: of tile tile_of_lane<count>(). Each step passes on half of what is left, so that 16 tiles take 15
// exchanges instead of 64.
template <int count> __device__ inline float tiles_max(float (&most)[count]) {
  int left = count / 2;
#pragma unroll
  for (int step = kTileLanes / 2; step > 0; step /= 2, left /= 2) {
    if (left == 0) {
      most[0] = fmaxf(most[0], __shfl_xor_sync(kAll, most[0], step));
      continue;
    }
    const bool upper = threadIdx.x & unsigned(step);
#pragma unroll
    for (int k = 0; k < kTileLanes / 2; ++k)
      if (k < left) {
        const float kept = upper ? most[k + left] : most[k], passed = upper ? most[k] : most[k + left];
        most[k] = fmaxf(kept, __shfl_xor_sync(kAll, passed, step));
      }
  }
  return most[0];
}
template <int count> __device__ inline int tile_of_lane() {
  return int(threadIdx.x) % kTileLanes * count / kTileLanes;
}

// x / scale, the correctly rounded quotient for every code that is not zero, with the sign of x. Of an infinite
// scale both factors are 0.
//
// f32: q = x r, q - (q scale - x) r with r = RN(1 / scale); these signs keep that of a zero.
// bf16: x high + x low, where high + low = 1 / scale to 46 bits and low is not negative, which keeps it too. The
// code can only depend on how the quotient is rounded where 448 x / amax is the middle of two codes; with eight
// bits each in x and amax, scale then is so simple that 46 bits decide (all pairs of x and amax were tried, on
// an H200, with both kinds of scales).
template <class T> struct Divider;
template <> struct alignas(8) Divider<float> {
  float minus_inverse, scale;
  __device__ float operator()(float x) const {
    const float q = x * -minus_inverse;
    return fmaf(fmaf(q, scale, -x), minus_inverse, q);
  }
};
template <> struct alignas(8) Divider<bf16> {
  float high, low;
  __device__ float operator()(float x) const { return fmaf(x, high, x * low); }
};
template <class T> __device__ inline Divider<T> divider(float scale) {
  if constexpr (std::is_same_v<T, float>) {
    return {.minus_inverse = -__frcp_rn(scale), .scale = isinf(scale) ? 0.0f : scale};
  } else {
    const float finite = fminf(scale, 0x1.fffffep127f);  // its inverse, subnormal, is flushed to 0
    float near;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(near) : "f"(finite));
    const float high = near * (1.0f - 0x1p-22f);  // below the inverse
    const float rest = fmaf(-finite, high, 1.0f), low = high * rest;
    return {.high = high, .low = fmaf(low, rest, low)};
  }
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
__device__ inline uint32_t four_codes(float a, float b, float c, float d) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint32_t codes;
  asm("{\n.reg .b16 low, high;\ncvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\nmov.b32 %0, {low, high};\n}"
      : "=r"(codes)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return codes;
#else
  return two_codes(a, b) | two_codes(c, d) << 16;
#endif
}
template <class T> __device__ inline uint2 eight_codes(const Eight& e, const Divider<T>& by) {
  return {four_codes(by(e.v[0]), by(e.v[1]), by(e.v[2]), by(e.v[3])),
          four_codes(by(e.v[4]), by(e.v[5]), by(e.v[6]), by(e.v[7]))};
}

// The numbers of four codes, without a scale.
__device__ inline void four_numbers(uint32_t codes, float (&to)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
#pragma unroll
  for (int i = 0; i < 2; ++i) {  // by way of f16, which holds every E4M3
    const auto two = uint16_t(codes >> 16 * i);
    asm("{\n.reg .b32 halves;\n.reg .b16 low, high;\ncvt.rn.f16x2.e4m3x2 halves, %2;\n"
        "mov.b32 {low, high}, halves;\ncvt.f32.f16 %0, low;\ncvt.f32.f16 %1, high;\n}"
        : "=f"(to[2 * i]), "=f"(to[2 * i + 1])
        : "h"(two));
  }
#else
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    e4m3 code;
    code.bits = uint8_t(codes >> 8 * i);
    to[i] = float(code);
  }
#endif
}
__device__ inline Eight numbers_of(uint2 codes) {
  float low[4], high[4];
  four_numbers(codes.x, low), four_numbers(codes.y, high);
  return {{low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]}};
}

// Whether rows of codes begin on 8 bytes: the operations' own do, what others made need not.
inline bool codes_are_wide(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.data) % 8 == 0 && (t.rows <= 1 || t.ld % 8 == 0);
}
// Codes [at, at + 8) of a row of `cols`; beyond its end zeros, and nothing is written. `wide`: codes_are_wide.
__device__ inline uint2 load_codes(const Tensor& t, int64_t r, int64_t at, bool wide) {
  const uint8_t* from = static_cast<const uint8_t*>(t.data) + r * t.ld + at;
  if (wide && at + kEight <= t.cols) return *reinterpret_cast<const uint2*>(from);
  uint2 codes{0, 0};
  for (int i = 0; i < kEight; ++i)
    if (at + i < t.cols) (i < 4 ? codes.x : codes.y) |= uint32_t(from[i]) << 8 * (i % 4);
  return codes;
}
__device__ inline void store_codes(uint8_t* to, uint2 codes) { *reinterpret_cast<uint2*>(to) = codes; }
__device__ inline void store_codes(uint8_t* to, int64_t left, bool wide, uint2 codes) {
  if (wide && left >= kEight) return store_codes(to, codes);
  for (int i = 0; i < kEight; ++i)
    if (i < left) to[i] = uint8_t((i < 4 ? codes.x : codes.y) >> 8 * (i % 4));
}

// Eight numbers as they lie in memory.
template <class T> struct Stored {
  Packed<T> packed;
  __device__ Eight numbers() const { return unpack(packed); }
};
template <> struct Stored<e4m3> {
  uint2 codes;
  float scale;
  __device__ Eight numbers() const {
    Eight e = numbers_of(codes);
#pragma unroll
    for (int i = 0; i < kEight; ++i) e.v[i] *= scale;
    return e;
  }
};

// Numbers of a matrix from row `row` and column `at` on, eight a row, whose rows can be read in eights.
template <class T> struct Rows {
  const T* from;
  int64_t ld;
  __device__ Rows(const Tensor& x, int64_t row, int64_t at)
      : from(static_cast<const T*>(x.data) + row * x.ld + at), ld(x.ld) {}
  __device__ Stored<T> operator[](int i) const { return {load<true>(from + i * ld, 0, kEight)}; }
};
template <> struct Rows<e4m3> {  // with row tiles
  const uint8_t* from;
  const float* scales;
  int64_t ld;
  __device__ Rows(const Tensor& x, int64_t row, int64_t at)
      : from(static_cast<const uint8_t*>(x.data) + row * x.ld + at),
        scales(x.scales + at / kScaleBlock * x.scale_ld + row),
        ld(x.ld) {}
  __device__ Stored<e4m3> operator[](int i) const {
    return {*reinterpret_cast<const uint2*>(from + i * ld), scales[i]};
  }
};

// One tile's lanes quantise their numbers, of T, of row r from column `at` on and write codes and scale. Every
// lane of the warp takes part; `real`: this one has numbers to write.
template <class T> __device__ inline void write_row_tile(const Tensor& y, int64_t r, int64_t at, bool real,
                                                         const Eight& e, bool power_of_two) {
  const float scale = scale_of(tile_max(amax_of(e)), e4m3::kMax, power_of_two);
  if (!real) return;
  store_codes(static_cast<uint8_t*>(y.data) + r * y.ld + at, y.cols - at, true,
              eight_codes(e, divider<T>(scale)));
  if (at % kScaleBlock == 0) y.scales[at / kScaleBlock * y.scale_ld + r] = scale;
}

// Dividers of `count` tiles of each of the two that a warp's lanes hold side by side, for all of its lanes.
template <class T, int count> struct WarpDividers {
  Divider<T> of[2][count];
  // `most`: this lane's part of the amax of its tiles. Returns the scale of tile tile_of_lane<count>().
  __device__ float make(float (&most)[count], bool power_of_two) {
    const float scale = scale_of(tiles_max(most), e4m3::kMax, power_of_two);
    __syncwarp();  // those before have been read
    of[threadIdx.x / kTileLanes % 2][tile_of_lane<count>()] = divider<T>(scale);
    __syncwarp();
    return scale;
  }
  __device__ const Divider<T>& operator[](int tile) const { return of[threadIdx.x / kTileLanes % 2][tile]; }
};

}  // namespace cachalot::cuda
