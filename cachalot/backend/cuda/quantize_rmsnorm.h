// RmsNormForward with FP8 codes of y (backend/ops/rmsnorm.h); rows of up to 32768, which the caller checks.
#pragma once

#include "backend/cuda/launch.cuh"
#include "backend/ops/rmsnorm.h"

namespace cachalot::cuda {

void quantized_rmsnorm(const Queue& queue, int multiprocessors, const RmsNormForward& n);

}  // namespace cachalot::cuda
