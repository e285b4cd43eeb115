// Eight neighbouring numbers of a row at a time: what the memory-bound kernels read and write. Where every
// row begins on 16 bytes and holds a multiple of eight, that is a vector access (`wide`); elsewhere number by
// number, with the same arithmetic.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "tensor/tensor.h"

namespace cachalot::cuda {

constexpr int kEight = 8;

template <class T> struct alignas(16) Packed;  // as they lie in memory
template <> struct alignas(16) Packed<bf16> { uint32_t w[4]; };
template <> struct alignas(16) Packed<float> { float w[8]; };

struct Eight {
  float v[kEight];
};

// Whether `t` can be read and written in eights.
inline bool is_wide(const Tensor& t) {
  return t.cols % kEight == 0 && reinterpret_cast<uintptr_t>(t.data) % 16 == 0 &&
         (t.rows <= 1 || t.ld * size_of(t.dtype) % 16 == 0);
}
inline bool are_wide(std::initializer_list<const Tensor*> tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [](const Tensor* t) { return !*t || is_wide(*t); });
}
inline int64_t eights(int64_t cols) { return (cols + kEight - 1) / kEight; }

// Numbers [at, at + 8) of a row of `cols`; beyond its end: zeros.
template <bool wide> __device__ inline Packed<bf16> load(const bf16* row, int64_t at, int64_t cols) {
  Packed<bf16> p;
  if constexpr (wide) {
    *reinterpret_cast<uint4*>(&p) = *reinterpret_cast<const uint4*>(row + at);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t low = at + 2 * i < cols ? row[at + 2 * i].bits : 0;
      const uint32_t high = at + 2 * i + 1 < cols ? row[at + 2 * i + 1].bits : 0;
      p.w[i] = high << 16 | low;
    }
  }
  return p;
}
template <bool wide> __device__ inline Packed<float> load(const float* row, int64_t at, int64_t cols) {
  Packed<float> p;
  if constexpr (wide) {
    reinterpret_cast<float4*>(&p)[0] = reinterpret_cast<const float4*>(row + at)[0];
    reinterpret_cast<float4*>(&p)[1] = reinterpret_cast<const float4*>(row + at)[1];
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) p.w[i] = at + i < cols ? row[at + i] : 0;
  }
  return p;
}

template <bool wide>
__device__ inline void store(bf16* row, int64_t at, int64_t cols, const Packed<bf16>& p) {
  if constexpr (wide) {
    *reinterpret_cast<uint4*>(row + at) = *reinterpret_cast<const uint4*>(&p);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (at + i < cols) row[at + i].bits = uint16_t(p.w[i / 2] >> (16 * (i % 2)));
  }
}
template <bool wide>
__device__ inline void store(float* row, int64_t at, int64_t cols, const Packed<float>& p) {
  if constexpr (wide) {
    reinterpret_cast<float4*>(row + at)[0] = reinterpret_cast<const float4*>(&p)[0];
    reinterpret_cast<float4*>(row + at)[1] = reinterpret_cast<const float4*>(&p)[1];
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (at + i < cols) row[at + i] = p.w[i];
  }
}

__device__ inline Eight unpack(const Packed<bf16>& p) {
  Eight e;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    e.v[2 * i] = __uint_as_float(p.w[i] << 16);
    e.v[2 * i + 1] = __uint_as_float(p.w[i] & 0xFFFF0000u);
  }
  return e;
}
__device__ inline Eight unpack(const Packed<float>& p) {
  Eight e;
#pragma unroll
  for (int i = 0; i < 8; ++i) e.v[i] = p.w[i];
  return e;
}

// Rounded to nearest even.
template <class T> __device__ inline Packed<T> pack(const Eight& e) {
  Packed<T> p;
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(p.w[i]) : "f"(e.v[2 * i + 1]), "f"(e.v[2 * i]));
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) p.w[i] = e.v[i];
  }
  return p;
}

template <bool wide, class T> __device__ inline Eight load_eight(const T* row, int64_t at, int64_t cols) {
  return unpack(load<wide>(row, at, cols));
}
template <bool wide, class T>
__device__ inline void store_eight(T* row, int64_t at, int64_t cols, const Eight& e) {
  store<wide>(row, at, cols, pack<T>(e));
}

// A grid over rows and eights of columns: block (x: eights, y: rows); kernels step by the grid's size both
// ways.
struct Plane {
  dim3 grid, block;
};
inline Plane plane(int64_t rows, int64_t cols) {
  const int64_t across = std::max<int64_t>(eights(cols), 1);
  unsigned x = 1;
  while (x < 256 && x < across) x *= 2;
  const unsigned y = 256 / x;
  return {.grid = dim3(unsigned(std::min<int64_t>((across + x - 1) / x, 1 << 20)),
                       unsigned(std::min<int64_t>(std::max<int64_t>((rows + y - 1) / y, 1), 65535))),
          .block = dim3(x, y)};
}
// for_plane(rows, cols, [&](int64_t row, int64_t column of the first of eight) {...})
template <class Body> __device__ inline void for_plane(int64_t rows, int64_t cols, const Body& body) {
  for (int64_t r = int64_t(blockIdx.y) * blockDim.y + threadIdx.y; r < rows;
       r += int64_t(gridDim.y) * blockDim.y)
    for (int64_t c = kEight * (int64_t(blockIdx.x) * blockDim.x + threadIdx.x); c < cols;
         c += int64_t(kEight) * gridDim.x * blockDim.x)
      body(r, c);
}

// Views of one shape that are all contiguous become one long row: no short last step a row.
inline void flatten(std::initializer_list<Tensor*> tensors) {
  for (const Tensor* t : tensors)
    if (*t && (t->scales || (t->rows > 1 && t->ld != t->cols))) return;
  for (Tensor* t : tensors) *t = *t ? make_tensor(t->data, t->dtype, 1, t->size()) : Tensor{};
}

// body(T{}) with T = bf16 or float by the format of an activation.
template <class Body> void with_act(DType act, const Body& body) {
  if (act == DType::bf16) body(bf16{});
  else body(float{});
}
// body(std::true_type{}) or body(std::false_type{}).
template <class Body> void with_width(bool wide, const Body& body) {
  if (wide) body(std::true_type{});
  else body(std::false_type{});
}

}  // namespace cachalot::cuda
