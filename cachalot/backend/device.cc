#include <fmt/format.h>

#include "backend/backend.h"
#include "backend/cpu/cpu_device.h"
#include "backend/cuda/cuda.h"
#include "backend/fake/fake_device.h"
#include "backend/fake/plan_device.h"
#include "backend/ref/ref_backend.h"
#include "base/error.h"
#include "base/text.h"

namespace cachalot {

std::unique_ptr<Device> open_device(const std::string& name, const DeviceOptions& options) {
  if (name == "cpu") return open_cpu_device(options.threads);
  if (name == "ref") return open_ref_device();
  if (name == "fake") return open_fake_device({.threads = options.threads, .seed = options.fake_seed});
  if (name == "plan") return open_plan_device();
  if (name == "cuda" || name.starts_with("cuda:")) {
    const CudaStatus status = probe_cuda();
    throw Error(fmt::format("device \"{}\": models run on cpu in this version; {}", name, status.message))
        .hint(status.hint.empty() ? "use the device cpu" : "use the device cpu; for CUDA: " + status.hint);
  }
  const std::string close = nearest(name, {"cpu", "ref", "fake", "plan", "cuda"});
  throw Error(fmt::format("there is no device \"{}\"", name))
      .hint(
          fmt::format("{}known: cpu, ref, fake, plan", close.empty() ? "" : "did you mean " + close + "? "));
}

}  // namespace cachalot
