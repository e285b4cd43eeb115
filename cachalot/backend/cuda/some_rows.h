// What decoding of some sequences takes on any card from Ampere on. Bits may differ from those of fewer and of
// more rows (docs/numerics.md); a row's depend on its own numbers only.
#pragma once

#include "backend/cuda/faults.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/product.h"
#include "backend/ops/head_gemm.h"
#include "backend/ops/latent_attention.h"
#include "backend/ops/norm_gemm.h"

namespace cachalot::cuda {

// Each: false, and nothing is done, for other shapes.

// 2 to 32 rows; A and B [N, K] bf16 on 16 bytes, K a multiple of 8 up to 8192; C bf16 or f32.
bool some_rows(const Queue& queue, const Products& p);
// K up to 1024; of a single product 5 rows or more.
bool some_rows(const Queue& queue, const NormGemm& g);
// Queries into the latent (head_gemm, not trans_w), 5 to 8 tokens, heads of 64 or 128 plain numbers, latents
// of whole 64s. With `append` that operation is made beside it, in the same launch.
bool absorb_rows(const Queue& queue, const HeadGemm& g, const LatentAppend* append, const Faults& faults);

}  // namespace cachalot::cuda
