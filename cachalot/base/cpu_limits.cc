#include "base/cpu_limits.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>

namespace cachalot {

namespace {

double smaller_limit(double a, double b) { return a < 0 ? b : b < 0 ? a : std::min(a, b); }

// cpu.max holds "quota period" or "max period".
double limit_v2(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return -1;
  const double limit = std::atof(quota.c_str()) / period;
  return limit > 0 ? limit : -1;
}

double limit_v1(const std::string& folder) {
  double quota = -1, period = 0;
  std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
  std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  return quota > 0 && period > 0 ? quota / period : -1;
}

// Every group above limits too.
template <class Limit> double smallest_upwards(const std::string& root, std::string group, Limit limit) {
  double best = limit(root);
  while (group.size() > 1) {
    best = smaller_limit(best, limit(root + group));
    group.resize(group.rfind('/') == std::string::npos ? 0 : group.rfind('/'));
  }
  return best;
}

bool names_cpu(std::string controllers) {
  controllers = "," + controllers + ",";
  return controllers.find(",cpu,") != std::string::npos;
}

// "0-3,8": 0 1 2 3 8
std::vector<int> parse_cpu_list(const std::string& text) {
  std::vector<int> cpus;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    int first = 0, last = 0;
    char dash = 0;
    std::istringstream numbers(part);
    if (!(numbers >> first)) continue;
    if (!(numbers >> dash >> last)) last = first;
    for (int cpu = first; cpu <= last; ++cpu) cpus.push_back(cpu);
  }
  return cpus;
}

}  // namespace

double cgroup_cpu_limit(const std::string& root, const std::string& self) {
  double best = -1;
  std::istringstream lines(self);
  for (std::string line; std::getline(lines, line);) {  // "0::/path" or "4:cpu,cpuacct:/path"
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1),
                      group = line.substr(second + 1);
    if (controllers.empty()) best = smaller_limit(best, smallest_upwards(root, group, limit_v2));
    else if (names_cpu(controllers))
      best = smaller_limit(best, smallest_upwards(root + "/cpu", group, limit_v1));
  }
  return best;
}

std::vector<std::vector<int>> numa_nodes(const std::string& root) {
  std::string online;
  std::getline(std::ifstream(root + "/online"), online);
  std::vector<std::vector<int>> nodes;
  for (const int node : parse_cpu_list(online)) {
    std::string cpus;
    std::getline(std::ifstream(root + "/node" + std::to_string(node) + "/cpulist"), cpus);
    nodes.push_back(parse_cpu_list(cpus));
  }
  return nodes;
}

}  // namespace cachalot
