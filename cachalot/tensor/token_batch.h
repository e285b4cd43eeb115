// What one forward pass runs on: packed rows of tokens, the same for training, rollout, evaluation and
// serving.
#pragma once

#include "tensor/tensor.h"

namespace cachalot {

// Where keys and values of earlier tokens come from.
enum class Attend : uint8_t {
  self,    // only this batch's rows: training, scoring
  expand,  // the cache's latents, this batch's appended, expanded to keys and values: prefill in chunks
  absorb,  // the cache's latents as they are (absorbed MLA): decoding
};

// Device views; all i32. Rows of one sequence are neighbours, in order of position.
struct TokenBatch {
  int64_t rows = 0;       // T
  int64_t sequences = 0;  // S
  Tensor tokens;          // [1, T]
  Tensor positions;       // [1, T]   0 at the start of a sequence
  Tensor starts;          // [1, S+1] first row of each sequence
  Tensor targets;         // [1, T]   optional: the token to predict, -1: none

  Attend attend = Attend::self;
  Tensor slots;           // [1, T]   expand, absorb: cache row that a token's latent is written to
  int64_t key_rows = 0;   // expand: R, all keys of all sequences
  Tensor key_slots;       // [1, R]   expand: cache rows of those keys, sequence after sequence
  Tensor key_starts;      // [1, S+1] expand: first key of each sequence
  int64_t page_size = 0;  // absorb
  Tensor page_table;      // [S, max_pages] absorb: see ops/latent_attention.h
  Tensor kv_lens;         // [1, S]   absorb: tokens of each sequence in the cache, this batch's included
  Tensor latent_plan;     // absorb: see ops/latent_attention.h; absent: every layer makes its own
  int64_t piece = 0;      // absorb: LatentAttention::piece
};

}  // namespace cachalot
