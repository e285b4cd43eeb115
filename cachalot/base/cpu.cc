#include "base/cpu.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string_view>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace cachalot {

namespace {

bool bit(uint64_t word, int n) { return word >> n & 1; }

// The first number of a file, or `otherwise`; "max" and other words count as missing.
int64_t number_in(const std::string& path, int64_t otherwise) {
  std::ifstream in(path);
  int64_t n;
  return in >> n ? n : otherwise;
}

// The number after `key` in a file of lines "key number": /proc/meminfo, memory.stat.
int64_t number_after(const std::string& path, std::string_view key, int64_t otherwise) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with(key)) continue;
    std::istringstream rest(line.substr(key.size()));
    int64_t n;
    if (rest >> n) return n;
  }
  return otherwise;
}

}  // namespace

std::vector<std::pair<std::string, bool>> CpuFeatures::list() const {
  return {{"sse2", sse2},
          {"sse4.2", sse4_2},
          {"avx", avx},
          {"f16c", f16c},
          {"fma", fma},
          {"avx2", avx2},
          {"avx512f", avx512f},
          {"avx512bw", avx512bw},
          {"avx512dq", avx512dq},
          {"avx512vl", avx512vl},
          {"avx512vbmi", avx512_vbmi},
          {"avx512_vnni", avx512_vnni},
          {"avx512_bf16", avx512_bf16},
          {"amx_tile", amx_tile},
          {"amx_int8", amx_int8},
          {"amx_bf16", amx_bf16}};
}

CpuFeatures decode_features(const CpuWords& w) {
  // Registers that the system saves on a context switch: XCR0 bits 1, 2 = xmm, ymm; 5, 6, 7 = mask and zmm;
  // 17, 18 = tile configuration and tiles.
  const bool ymm = (w.xcr0 & 0x6) == 0x6;
  const bool zmm = ymm && (w.xcr0 & 0xE0) == 0xE0;
  const bool tiles = (w.xcr0 & 0x60000) == 0x60000 && bit(w.kernel_features, 18);
  CpuFeatures f;
  f.sse2 = bit(w.leaf1_edx, 26);
  f.sse4_2 = bit(w.leaf1_ecx, 20);
  f.avx = ymm && bit(w.leaf1_ecx, 28);
  f.fma = f.avx && bit(w.leaf1_ecx, 12);
  f.f16c = f.avx && bit(w.leaf1_ecx, 29);
  f.avx2 = f.avx && bit(w.leaf7_ebx, 5);
  f.avx512f = zmm && bit(w.leaf7_ebx, 16);
  f.avx512dq = f.avx512f && bit(w.leaf7_ebx, 17);
  f.avx512bw = f.avx512f && bit(w.leaf7_ebx, 30);
  f.avx512vl = f.avx512f && bit(w.leaf7_ebx, 31);
  f.avx512_vbmi = f.avx512f && bit(w.leaf7_ecx, 1);
  f.avx512_vnni = f.avx512f && bit(w.leaf7_ecx, 11);
  f.avx512_bf16 = f.avx512f && bit(w.leaf7_1_eax, 5);
  f.amx_tile = tiles && bit(w.leaf7_edx, 24);
  f.amx_bf16 = f.amx_tile && bit(w.leaf7_edx, 22);
  f.amx_int8 = f.amx_tile && bit(w.leaf7_edx, 25);
  return f;
}

CpuFeatures cpu_features() {
  CpuWords w;
#if defined(__x86_64__)
  uint32_t a, b, c, d;
  if (__get_cpuid(1, &a, &b, &c, &d)) w.leaf1_ecx = c, w.leaf1_edx = d;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
    w.leaf7_ebx = b, w.leaf7_ecx = c, w.leaf7_edx = d;
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) w.leaf7_1_eax = a;
  }
  if (bit(w.leaf1_ecx, 27)) {  // OSXSAVE: the system has enabled XGETBV
    __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    w.xcr0 = uint64_t(d) << 32 | a;
  }
  constexpr long kArchGetXcompSupp = 0x1021;  // arch_prctl(2), Linux 5.16; older kernels refuse: no AMX
  uint64_t supported = 0;
  if (::syscall(SYS_arch_prctl, kArchGetXcompSupp, &supported) == 0) w.kernel_features = supported;
#endif
  return decode_features(w);
}

bool request_tiles() {
#if defined(__x86_64__)
  constexpr long kArchReqXcompPerm = 0x1023, kTileData = 18;
  return ::syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
#else
  return false;
#endif
}

std::string cpu_vendor() {
#if defined(__x86_64__)
  uint32_t a, b, c, d;
  if (!__get_cpuid(0, &a, &b, &c, &d)) return "";
  const uint32_t words[3] = {b, d, c};
  return std::string(reinterpret_cast<const char*>(words), sizeof words);
#else
  return "";
#endif
}

std::string cpu_model_name() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("model name"))
      if (const size_t colon = line.find(": "); colon != std::string::npos) return line.substr(colon + 2);
  return "unknown processor";
}

CacheSizes cache_sizes(const std::string& root) {
  CacheSizes sizes;
  for (int index = 0; index < 8; ++index) {
    const std::string folder =
        root + "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
    std::string type, unit;
    int64_t size = 0;
    std::ifstream(folder + "type") >> type;
    if (std::ifstream in(folder + "size"); !(in >> size)) continue;
    else in >> unit;  // "32K", "1M"
    size *= unit == "K" ? 1024 : unit == "M" ? 1024 * 1024 : 1;
    const int64_t level = number_in(folder + "level", 0);
    if (type == "Instruction") continue;
    if (level == 1) sizes.l1d = size;
    if (level == 2) sizes.l2 = size;
    if (level == 3) sizes.l3 = size;
  }
  return sizes;
}

MemoryInfo memory_info(const std::string& root) {
  MemoryInfo info;
  info.total = number_after(root + "/proc/meminfo", "MemTotal:", 0) * 1024;
  info.available = number_after(root + "/proc/meminfo", "MemAvailable:", 0) * 1024;

  // /proc/self/cgroup: "0::/group" in version 2, "4:memory:/group" in version 1. In a container the group
  // that it names may not be visible; its ancestors are tried too, up to the root of the mount.
  std::ifstream self(root + "/proc/self/cgroup");
  for (std::string line; std::getline(self, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool v2 = line.starts_with("0::");
    if (!v2 && controllers.find(",memory,") == std::string::npos) continue;
    const std::string mount = root + (v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory");
    std::string group = line.substr(second + 1);
    for (;;) {
      while (!group.empty() && group.back() == '/') group.pop_back();
      const std::string folder = mount + group + "/";
      const int64_t limit = number_in(folder + (v2 ? "memory.max" : "memory.limit_in_bytes"), -1);
      if (limit >= 0 && limit < int64_t(1) << 60) {  // version 1 writes 2^63 - a page for "none"
        const int64_t used = number_in(folder + (v2 ? "memory.current" : "memory.usage_in_bytes"), 0);
        // The page cache is charged too, but given back before anything is refused.
        const int64_t cache =
            number_after(folder + "memory.stat", v2 ? "inactive_file " : "total_inactive_file ", 0);
        const int64_t free = std::max<int64_t>(0, limit - std::max<int64_t>(0, used - cache));
        if (info.limit < 0 || limit < info.limit) info.limit = limit;
        if (info.limit_free < 0 || free < info.limit_free) info.limit_free = free;
      }
      const size_t slash = group.rfind('/');
      if (slash == std::string::npos) break;  // that was the mount's own folder
      group.resize(slash);
    }
  }
  return info;
}

}  // namespace cachalot
