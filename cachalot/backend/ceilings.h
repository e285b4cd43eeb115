// What a device can do at most: the denominators of `cachalot bench`.
#pragma once

#include <cstdint>

#include "backend/backend.h"

namespace cachalot {

struct Ceilings {
  double f32_flops = 0, bf16_flops = 0;  // FLOP/s of products: a loop in registers (cpu), 8192^3 (cuda)
  double read_bytes = 0, copy_bytes = 0;  // bytes/s through `bytes` of memory; a copied byte counts twice
  int64_t bytes = 0;
};

// Takes about `seconds` for each of the four numbers and 2 `bytes` of memory.
Ceilings measure_ceilings(Device& device, int64_t bytes, double seconds);

// Seconds of one C [m, n] = A [m, k] B [n, k]^T with random numbers, `dtype` in, f32 sums, `dtype` out; the
// fastest of what fits into `budget` seconds, at least five.
double time_gemm(Device& device, DType dtype, int64_t m, int64_t n, int64_t k, double budget);

}  // namespace cachalot
