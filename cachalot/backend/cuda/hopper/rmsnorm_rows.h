// RMSNorm's backward without a residual (ops/rmsnorm.h), rows brought into shared memory by the copy engine.
#pragma once

#include "backend/cuda/launch.cuh"
#include "backend/ops/rmsnorm.h"

namespace cachalot::cuda::hopper {

// Rows of bf16 that begin on 16 bytes, of a multiple of 256 numbers and up to 7168.
bool takes_rows(const RmsNormBackward& n);
// dx, and sums [chunks, D]: sum_t dy n of each chunk of rows. Returns how many chunks, at most `most`.
int64_t rmsnorm_rows(const Queue& queue, const RmsNormBackward& n, int64_t most, float* sums);

}  // namespace cachalot::cuda::hopper
