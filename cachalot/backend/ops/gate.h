// DeepSeekMoE's router with bias-based balancing (V3 report section 2.1.2; inference/model.py class Gate).
//   logits [T, E] stat | bias f32 [1, E] | scores [T, E] stat, kept for the backward
//   indices i32 [T, K]: chosen experts, ascending | weights [T, K] stat |
//     counts i32 [1, E], optional: tokens an expert got
//
// s = sigmoid(logits); selection uses b = s + bias: the score of a group (E / groups neighbours) is the sum
// of its two largest b (its only b when groups hold one expert); the best `topk_groups` groups stay, all
// other experts are masked with -inf; the best K of the rest are chosen. Ties go to the lower index, among
// groups and experts. weights: the unbiased s of the chosen, divided by (their sum + 1e-20) when `normalise`,
// times `scale`. With `replay`, indices are an input (expert choices of another run, ascending) and only the
// weights follow. A NaN score compares below every number; the indices stay in range whatever the logits are.
// Everything after the sigmoid starts from s as stored, and b and the group scores are rounded to the format
// of scores: what the stored numbers say is what was chosen, and saturated scores tie on every backend.
#pragma once

#include "backend/ops/common.h"

namespace cachalot {

struct GateForward {
  Tensor logits, bias, scores, indices, weights, counts = {};
  int64_t groups = 1, topk_groups = 1;
  bool normalise = true;
  double scale = 1;
  bool replay = false;
};

// Sequence-wise balance loss (V3 report equations 17 to 20), one number a sequence, without its factor alpha:
//   loss[s] = sum_i f_i P_i;   f_i = E / (K T_s) #{t : i in top-K of the unbiased s_t};
//     P_i = mean_t s_ti / sum_j s_tj
//   (top-K here ignores bias and groups, as in the report; ties to the lower index)
//   scores [T, E], starts i32 [1, S+1], fractions [S, E] stat: the f_i, kept for the backward;
//     loss [1, S] stat
// An empty sequence has loss 0.
struct BalanceLoss {
  Tensor scores, starts, fractions, loss;
  int64_t sequences = 0, top_k = 0;
};

// dlogits [T, E] stat from dweights [T, K] stat; overwrites. The selection has no gradient, nor has the bias.
// With balance_factor != 0, adds balance_factor * d loss[s] / d logits for the sequence s that row t is in.
struct GateBackward {
  Tensor dweights, scores, indices, dlogits;
  bool normalise = true;
  double scale = 1;
  double balance_factor = 0;  // alpha / number of sequences in the global batch
  Tensor starts, fractions;   // as in BalanceLoss; unused when balance_factor is 0
  int64_t sequences = 0;
};

// How many groups the tokens' experts lie in, over all tokens: where a group is a node, the copies of a token
// that the all-to-all sends (V3 report section 2.1.2, node-limited routing, and 3.2.1).
//   indices i32 [T, K]: as gate_forward leaves them, ascending | visits i32 [1, 1]
//   visits (=, +=) sum_t #{i / (E / groups) : i in indices_t},   between T and T min(K, topk_groups)
struct CountGroups {
  Tensor indices, visits;
  int64_t experts = 0, groups = 1;
  Accumulate accumulate = Accumulate::overwrite;
};

// bias[e] += gamma sign(mean(counts) - counts[e]); exactly equal to the mean: unchanged (V3 report section
// 2.1.2).
//   counts i32 [1, E]: of the whole global batch; bias f32 [1, E]
struct UpdateGateBias {
  Tensor counts, bias;
  double gamma = 0;
};

}  // namespace cachalot
