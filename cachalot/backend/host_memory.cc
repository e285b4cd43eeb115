#include "backend/host_memory.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <string>

#include "base/error.h"

namespace cachalot {

namespace {

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();
constexpr int64_t kUnchecked = int64_t{1} << 24;  // below 16 MiB the comparison costs more than it tells

int64_t mem_available() {
  std::ifstream meminfo("/proc/meminfo");
  std::string key;
  int64_t kib = 0;
  while (meminfo >> key >> kib) {
    if (key == "MemAvailable:") return kib << 10;
    meminfo.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return kUnlimited;
}

// A file that holds one number; kUnlimited when it is absent or says "max".
int64_t number_in(const std::string& path) {
  std::ifstream file(path);
  int64_t n = 0;
  return file >> n && n >= 0 ? n : kUnlimited;
}

// A named field of a file of "name number" lines; 0 when absent.
int64_t field_in(const std::string& path, const std::string& name) {
  std::ifstream file(path);
  std::string key;
  int64_t n = 0;
  while (file >> key >> n)
    if (key == name) return n;
  return 0;
}

// limit - use, where file cache that the kernel would drop does not count as use.
int64_t left_under(const std::string& limit, const std::string& use, const std::string& stat,
                   const char* cache) {
  const int64_t most = number_in(limit);
  const int64_t used = number_in(use);
  if (most == kUnlimited || used == kUnlimited) return kUnlimited;
  return std::max<int64_t>(0, most - std::max<int64_t>(0, used - field_in(stat, cache)));
}

// cgroup v2 (every group up to the root limits) and v1. Without /sys/fs/cgroup: unlimited.
int64_t cgroup_left() {
  int64_t left = kUnlimited;
  std::ifstream self("/proc/self/cgroup");
  for (std::string line; std::getline(self, line);) {
    std::string root, path;
    const bool v2 = line.starts_with("0::");
    if (v2) {
      root = "/sys/fs/cgroup";
      path = line.substr(3);
    } else if (const size_t at = line.find(":memory:"); at != std::string::npos) {
      root = "/sys/fs/cgroup/memory";
      path = line.substr(at + 8);
    } else {
      continue;
    }
    for (;; path.resize(path.rfind('/'))) {
      const std::string group = root + (path == "/" ? "" : path) + "/";
      left = std::min(left, v2 ? left_under(group + "memory.max", group + "memory.current",
                                            group + "memory.stat", "inactive_file")
                               : left_under(group + "memory.limit_in_bytes", group + "memory.usage_in_bytes",
                                            group + "memory.stat", "total_inactive_file"));
      if (path.find('/') == std::string::npos) break;
    }
  }
  return left;
}

}  // namespace

int64_t host_free_bytes() { return std::min(mem_available(), cgroup_left()); }

bool fits_host_memory(int64_t bytes) { return bytes <= kUnchecked || bytes <= host_free_bytes(); }

void* take_host_memory(int64_t bytes) {
  CHECK(bytes >= 0);
  if (!fits_host_memory(bytes)) return nullptr;
  void* data = nullptr;
  return posix_memalign(&data, 256, size_t(std::max<int64_t>(bytes, 1))) == 0 ? data : nullptr;
}

void give_host_memory(void* data) noexcept { std::free(data); }

}  // namespace cachalot
