// Cross-entropy with a row of logits spread over a cluster of blocks (ops/cross_entropy.h).
#pragma once

#include "backend/cuda/faults.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/ops/cross_entropy.h"

namespace cachalot::cuda::hopper {

// Rows of up to 131,072 logits in fours that begin on 16 bytes.
bool takes_rows(const CrossEntropy& e);
// Bytes at `workspace`, at most.
int64_t cross_entropy_workspace(const CrossEntropy& e);
void cross_entropy_rows(const Queue& queue, int multiprocessors, void* workspace, const CrossEntropy& e,
                        const Faults& faults);

}  // namespace cachalot::cuda::hopper
