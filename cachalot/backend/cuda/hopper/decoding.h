// Parts of a decoding step with few rows that clusters of blocks make in one kernel: what a kernel of its own would
// hand to the next through memory, and two microseconds later, goes through their shared memories.
#pragma once

#include "backend/cuda/faults.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/ops/latent_query.h"
#include "backend/ops/route.h"

namespace cachalot::cuda::hopper {

// False, and nothing is done: not of that kind.
bool query_few(const Queue& queue, const LatentQuery& q, const Faults& faults);
// Products behind a norm: 33 to 256 rows of bf16, K a multiple of 64 up to 1024, up to 264 tiles of 32 x 64. With
// `any_rows` any number of them: the same bits for each.
bool norm_tiles(const Queue& queue, const NormGemm& g, bool any_rows);
bool route_few(const Queue& queue, const Route& r, const Faults& faults);

}  // namespace cachalot::cuda::hopper
