// loss[t] = log sum_v exp(logits[t, v]) - logits[t, targets[t]], natural logarithm; 0 where targets[t] < 0.
// With `gradient`, logits are replaced by scale (softmax(logits) - onehot(target)), zero rows where target < 0;
// or that goes to `dlogits`, rounded once, and what the logits then hold is nobody's.
//   logits [T, V] stat, targets i32 [1, T], loss stat [1, T], dlogits [T, V] f32, bf16 or f64
// The head calls this for a chunk of rows at a time, so that [all tokens, V] never exists (nn/head.h).
#pragma once

#include "backend/ops/common.h"

namespace cachalot {

struct CrossEntropy {
  Tensor logits, targets, loss;
  bool gradient = false;
  double scale = 1;
  Tensor dlogits = {};  // optional, with `gradient`
};

}  // namespace cachalot
