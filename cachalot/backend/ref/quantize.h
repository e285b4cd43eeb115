// The quantiser of ops/quantize.h as the oracle runs it: a tile is a list of floats.
#pragma once

#include <vector>

#include "tensor/tensor.h"

namespace cachalot {

// max(amax, 1e-4) / largest; with `power_of_two`, rounded up to one.
float scale_of_tile(const std::vector<float>& tile, float largest, bool power_of_two);
e4m3 code_of(float x, float scale);

// Row r of a tensor with row tiles = x.
void write_row_tiles(const Tensor& t, int64_t r, const std::vector<float>& x, bool power_of_two);

}  // namespace cachalot
