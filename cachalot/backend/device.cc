#include <fmt/format.h>

#include "backend/backend.h"
#include "backend/cpu/cpu_device.h"
#include "backend/cuda/cuda_device.h"
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
  if (name == "cuda") return open_cuda_device(0);
  if (name.starts_with("cuda:")) {
    const std::string digits = name.substr(5);
    if (digits.empty() || digits.size() > 3 || digits.find_first_not_of("0123456789") != std::string::npos)
      throw Error(fmt::format("device \"{}\": \"{}\" is not the number of a card", name, digits))
          .hint("write cuda, or cuda:0, cuda:1, ...");
    return open_cuda_device(std::stoi(digits));
  }
  // "gpu" is nearest to "cpu", and is what many call a card; fake and plan are for tests, not for people.
  const std::string close = name.starts_with("gpu") || name.starts_with("GPU")
                                ? "cuda" + name.substr(3)
                                : nearest(name, {"cpu", "ref", "cuda"});
  throw Error(fmt::format("there is no device \"{}\"", name))
      .hint(fmt::format("{}known: cpu, cuda[:N], ref", close.empty() ? "" : "did you mean " + close + "? "));
}

}  // namespace cachalot
