#include "base/cpu_limits.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace cachalot {
namespace {

class CpuLimits : public testing::Test {
 protected:
  CpuLimits() { std::filesystem::create_directories(root_); }
  ~CpuLimits() override { std::filesystem::remove_all(root_); }
  void put(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ + "/" + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  const std::string root_ =
      testing::TempDir() + "cpu_limits_" + testing::UnitTest::GetInstance()->current_test_info()->name();
};

TEST_F(CpuLimits, WithoutFilesThereIsNoLimit) {
  EXPECT_EQ(cgroup_cpu_limit(root_, "0::/\n"), -1);
  EXPECT_EQ(cgroup_cpu_limit(root_, ""), -1);
  EXPECT_EQ(cgroup_cpu_limit(root_, "no colons here\n0:cpu\n"), -1);
  put("cpu.max", "max 100000\n");
  EXPECT_EQ(cgroup_cpu_limit(root_, "0::/\n"), -1);
}

TEST_F(CpuLimits, TheSmallestOfAGroupAndThoseAboveCounts) {
  put("a/b/cpu.max", "400000 100000\n");
  EXPECT_EQ(cgroup_cpu_limit(root_, "0::/a/b\n"), 4);
  put("a/cpu.max", "150000 100000\n");
  EXPECT_EQ(cgroup_cpu_limit(root_, "0::/a/b\n"), 1.5);
  EXPECT_EQ(cgroup_cpu_limit(root_, "0::/other\n"), -1);
}

TEST_F(CpuLimits, Version1IsFoundUnderItsController) {
  put("cpu/job/cpu.cfs_quota_us", "300000\n");
  put("cpu/job/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(cgroup_cpu_limit(root_, "4:cpu,cpuacct:/job\n3:cpuset:/\n"), 3);
  EXPECT_EQ(cgroup_cpu_limit(root_, "4:cpuacct:/job\n"), -1);
  put("cpu/cpu.cfs_quota_us", "-1\n");  // no limit at the root
  put("cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(cgroup_cpu_limit(root_, "4:cpu:/job\n"), 3);
}

TEST_F(CpuLimits, AMachineWithBothVersionsObeysBoth) {
  put("cpu/cpu.cfs_quota_us", "200000\n");
  put("cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(cgroup_cpu_limit(root_, "4:cpu:/\n0::/\n"), 2);
  put("cpu.max", "100000 100000");
  EXPECT_EQ(cgroup_cpu_limit(root_, "4:cpu:/\n0::/\n"), 1);
}

TEST_F(CpuLimits, NodesListTheirCpus) {
  EXPECT_TRUE(numa_nodes(root_).empty());
  put("online", "0-1,3\n");
  put("node0/cpulist", "0-2,8\n");
  put("node1/cpulist", "\n");  // memory only
  put("node3/cpulist", "5\n");
  const std::vector<std::vector<int>> expected{{0, 1, 2, 8}, {}, {5}};
  EXPECT_EQ(numa_nodes(root_), expected);
}

}  // namespace
}  // namespace cachalot
