// Rows of a tensor as the vectors of vector.h read them: a pointer, in a format known by its table.
#pragma once

#include <string>

#include "backend/cpu/vector.h"
#include "tensor/tensor.h"

namespace cachalot::cpu {

// The table for f32 or bf16.
inline const RowVectors& rows_in(const Vectors& vectors, DType format) {
  CHECK(format == DType::f32 || format == DType::bf16, "no vectors for " + std::string(name_of(format)));
  return format == DType::f32 ? vectors.f32 : vectors.bf16;
}

// Where t(r, c) lies.
inline void* place(const Tensor& t, int64_t r, int64_t c = 0) {
  return static_cast<uint8_t*>(t.data) + (r * t.ld + c) * size_of(t.dtype);
}

// Floats between the rows of a working matrix of n columns: whole cache lines, an odd number of them, so that
// a column's rows fall on all sets of the cache (rows 512 bytes apart share 8 of 64).
inline int64_t spread_ld(int64_t n) {
  constexpr int64_t kLine = 16;
  return ((n + kLine - 1) / kLine | 1) * kLine;
}

}  // namespace cachalot::cpu
