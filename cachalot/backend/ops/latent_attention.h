// Attention of MLA in its absorbed form over the paged latent cache: decoding.
//
// A cache row is one token: its latent of C numbers and its rotated key of P. Two formats:
//   act                      [slots, C + P]
//   e4m3, latent_bytes(C, P) [slots, C + 4 ceil(C / 128) + 2 P] bytes, no Tensor::scales: C codes | a f32 scale for
//                            each 128 of them | the key in bf16 (C = 512, P = 64: 656 bytes instead of 1152).
//                            A scale is max(largest magnitude of its 128 numbers, 1e-4) / 448, rounded up to a
//                            power of two, at most 2^7: code times scale is exact in bf16. C is a multiple of 4;
//                            rows are packed.
#pragma once

#include "backend/ops/common.h"

namespace cachalot {

constexpr int64_t latent_bytes(int64_t latent, int64_t rope) {
  return latent + 4 * ((latent + kScaleBlock - 1) / kScaleBlock) + 2 * rope;
}

// What a decoding step's layers share: how the tokens of all sequences are divided among the parts of a device.
// It follows from lengths and heads, so it is made once a step, on the device; a recorded graph stays valid
// while sequences grow. What `plan` holds is the backend's own affair; one that divides by shape alone (ref, cpu)
// leaves it as it is, and then nobody reads it. Attention with a plan may read ahead of the operations before it
// what is older than the step: the plan, page_table, kv_lens, q_starts, and the cache but for the rows of the step's
// own tokens. None that is still under way, or comes between, writes them.
//   kv_lens, q_starts: as below | plan i32 [1, latent_plan_size(S)]
// `piece` > 0: contexts are cut after multiples of so many tokens (a multiple of 128) and nowhere else, so that a
// row's bits depend on its own tokens only. 0: where the whole batch's lengths make the parts even.
struct LatentPlan {
  Tensor page_table, kv_lens, q_starts, plan;
  DType cache = DType::bf16;  // its format
  int64_t rows = 0, heads = 0;  // T, H
  int64_t page_size = 0, sequences = 0;
  int64_t piece = 0;
};
constexpr int64_t latent_plan_size(int64_t sequences) { return 8192 + 8 * sequences; }

//   q_latent [T, H C] act    head h: columns h C ...           (q_nope W_UK)
//   q_rope   [T, *]   act    head h: columns h q_rope_stride ... + P
//   cache    [slots, ...]    see above
//   page_table i32 [S, max_pages]: page j of sequence s holds tokens j page_size ... in cache rows
//            page_table(s, j) page_size ...; entries past the sequence's last page are garbage and not read
//   kv_lens i32 [1, S]: tokens of sequence s in the cache, this step's included
//   q_starts i32 [1, S+1]; a sequence has n = q_starts[s+1] - q_starts[s] query rows (its last n tokens):
//            query i sees tokens 0 ... kv_lens[s] - n + i
//   o_latent [T, H C] act:   softmax_j(scale (q_latent . latent_j + q_rope . rope_j)) latent_j
//   plan: what latent_plan made of the same table, lengths, starts, heads and `piece`; absent: as if it were made
//            here
// Cache rows that nobody sees may hold NaN.
struct LatentAttention {
  Tensor q_latent, q_rope, cache, page_table, kv_lens, q_starts, o_latent;
  int64_t heads = 0, latent = 0, rope = 0;  // H, C, P
  int64_t q_rope_stride = 0;
  int64_t page_size = 0;
  int64_t sequences = 0;
  double scale = 0;
  Tensor plan = {};
  int64_t piece = 0;
};

// What a step adds to a layer's cache, in one pass:
//   row slots[t] of cache = (rmsnorm(x[t, :C]) gain | rotate(x[t, C:])), slots below 0 left out
// Both halves are rounded to act and then, for a cache in e4m3, the latent to codes and the key to bf16. On the
// way the rotary slices of the queries are turned in place.
//   x [T, C + P] act | gain [1, C] stat | positions, cos, sin: as in ops/rope.h, of width P | slots i32 [1, T]
//   q [T, *] act, optional: columns [h q_stride + q_offset, + P) of heads h < heads
// Slots are unique. The gain, positions, slots and tables are read ahead of earlier operations of the stream: none
// that is under way may write them.
struct LatentAppend {
  Tensor x, gain, positions, cos, sin, slots, cache;
  int64_t latent = 0, rope = 0;  // C, P
  double eps = 0;
  Tensor q = {};
  int64_t heads = 0, q_stride = 0, q_offset = 0;
};

// y[t] = row rows[t] of a cache in e4m3, as numbers: y [T, C + P] act. A negative index gives a row of zeros.
struct LatentGather {
  Tensor cache, rows, y;
  int64_t latent = 0, rope = 0;
};

}  // namespace cachalot
