// What absorbed attention begins with (V3 report section 2.1.1), one after the other; of few rows a backend makes them
// in one pass:
//   project   norm_gemm: q = rmsnorm(compressed) W^T                        [T, H (N + P)]
//   append    latent_append: the cache rows; turns the rotary slices of the same q
//   absorb    head_gemm, not trans_w: q_latent from the other columns of q  [T, H C]
// Written are the cache rows, the rotary slices of q and absorb.y; project.y, project.r and the other columns of q are
// working memory, contents afterwards unspecified. Weights, absorb.w too, and gains are read ahead (norm_gemm.h).
#pragma once

#include "backend/ops/head_gemm.h"
#include "backend/ops/latent_attention.h"
#include "backend/ops/norm_gemm.h"

namespace cachalot {

struct LatentQuery {
  NormGemm project;
  LatentAppend append;
  HeadGemm absorb;
};

}  // namespace cachalot
