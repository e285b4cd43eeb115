// backend/ops/latent_attention.h on Hopper's kernels (latent_decode.h).
#pragma once

#include "backend/cuda/hopper/latent_decode.h"
#include "backend/ops/latent_attention.h"

namespace cachalot::cuda::hopper {

struct LatentCall {
  Queue queue;
  int multiprocessors = 0;
  Faults faults = {};
  void* memory = nullptr;  // of `bytes` bytes, on 16
  int64_t bytes = 0;
};

// Queues the making of the plan, unless latent_attention of this shape does without.
void latent_plan(const LatentCall& call, const LatentPlan& p);

// False, and nothing is queued, when these kernels do not take the shape: other widths or formats than V3's
// bf16 or a cache of another than the two formats, heads or tokens that are not packed, pages that are no multiple of 64 tokens, too little memory.
bool latent_attention(const LatentCall& call, const LatentAttention& a);

}  // namespace cachalot::cuda::hopper
