// Numbers of any format, one at a time: what the plain kernels read and write.
#pragma once

#include "tensor/tensor.h"

namespace cachalot::cuda {

// t(r, c) as float; e4m3 times its scale.
__device__ inline float load_number(const Tensor& t, int64_t r, int64_t c) {
  const int64_t i = r * t.ld + c;
  if (t.dtype == DType::bf16) return float(static_cast<const bf16*>(t.data)[i]);
  if (t.dtype == DType::f32) return static_cast<const float*>(t.data)[i];
  return float(static_cast<const e4m3*>(t.data)[i]) * t.scale(r, c);
}

// t(r, c) = x, rounded to nearest even. t is f32 or bf16.
__device__ inline void store_number(const Tensor& t, int64_t r, int64_t c, float x) {
  const int64_t i = r * t.ld + c;
  if (t.dtype == DType::bf16) static_cast<bf16*>(t.data)[i] = bf16(x);
  else static_cast<float*>(t.data)[i] = x;
}

}  // namespace cachalot::cuda
