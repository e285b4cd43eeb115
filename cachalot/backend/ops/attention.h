// Causal attention of MLA in its expanded form (V3 report section 2.1.1, equations 5 to 11).
//   q      [T, H (N + P)]   head h: columns h (N+P) ...; first N without position, last P rotated     act
//   kv     [R, H (N + U)]   head h: N numbers of key, then U of value                                  act
//   k_rope [R, P]           one rotated key for all heads                                              act
//   q_starts, k_starts i32 [1, S+1]   rows of sequence s in q, o and in kv, k_rope
//   o      [T, H U] act     lse [T, H] stat: log sum exp of the scaled scores, natural logarithm
// A sequence with n query and m key rows (m >= n): query i sees keys 0 ... m - n + i. Sequences never see
// each other. n = 0 is allowed.
//   s_ij = scale (q_i[:N] . k_j + q_i[N:] . k_rope_j)     p = softmax_j(s)     o_i = sum_j p_ij v_j
// FLOPs 2 H (N + P + U) per visible pair. Never S x S memory.
#pragma once

#include "backend/ops/common.h"

namespace cachalot {

struct AttentionShape {
  int64_t heads = 0, nope = 0, rope = 0, value = 0;  // H, N, P, U
  double scale = 0;
  int64_t sequences = 0;  // S
  Tensor q_starts, k_starts;
};

struct AttentionForward {
  AttentionShape shape;
  Tensor q, kv, k_rope, o, lse;
};

// Given d_o: dq, dkv, dk_rope (summed over heads), act format, overwritten; rows of no sequence get zeros.
//   D_i = d_o_i . o_i;  dp_ij = d_o_i . v_j;  ds_ij = p_ij (dp_ij - D_i);  dv_j = sum_i p_ij d_o_i;
//   dq_i = scale sum_j ds_ij k_j;  dk_j = scale sum_i ds_ij q_i;  p_ij = exp(s_ij - lse_i)
struct AttentionBackward {
  AttentionShape shape;
  Tensor q, kv, k_rope, o, lse, d_o;
  Tensor dq, dkv, dk_rope;
};

}  // namespace cachalot
