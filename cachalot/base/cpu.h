// What this machine's processor and memory offer: for run-time dispatch, memory plans and `cachalot doctor`.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace cachalot {

// Instruction sets that a program may use here: the processor has them (CPUID) and the operating system keeps
// their registers (XCR0; for AMX also the kernel's permission list).
struct CpuFeatures {
  bool sse2 = false, sse4_2 = false, avx = false, avx2 = false, fma = false, f16c = false;
  bool avx512f = false, avx512bw = false, avx512dq = false, avx512vl = false;
  bool avx512_vbmi = false, avx512_vnni = false, avx512_bf16 = false;
  bool amx_tile = false, amx_bf16 = false, amx_int8 = false;

  // Name and value of each, oldest first.
  std::vector<std::pair<std::string, bool>> list() const;
};

// The raw words that say so. Intel 64 and IA-32 Architectures SDM, volume 2A, CPUID; volume 1, 13.3 (XCR0).
struct CpuWords {
  uint32_t leaf1_ecx = 0, leaf1_edx = 0;
  uint32_t leaf7_ebx = 0, leaf7_ecx = 0, leaf7_edx = 0;
  uint32_t leaf7_1_eax = 0;      // subleaf 1
  uint64_t xcr0 = 0;             // 0 when the system does not use XSAVE
  uint64_t kernel_features = 0;  // register sets that the kernel lets a process ask for (ARCH_GET_XCOMP_SUPP)
};
CpuFeatures decode_features(const CpuWords& words);
CpuFeatures cpu_features();  // of this machine; all false where it is not an x86-64

// The tile registers of AMX are 8 KiB of every thread's state: Linux keeps them only for a process that has
// asked (arch_prctl(2), ARCH_REQ_XCOMP_PERM). For all threads, for good. False: refused.
bool request_tiles();

std::string cpu_vendor();      // "AuthenticAMD", "GenuineIntel", ...; "" where it is not an x86-64
std::string cpu_model_name();  // "AMD EPYC ..."; "unknown processor" when /proc/cpuinfo does not say

struct CacheSizes {  // bytes, as the first core sees them; 0 = unknown
  int64_t l1d = 0, l2 = 0, l3 = 0;
};
CacheSizes cache_sizes(const std::string& root = "");

struct MemoryInfo {         // bytes
  int64_t total = 0;        // of the machine
  int64_t available = 0;    // what the kernel could give without swapping
  int64_t limit = -1;       // smallest limit of our cgroup and its ancestors (v2 or v1); -1: none
  int64_t limit_free = -1;  // what is left below that limit
  int64_t usable() const { return limit_free >= 0 && limit_free < available ? limit_free : available; }
};
// `root` is put before every path that is read: tests make a /proc and a /sys of their own.
MemoryInfo memory_info(const std::string& root = "");

}  // namespace cachalot
