// What the machine and the container leave to this process: read from /sys and /proc, whose places are
// arguments so that tests can build their own.
#pragma once

#include <string>
#include <vector>

namespace cachalot {

// CPUs' worth of time a cgroup may use, -1 without a limit. `root` is where cgroups are mounted
// ("/sys/fs/cgroup"), `self` the text of /proc/self/cgroup. Version 2 says it in cpu.max of the group and of
// every group above, version 1 in cpu.cfs_quota_us and cpu.cfs_period_us under the controller "cpu"; a
// machine may have both. Inside a container the group's path is often not mounted: then the root counts.
double cgroup_cpu_limit(const std::string& root, const std::string& self);

// The CPUs of each NUMA node, in the order of nodes; empty where the system does not say.
// `root` is "/sys/devices/system/node".
std::vector<std::vector<int>> numa_nodes(const std::string& root);

}  // namespace cachalot
