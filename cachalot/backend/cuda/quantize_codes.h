// Codes with row tiles tiled anew along the other direction: quantize_codes.cu.
#pragma once

#include "backend/cuda/launch.cuh"
#include "backend/cuda/squares.cuh"

namespace cachalot::cuda {

// `transposed` of ops/quantize.h for an x in e4m3. False, and nothing was launched: rows of x do not begin on 16
// bytes, or are no multiple of 16 long.
bool turn_codes(const Queue& queue, int multiprocessors, const Tensor& x, const Tensor& transposed,
                const RowsToTurn& turn, bool power_of_two);

}  // namespace cachalot::cuda
