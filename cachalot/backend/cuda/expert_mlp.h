// The kernels of ops/expert_mlp.h for decoding steps of many sequences.
#pragma once

#include "backend/cuda/faults.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/ops/expert_mlp.h"

namespace cachalot::cuda {

// bf16, widths of whole tiles, up to 256 tokens (with `any_rows` more, 256 at a time): three launches, no
// permutation. A row's bits depend on its own numbers only. False, and nothing is queued, for other shapes.
bool expert_tiles(const Queue& queue, const ExpertMlp& e, const Faults& faults, bool any_rows);

}  // namespace cachalot::cuda
