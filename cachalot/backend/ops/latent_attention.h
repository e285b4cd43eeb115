// Attention of MLA in its absorbed form over the paged latent cache: decoding.
//   q_latent [T, H C] act    head h: columns h C ...           (q_nope W_UK)
//   q_rope   [T, *]   act    head h: columns h q_rope_stride ... + P
//   cache    [slots, C + P] act: latent, then rotated key of one token
//   page_table i32 [S, max_pages]: page j of sequence s holds tokens j page_size ... in cache rows
//            page_table(s, j) page_size ...; entries past the sequence's last page are garbage and not read
//   kv_lens i32 [1, S]: tokens of sequence s in the cache, this step's included
//   q_starts i32 [1, S+1]; a sequence has n = q_starts[s+1] - q_starts[s] query rows (its last n tokens):
//            query i sees tokens 0 ... kv_lens[s] - n + i
//   o_latent [T, H C] act:   softmax_j(scale (q_latent . latent_j + q_rope . rope_j)) latent_j
// Cache rows that nobody sees may hold NaN.
#pragma once

#include "backend/ops/common.h"

namespace cachalot {

struct LatentAttention {
  Tensor q_latent, q_rope, cache, page_table, kv_lens, q_starts, o_latent;
  int64_t heads = 0, latent = 0, rope = 0;  // H, C, P
  int64_t q_rope_stride = 0;
  int64_t page_size = 0;
  int64_t sequences = 0;
  double scale = 0;
};

}  // namespace cachalot
