#include "base/cpu.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

namespace cachalot {
namespace {

namespace fs = std::filesystem;

// Every bit that decode_features() reads.
CpuWords everything() {
  return {.leaf1_ecx = 1u << 12 | 1u << 20 | 1u << 28 | 1u << 29,
          .leaf1_edx = 1u << 26,
          .leaf7_ebx = 1u << 5 | 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31,
          .leaf7_ecx = 1u << 1 | 1u << 11,
          .leaf7_edx = 1u << 22 | 1u << 24 | 1u << 25,
          .leaf7_1_eax = 1u << 5,
          .xcr0 = 0x600E7,
          .kernel_features = 1u << 17 | 1u << 18};
}

TEST(CpuFeatures, AllBitsGiveAllFeaturesAndNoBitsNone) {
  for (const auto& [name, on] : decode_features(everything()).list()) EXPECT_TRUE(on) << name;
  for (const auto& [name, on] : decode_features({}).list()) EXPECT_FALSE(on) << name;
}

TEST(CpuFeatures, ProcessorBitsDoNotCountWithoutTheSystemsRegisters) {
  CpuWords w = everything();
  w.xcr0 = 0x7;  // xmm and ymm only
  const CpuFeatures avx2_only = decode_features(w);
  EXPECT_TRUE(avx2_only.avx2 && avx2_only.fma);
  EXPECT_FALSE(avx2_only.avx512f || avx2_only.avx512_bf16 || avx2_only.amx_bf16);

  w.xcr0 = 0x3;  // xmm only
  const CpuFeatures sse = decode_features(w);
  EXPECT_TRUE(sse.sse2 && sse.sse4_2);
  EXPECT_FALSE(sse.avx || sse.avx2 || sse.fma || sse.f16c);

  w = everything();
  w.kernel_features = 0;  // a kernel that would refuse the tile permission
  EXPECT_FALSE(decode_features(w).amx_tile);
  EXPECT_TRUE(decode_features(w).avx512_bf16);
}

TEST(CpuFeatures, OfThisMachineAgreeWithTheKernelsList) {
  std::string flags;
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("flags")) {
      flags = line.substr(line.find(':') + 1) + " ";
      break;
    }
  if (flags.empty()) return;  // not an x86-64: nothing to agree with
  for (auto [name, on] : cpu_features().list()) {
    if (name.starts_with("amx")) continue;  // the kernel lists them even where it does not permit tiles
    if (name == "sse4.2") name = "sse4_2";
    EXPECT_EQ(flags.find(" " + name + " ") != flags.npos, on) << name;
  }
}

class Machine : public testing::Test {  // a /proc and /sys of our own
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "cachalot-cpu-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    root_ = name;
    put("/proc/meminfo", "MemTotal:       1000 kB\nMemFree:  1 kB\nMemAvailable:    800 kB\n");
  }
  void TearDown() override { fs::remove_all(root_); }
  void put(const std::string& path, const std::string& text) {
    fs::create_directories(fs::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  std::string root_;
};

TEST_F(Machine, MemoryWithoutAnyCgroup) {
  const MemoryInfo info = memory_info(root_);
  EXPECT_EQ(info.total, 1000 * 1024);
  EXPECT_EQ(info.available, 800 * 1024);
  EXPECT_EQ(info.limit, -1);
  EXPECT_EQ(info.usable(), 800 * 1024);
}

TEST_F(Machine, TheSmallestLimitOnTheWayToTheRootCounts) {
  put("/proc/self/cgroup", "0::/a/b\n");
  put("/sys/fs/cgroup/a/memory.max", "500000\n");
  put("/sys/fs/cgroup/a/memory.current", "100000\n");
  put("/sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 40000\n");
  put("/sys/fs/cgroup/a/b/memory.max", "max\n");
  const MemoryInfo info = memory_info(root_);
  EXPECT_EQ(info.limit, 500000);
  EXPECT_EQ(info.limit_free, 440000);  // 100000 used, of which 40000 are cache
  EXPECT_EQ(info.usable(), 440000);
}

TEST_F(Machine, VersionOneCgroupsCountToo) {
  put("/proc/self/cgroup", "5:cpu:/x\n4:memory:/job/7\n0::/\n");
  put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");  // none
  put("/sys/fs/cgroup/memory/job/7/memory.limit_in_bytes", "300000\n");
  put("/sys/fs/cgroup/memory/job/7/memory.usage_in_bytes", "1000\n");
  const MemoryInfo info = memory_info(root_);
  EXPECT_EQ(info.limit, 300000);
  EXPECT_EQ(info.limit_free, 299000);
}

TEST_F(Machine, AContainerSeesItsLimitAtTheRootOfTheMount) {
  put("/proc/self/cgroup", "0::/not/visible/here\n");
  put("/sys/fs/cgroup/memory.max", "200000\n");
  EXPECT_EQ(memory_info(root_).limit, 200000);
}

TEST_F(Machine, CacheSizesSkipTheInstructionCache) {
  const std::string base = "/sys/devices/system/cpu/cpu0/cache/index";
  const char* caches[][3] = {
      {"1", "Data", "48K"}, {"1", "Instruction", "32K"}, {"2", "Unified", "2048K"}, {"3", "Unified", "1M"}};
  for (size_t i = 0; i < 4; ++i) {
    put(base + std::to_string(i) + "/level", caches[i][0]);
    put(base + std::to_string(i) + "/type", caches[i][1]);
    put(base + std::to_string(i) + "/size", caches[i][2]);
  }
  const CacheSizes sizes = cache_sizes(root_);
  EXPECT_EQ(sizes.l1d, 48 * 1024);
  EXPECT_EQ(sizes.l2, 2048 * 1024);
  EXPECT_EQ(sizes.l3, 1024 * 1024);
  EXPECT_EQ(cache_sizes(root_ + "/nothing").l2, 0);
}

}  // namespace
}  // namespace cachalot
