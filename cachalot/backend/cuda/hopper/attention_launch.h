// Host side of Hopper's attention kernels.
#pragma once

#include <algorithm>

#include "backend/cuda/hopper/attention_hopper.h"
#include "backend/cuda/hopper/attention_tiles.cuh"
#include "backend/cuda/hopper/launched.h"
#include "backend/cuda/hopper/tensor_map.h"

namespace cachalot::cuda::hopper {

inline bool takes(const AttentionShape& shape) {
  return shape.nope == kNope && shape.rope == kRope && shape.value == kValue;
}
// What the copy engine reads and 16-byte stores write.
inline bool takes(const Tensor& t) {
  return t.dtype == DType::bf16 && t.ld % 8 == 0 && reinterpret_cast<uintptr_t>(t.data) % 16 == 0;
}

// Boxes of `rows` rows and 64 or 32 columns, swizzled over the whole row.
inline TensorMap boxes_of(const Tensor& t, int64_t rows, int64_t cols = kBox) {
  return tensor_map({.data = t.data,
                     .dtype = DType::bf16,
                     .dimensions = 2,
                     .size = {t.cols, t.rows},
                     .stride = {0, t.ld * 2},
                     .box = {cols, rows},
                     .swizzle = cols == 64 ? Swizzle::b128 : Swizzle::b64});
}

inline Sequences sequences_of(const AttentionCall& call, const AttentionShape& shape, int64_t q_rows,
                              int64_t k_rows, FaultOf op) {
  return {.q_starts = static_cast<const int32_t*>(shape.q_starts.data),
          .k_starts = static_cast<const int32_t*>(shape.k_starts.data),
          .count = int32_t(shape.sequences),
          .q_rows = int32_t(q_rows),
          .k_rows = int32_t(k_rows),
          .faults = call.faults,
          .op = op};
}

}  // namespace cachalot::cuda::hopper
