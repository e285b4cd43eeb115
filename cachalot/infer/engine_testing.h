// What the tests of the engine run on.
#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/cuda.h"

namespace cachalot::testing {

// The CPU, and a GPU where there is one.
inline std::vector<std::unique_ptr<Device>> cpu_and_gpu() {
  std::vector<std::unique_ptr<Device>> list;
  list.push_back(open_device("cpu", {.threads = 2}));
  const CudaStatus status = probe_cuda();
  if (!status.devices.empty() && status.devices[0].usable()) list.push_back(open_device("cuda"));
  return list;
}

}  // namespace cachalot::testing
