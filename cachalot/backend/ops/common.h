// What every contract shares.
//
// Dtypes. "act" is the activation format of the recipe: f32, bf16, or f64 (ref only, for finite differences).
// "stat" is what is kept in full: f32, or f64 when act is f64. Weights may be f64, f32, bf16, or e4m3 with
// scales (Tensor::scale). Arithmetic is at least f32 (ref: double) with one rounding, at the store, unless a
// contract says otherwise. Index tensors are i32 [1, n].
//
// Memory. Outputs are overwritten and may hold anything before, NaN included, unless `accumulate` says that
// the result is added. Inputs and outputs do not overlap unless the contract allows it. Rows may be longer
// than cols (ld > cols) in every tensor of act or weight format.
//
// Determinism. The same inputs give the same bits for any number of threads.
#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace cachalot {

// Gradients of weights: the first micro-batch of a step overwrites, later ones add.
enum class Accumulate : bool { overwrite = false, add = true };

}  // namespace cachalot
