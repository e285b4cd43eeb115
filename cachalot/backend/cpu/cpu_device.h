// The CPU as a device: host memory, one thread pool, streams that are done when a call returns.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace cachalot {

// threads 0: all that the machine and the container allow. The environment variable CACHALOT_ISA (sse2, avx2 or
// avx512; anything else, or more than this machine has, throws Error) forces a lower instruction set than the best.
std::unique_ptr<Device> open_cpu_device(int threads);

}  // namespace cachalot
