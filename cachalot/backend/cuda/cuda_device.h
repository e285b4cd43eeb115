// An NVIDIA GPU as a device: plain C++, the same interface with and without CUDA in the build.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace cachalot {

// Card `index` as the driver counts (CUDA_VISIBLE_DEVICES). Throws Error when there is no driver, no such
// card, one older than Ampere, or when this program was built without CUDA.
std::unique_ptr<Device> open_cuda_device(int index);

// How often the driver was asked for device memory and waited for since the program began: a step does the
// one never and the other once, which tests count. 0 without CUDA in the build.
struct CudaCounters {
  int64_t allocations = 0, waits = 0;
};
CudaCounters cuda_counters();

}  // namespace cachalot
