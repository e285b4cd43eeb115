// Draws at a temperature, a row of logits spread over a cluster of blocks (ops/sample.h).
#pragma once

#include "backend/cuda/launch.cuh"
#include "backend/ops/sample.h"

namespace cachalot::cuda::hopper {

// Rows of up to 131,072 logits in fours that begin on 16 bytes, long enough to be worth eight blocks.
bool takes_rows(const Sample& q);
void sample_rows(const Queue& queue, const Sample& q);

}  // namespace cachalot::cuda::hopper
