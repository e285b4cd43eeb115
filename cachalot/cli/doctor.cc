// cachalot doctor: what this machine offers, what is missing, what that costs and how to get it.
#include <fmt/format.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "backend/cpu/kernels.h"
#include "backend/cuda/cuda.h"
#include "base/cpu.h"
#include "base/error.h"
#include "base/json.h"
#include "base/text.h"
#include "base/thread_pool.h"
#include "cli/commands.h"

namespace cachalot::cli {

namespace {

namespace fs = std::filesystem;

struct Finding {
  std::string area{};  // "cpu"
  bool ok = true;
  std::string found{};  // one line for people; more lines are indented under it
  Json facts{};         // the same for scripts
  std::string cost{};   // what is lost without it; "" when nothing is missing
  std::string remedy{};
};

Finding cpu_finding() {
  const CpuFeatures features = cpu_features();
  const CacheSizes caches = cache_sizes();
  const std::string model = cpu_model_name();
  const int cores = available_cpus(), online = int(::sysconf(_SC_NPROCESSORS_ONLN));
  std::string have;
  Json flags = Json::object();
  for (const auto& [name, on] : features.list()) {
    flags[name] = on;
    if (on) have += (have.empty() ? "" : " ") + name;
  }
  Finding f{.area = "cpu"};
  f.found = fmt::format("{}, {} of {} cores available to this process\n{}", model, cores, online,
                        have.empty() ? "no instruction set that we know" : have);
  if (caches.l2)
    f.found += fmt::format("\ncaches: L1d {}, L2 {}, L3 {}", human_bytes(double(caches.l1d)),
                           human_bytes(double(caches.l2)), human_bytes(double(caches.l3)));
  // A process that is forced to a set of kernels says so here; one that is forced to a missing one stops.
  const std::string kernels = cpu::choose_kernels().isa;
  f.found += fmt::format("\nproducts run on {}{}", kernels,
                         std::getenv("CACHALOT_ISA") ? ", as CACHALOT_ISA says" : "");
  Json choices = Json::object();
  for (int i = 0; i < cpu::kKernelChoices; ++i) {
    const cpu::KernelChoice& c = cpu::kernel_choices()[i];
    choices[c.isa] = {{"runs", c.runs}, {"why", c.why}};
    f.found += fmt::format("\n  {:<12} {}", c.isa, c.why);
  }
  f.facts = {{"model", model},        {"cores_available", cores}, {"cores_online", online},
             {"features", flags},     {"l1d_bytes", caches.l1d},  {"l2_bytes", caches.l2},
             {"l3_bytes", caches.l3}, {"kernels", kernels},       {"kernel_choices", choices}};
  if (cores < online) {
    f.cost = "an affinity mask or a container's CPU limit keeps the other cores away";
    f.remedy = "raise the limit (taskset, docker --cpus, the job's request) if the machine is yours";
  }
  return f;
}

Finding memory_finding() {
  const MemoryInfo memory = memory_info();
  Finding f{.area = "memory"};
  f.found =
      fmt::format("{} free of {}", human_bytes(double(memory.available)), human_bytes(double(memory.total)));
  if (memory.limit >= 0 && memory.limit < memory.total)
    f.found += fmt::format(", limited to {} by the container ({} left)", human_bytes(double(memory.limit)),
                           human_bytes(double(memory.limit_free)));
  f.facts = {{"total_bytes", memory.total},
             {"available_bytes", memory.available},
             {"limit_bytes", memory.limit >= 0 ? Json(memory.limit) : Json(nullptr)},
             {"usable_bytes", memory.usable()}};
  if (memory.usable() < int64_t(2) << 30) {
    f.ok = false;
    f.cost = "below 2 GiB the build may run out of memory, and so may training";
    f.remedy = "close other programs, or build with fewer jobs: cmake --build --preset cpu -j1";
  }
  return f;
}

Finding disk_finding() {
  Finding f{.area = "disk"};
  const std::string folder = fs::current_path().string();
  struct statvfs status{};
  if (::statvfs(folder.c_str(), &status) != 0) {
    f.ok = false;
    f.found = fmt::format("cannot ask about {}: {}", folder, std::strerror(errno));
    f.cost = "unknown whether checkpoints fit";
    f.facts = {{"folder", folder}, {"available_bytes", nullptr}};
    return f;
  }
  const int64_t available = int64_t(status.f_bavail) * int64_t(status.f_frsize);
  f.found = fmt::format("{} free in {}", human_bytes(double(available)), folder);
  f.facts = {{"folder", folder}, {"available_bytes", available}};
  if (available < int64_t(1) << 30) {
    f.ok = false;
    f.cost =
        "a build takes about 1 GiB, and checkpoints need room; a full disk keeps the previous checkpoint";
    f.remedy = "free some space, or run in another folder";
  }
  return f;
}

Finding cuda_finding(bool test, bool& failed) {
  const CudaStatus status = probe_cuda();
  Finding f{.area = "gpu", .ok = !status.devices.empty(), .found = status.message};
  Json devices = Json::array();
  for (size_t d = 0; d < status.devices.size(); ++d) {
    const CudaDeviceInfo& info = status.devices[d];
    f.found +=
        fmt::format("\n{}: {}, compute capability {}.{}, {}, {} multiprocessors", d, info.name, info.major,
                    info.minor, human_bytes(double(info.memory_bytes)), info.multiprocessors);
    if (info.memory_bytes_per_second > 0)
      f.found += fmt::format(", {:.2f} TB/s nominal", info.memory_bytes_per_second / 1e12);
    if (!info.usable()) f.found += " (too old: needs 8.0)";
    CudaDeviceInfo chosen = info;
    chosen.major = cuda_generation(info);
    if (chosen.major != info.major) f.found += "\n   portable kernels, as CACHALOT_CUDA_KERNELS says";
    devices.push_back({{"name", info.name},
                       {"compute_capability", fmt::format("{}.{}", info.major, info.minor)},
                       {"memory_bytes", info.memory_bytes},
                       {"multiprocessors", info.multiprocessors},
                       {"l2_bytes", info.l2_bytes},
                       {"nominal_bytes_per_second", info.memory_bytes_per_second}});
    Json fallbacks = Json::array();
    if (info.usable())
      for (const CudaFallback& fallback : cuda_fallbacks(chosen)) {
        f.found += fmt::format("\n   without {}: {}; {}", fallback.what, fallback.instead, fallback.cost);
        fallbacks.push_back(
            {{"what", fallback.what}, {"instead", fallback.instead}, {"cost", fallback.cost}});
      }
    devices.back()["fallbacks"] = fallbacks;
    if (!test) continue;
    try {
      const CudaCopyTest copy = test_cuda_copy(int(d));
      f.found += fmt::format("\n   copy test: {}, {:.2f} TB/s read and written",
                             copy.equal ? "every byte right" : "WRONG BYTES", copy.bytes_per_second / 1e12);
      devices.back()["copy_equal"] = copy.equal;
      devices.back()["copy_bytes_per_second"] = copy.bytes_per_second;
      if (!copy.equal) f.ok = false, failed = true;
    } catch (const Error& e) {
      f.found += fmt::format("\n   copy test: {}", e.what());
      devices.back()["copy_error"] = e.what();
      f.ok = false, failed = true;
    }
  }
  f.facts = {
      {"built", status.built}, {"driver", status.driver}, {"message", status.message}, {"devices", devices}};
  if (status.built) {
    const CudaLibrary blas = probe_cuda_blas();
    f.facts["cublaslt"] = blas.problem.empty() ? Json(blas.version) : Json(nullptr);
    f.found += blas.problem.empty() ? "\ncuBLASLt " + blas.version : "\nno cuBLASLt: " + blas.problem;
    if (!blas.problem.empty() && !status.devices.empty()) {
      f.ok = false;
      f.cost = "no program runs on the GPU without cuBLASLt, which computes its products";
      f.remedy = blas.hint;
    }
  }
  if (status.devices.empty()) {
    f.cost = "training and generation run on the CPU, which is far slower";
    f.remedy = status.hint;
    if (test) failed = true;  // asked to test what is not there
  } else if (failed) {
    f.cost = "the card or its driver cannot be relied on";
    f.remedy = "nvidia-smi -q shows its errors";
  }
  return f;
}

std::vector<std::string> split_path(const char* text) {
  std::vector<std::string> folders;
  std::istringstream in(text ? text : "");
  for (std::string folder; std::getline(in, folder, ':');)
    if (!folder.empty()) folders.push_back(folder);
  return folders;
}

Finding mpi_finding() {
  std::error_code ignored;
  std::string mpirun, libmpi;
  for (const std::string& folder : split_path(std::getenv("PATH")))
    if (mpirun.empty() && ::access((folder + "/mpirun").c_str(), X_OK) == 0) mpirun = folder + "/mpirun";
  std::vector<std::string> folders = split_path(std::getenv("LD_LIBRARY_PATH"));
  if (!mpirun.empty()) folders.push_back((fs::path(mpirun).parent_path().parent_path() / "lib").string());
  for (const char* usual : {"/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64",
                            "/usr/lib", "/usr/local/lib"})
    folders.push_back(usual);
  for (const std::string& folder : folders)
    for (const char* name : {"/libmpi.so.40", "/libmpi.so.12", "/libmpi.so"})
      if (libmpi.empty() && fs::exists(folder + name, ignored)) libmpi = folder + name;

  Finding f{.area = "mpi", .ok = !mpirun.empty() && !libmpi.empty()};
  f.found = fmt::format("mpirun: {}; library: {}", mpirun.empty() ? "not in PATH" : mpirun,
                        libmpi.empty() ? "not found" : libmpi);
  f.facts = {{"mpirun", mpirun.empty() ? Json(nullptr) : Json(mpirun)},
             {"libmpi", libmpi.empty() ? Json(nullptr) : Json(libmpi)}};
  if (!f.ok) {
    f.cost = "nothing today: this version runs in one process; several machines will need it";
    f.remedy = "apt-get install openmpi-bin libopenmpi-dev";
  }
  return f;
}

struct DoctorOptions {
  bool json = false, gpu_test = false;
};

void doctor(const DoctorOptions& options) {
  bool failed = false;
  const std::vector<Finding> findings = {cpu_finding(), memory_finding(), disk_finding(),
                                         cuda_finding(options.gpu_test, failed), mpi_finding()};
  if (options.json) {
    Json out = Json::object();
    for (const Finding& f : findings) {
      out[f.area] = f.facts;
      out[f.area]["ok"] = f.ok;
      if (!f.cost.empty()) out[f.area]["cost"] = f.cost;
      if (!f.remedy.empty()) out[f.area]["remedy"] = f.remedy;
    }
    std::cout << out.dump(2) << '\n';
  } else {
    for (const Finding& f : findings) {
      std::istringstream lines(f.found);
      std::string line, head = fmt::format("{} {:<7} ", f.ok ? "ok" : "--", f.area);
      const std::string indent(head.size(), ' ');
      for (; std::getline(lines, line); head = indent) std::cout << head << line << '\n';
      if (!f.cost.empty()) std::cout << indent << "costs: " << f.cost << '\n';
      if (!f.remedy.empty()) std::cout << indent << "to get it: " << f.remedy << '\n';
    }
  }
  std::cout << std::flush;
  if (failed) throw Error("the GPU test failed").hint("see the lines on gpu above");
}

}  // namespace

void add_doctor(CLI::App& app) {
  auto o = std::make_shared<DoctorOptions>();
  auto* c = app.add_subcommand("doctor", "what this machine offers, what is missing and how to get it");
  c->add_flag("--json", o->json, "machine-readable output");
  c->add_flag("--gpu-test", o->gpu_test, "also run a copy kernel on every GPU: checked and timed");
  c->callback([o] { doctor(*o); });
}

}  // namespace cachalot::cli
