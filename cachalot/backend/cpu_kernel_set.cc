#include "backend/cpu_kernel_set.h"

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_device.h"

namespace cachalot {

std::string cpu_kernel_set(Device& device) {
  const cpu::Context* cpu = cpu_context(device);
  return cpu ? cpu->kernels.isa : "";
}

}  // namespace cachalot
