// Which of the CPU's kernels a device runs: what decides how its numbers round.
#pragma once

#include <string>

#include "backend/backend.h"

namespace cachalot {

std::string cpu_kernel_set(Device& device);  // "avx512_bf16"; "" for a device that is no CPU

}  // namespace cachalot
