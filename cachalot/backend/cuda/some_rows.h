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

// 2 to 32 rows, of up to 2^20 weights in all 2^16 / K, at most 256; A and B [N, K] bf16 on 16 bytes, K a multiple of 8
// up to 8192; C bf16 or f32. With `any_rows` any number of them and any K: the same bits for each.
bool some_rows(const Queue& queue, const Products& p, bool any_rows = false);
// Any number of rows, the same bits for each; so many columns or more, K a multiple of 64, else as some_rows.
constexpr int64_t kFixedTileColumns = 4096;
bool fixed_tiles(const Queue& queue, const Products& p);
// K up to 1024; of a single product 5 rows or more.
bool some_rows(const Queue& queue, const NormGemm& g);
// Queries into the latent (head_gemm, not trans_w), 5 to 8 tokens, of up to 2^20 weights 256, heads of 64 or 128 plain
// numbers, latents of whole 64s. With `append` that operation is made beside it, in the same launch. With `any_rows`
// any number of tokens: the same bits for each.
bool absorb_rows(const Queue& queue, const HeadGemm& g, const LatentAppend* append, const Faults& faults,
                 bool any_rows = false);

}  // namespace cachalot::cuda
