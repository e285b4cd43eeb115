// Draws one token a row, as a pure function of (logits, settings, seed, position): the same request gives the
// same text whatever else is in the batch, and speculative decoding accepts exactly what plain decoding would
// draw.
//   logits [T, V] stat | positions i32 [1, T] of the token being drawn | tokens i32 [1, T]
// temperature 0: the largest logit, ties to the lower id. Otherwise p = softmax(logits / temperature); top_k
// > 0 keeps the k largest (ties to the lower id) and renormalises; then top_p < 1 keeps the smallest set of
// largest p whose sum reaches top_p (at least one) and renormalises; sums are in double, in descending order
// of p; u = random_uniform(seed, kSampleStream, position) picks from what is left by its cumulative sum, in
// the order of descending probability, ties to the lower id. NaN logits count as -inf; if nothing is left,
// token 0.
#pragma once

#include "backend/ops/common.h"

namespace cachalot {

inline constexpr uint64_t kSampleStream = 0x53414D50;  // "SAMP"

struct Sample {
  Tensor logits, positions, tokens;
  double temperature = 0, top_p = 1;
  int64_t top_k = 0;
  uint64_t seed = 0;
};

}  // namespace cachalot
