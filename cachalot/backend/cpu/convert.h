// Rows of any format as floats and back: what every kernel of this folder begins and ends with.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "tensor/tensor.h"

namespace cachalot::cpu {

// out[i] = t(r, c + i), i < n, as floats: exact from f32 and bf16; e4m3 times its scale, rounded once.
void load_row(const Tensor& t, int64_t r, int64_t c, int64_t n, float* out);
// t(r, c + i) = in[i], rounded to nearest even. t is f32 or bf16.
void store_row(const Tensor& t, int64_t r, int64_t c, int64_t n, const float* in);

// The row itself when it is f32, else its copy in `scratch` (cols floats).
inline const float* row_as_floats(const Tensor& t, int64_t r, float* scratch) {
  if (t.dtype == DType::f32) return static_cast<const float*>(t.data) + r * t.ld;
  load_row(t, r, 0, t.cols, scratch);
  return scratch;
}

// Copies rows, columns contiguous, formats equal.
void copy_row(const Tensor& from, int64_t from_row, const Tensor& to, int64_t to_row);

// Double precision is for ref, the oracle; a layer that asks for it here has the wrong device.
void require_no_f64(const char* op, std::initializer_list<const Tensor*> tensors);

// sum_i a[i] b[i] in 32 interleaved float sums, combined pairwise: error grows like n / 32.
float dot(const float* a, const float* b, int64_t n);

}  // namespace cachalot::cpu
