// What this processor can do at most: the denominators of speeds.
#pragma once

#include <cstdint>

#include "backend/cpu/kernels.h"

namespace cachalot::cpu {

// FLOP/s of multiply-adds in registers on `threads` threads, the best of about `seconds`.
double measure_peak_flops(const Arithmetic& arithmetic, int threads, double seconds);

// Bytes/s of reading `bytes` of memory again and again, each thread its own contiguous part, the best of
// about `seconds`. bytes: what the work to be judged reads, so that both find it in the same cache.
double measure_read_bandwidth(const Kernels& kernels, int64_t bytes, int threads, double seconds);

}  // namespace cachalot::cpu
