// The CPU as a device: host memory, one thread pool, streams that are done when a call returns.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace cachalot {

// Waking the threads and waiting for them costs some 10 us: less work than this stays with the caller.
inline constexpr double kWorthWaking = 30e3;  // nanoseconds

// threads 0: all that the machine and the container allow. The environment variable CACHALOT_ISA (sse2, avx2
// or avx512) forces a lower instruction set than the best; an unknown one, or one that this machine lacks,
// throws Error.
std::unique_ptr<Device> open_cpu_device(int threads, double worth_waking = kWorthWaking);

}  // namespace cachalot
