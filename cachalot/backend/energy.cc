#include "backend/energy.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <system_error>

namespace cachalot {

namespace fs = std::filesystem;

namespace {

bool read_number(const fs::path& path, double& value) {
  std::ifstream file(path);
  return bool(file >> value);
}

}  // namespace

struct EnergyMeter::Source {
  bool gpu = false;
  std::function<bool(double&)> read;  // microjoules
  double wraps_at = 0;                // 0: never
  double last = 0, sum = 0;
};

// The few functions of libnvidia-ml that are asked for (NVML API reference; unchanged since driver 418).
struct EnergyMeter::Nvml {
  void* library = nullptr;
  int (*shutdown)() = nullptr;
  void* device = nullptr;
  int (*energy)(void*, unsigned long long*) = nullptr;  // millijoules since the driver was loaded

  ~Nvml() {
    if (shutdown) shutdown();
    if (library) dlclose(library);
  }
  // "" or what is missing. The card that CUDA calls `index` is the index-th of CUDA_VISIBLE_DEVICES.
  std::string open(const std::string& index) {
    library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) return "libnvidia-ml.so.1 was not found";
    const auto find = [&]<class F>(F& f, const char* name) {
      f = reinterpret_cast<F>(dlsym(library, name));
      return f != nullptr;
    };
    int (*init)() = nullptr;
    int (*by_index)(unsigned, void**) = nullptr;
    int (*by_uuid)(const char*, void**) = nullptr;
    int (*stop)() = nullptr;
    if (!find(init, "nvmlInit_v2") || !find(by_index, "nvmlDeviceGetHandleByIndex_v2") ||
        !find(by_uuid, "nvmlDeviceGetHandleByUUID") || !find(stop, "nvmlShutdown") ||
        !find(energy, "nvmlDeviceGetTotalEnergyConsumption"))
      return "libnvidia-ml.so.1 is too old";
    if (init() != 0) return "NVIDIA's management library does not start";
    shutdown = stop;
    std::string name = index;
    if (const char* visible = std::getenv("CUDA_VISIBLE_DEVICES")) {
      std::vector<std::string> list{""};
      for (const char c : std::string(visible)) {
        if (c == ',') list.emplace_back();
        else list.back() += c;
      }
      const size_t at = size_t(std::atol(index.c_str()));
      if (at < list.size() && !list[at].empty()) name = list[at];
    }
    const bool number = name.find_first_not_of("0123456789") == std::string::npos;
    const int failed =
        number ? by_index(unsigned(std::atol(name.c_str())), &device) : by_uuid(name.c_str(), &device);
    unsigned long long millijoules = 0;
    if (failed || energy(device, &millijoules) != 0) return "the GPU does not tell its energy";
    return "";
  }
};

EnergyMeter::EnergyMeter(const std::string& device, const std::string& powercap) {
  // intel-rapl:N are packages (AMD's too); intel-rapl:N:M are parts of them, counted in their package already.
  std::error_code failed;
  bool refused = false;
  for (fs::directory_iterator i(powercap, failed), end; !failed && i != end; i.increment(failed)) {
    const std::string name = i->path().filename().string();
    if (!name.starts_with("intel-rapl:") || std::count(name.begin(), name.end(), ':') != 1) continue;
    Source s;
    const fs::path counter = i->path() / "energy_uj";
    s.read = [counter](double& value) { return read_number(counter, value); };
    read_number(i->path() / "max_energy_range_uj", s.wraps_at);
    if (s.read(s.last)) sources_.push_back(std::move(s));
    else refused = true;
  }
  if (sources_.empty())
    missing_ = refused ? "the processor's energy counters can be read by root only"
                       : "this machine shows no energy counters of its processor";
  if (!device.starts_with("cuda")) return;
  nvml_ = std::make_unique<Nvml>();
  const std::string problem = nvml_->open(device.size() > 5 ? device.substr(5) : "0");
  if (!problem.empty()) {
    missing_ += (missing_.empty() ? "" : "; ") + problem;
    nvml_.reset();
    return;
  }
  Source s;
  s.gpu = true;
  s.read = [n = nvml_.get()](double& value) {
    unsigned long long millijoules = 0;
    if (n->energy(n->device, &millijoules) != 0) return false;
    value = 1e3 * double(millijoules);
    return true;
  };
  if (s.read(s.last)) sources_.push_back(std::move(s));
}

EnergyMeter::~EnergyMeter() = default;
EnergyMeter::EnergyMeter(EnergyMeter&&) noexcept = default;

double EnergyMeter::joules() {
  double microjoules = 0;
  for (Source& s : sources_) {
    double now = 0;
    if (s.read(now)) {
      double used = now - s.last;
      if (used < 0) used = s.wraps_at > 0 ? used + s.wraps_at : 0;
      s.sum += std::max(0.0, used);
      s.last = now;
    }
    microjoules += s.sum;
  }
  return 1e-6 * microjoules;
}

std::string EnergyMeter::describe() const {
  const auto packages =
      std::count_if(sources_.begin(), sources_.end(), [](const Source& s) { return !s.gpu; });
  std::string text;
  if (packages) text = packages == 1 ? "the processor" : fmt::format("{} processors", packages);
  if (size_t(packages) < sources_.size()) text += text.empty() ? "the GPU" : " and the GPU";
  if (missing_.empty()) return text;
  return text.empty() ? missing_ : text + "; " + missing_;
}

}  // namespace cachalot
