// The quantiser of ops/quantize.h for the operations of this folder that end with it.
#pragma once

#include <cstdint>

#include "backend/cpu/vector.h"
#include "tensor/tensor.h"

namespace cachalot::cpu {

// Row r of a tensor with row tiles = x[0 ... cols).
void quantise_row(const Vectors& vectors, const float* x, const Tensor& to, int64_t r, bool power_of_two);

// Row `from_row`, codes and scales, becomes row `to_row` of another tensor with row tiles.
void copy_quantised_row(const Tensor& from, int64_t from_row, const Tensor& to, int64_t to_row);

}  // namespace cachalot::cpu
