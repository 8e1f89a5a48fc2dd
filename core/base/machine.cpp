// Reads the affinity mask, /proc and the cgroup's limits.
#include "core/base/machine.h"

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>

#include "core/base/error.h"

namespace ff {

namespace {

/// Least of what `v2` and `v1` say (below 0: nothing) of this process's cgroup and of those above
/// it, in `controller`'s hierarchy; -1 for none.
template <class Read>
double least_in_cgroups(const std::string& root, const std::string& controller, Read v2, Read v1) {
  double least = -1;
  const auto climb = [&least](const std::string& mount, std::string path, Read read) {
    while (true) {
      const double limit = read(mount + path);
      if (limit >= 0 && (least < 0 || limit < least)) least = limit;
      const size_t slash = path.rfind('/');
      if (path.empty() || slash == std::string::npos) return;
      path.resize(slash);
    }
  };
  std::ifstream in(root + "/proc/self/cgroup");
  const std::string base = root + "/sys/fs/cgroup";
  for (std::string line; std::getline(in, line);) {
    // "0::/path" (v2) or "4:cpu,cpuacct:/path" (v1)
    const size_t a = line.find(':'), b = line.find(':', a + 1);
    if (a == std::string::npos || b == std::string::npos) continue;
    const std::string controllers = line.substr(a + 1, b - a - 1);
    std::string path = line.substr(b + 1);
    if (path == "/") path.clear();
    if (controllers.empty()) {
      for (const char* mount : {"", "/unified"}) climb(base + mount, path, v2);
    } else if (("," + controllers + ",").find("," + controller + ",") != std::string::npos) {
      for (const std::string& mount : {controller, controllers})
        climb(base + "/" + mount, path, v1);
    }
  }
  return least;
}

/// The number in a file, or after `key` in it; -1 where there is none.
double number_in(const std::string& path, const std::string& key = "") {
  std::ifstream in(path);
  for (std::string word; in >> word;) {
    if (!key.empty() && word != key) continue;
    if (!key.empty()) in >> word;
    char* end = nullptr;
    const double value = std::strtod(word.c_str(), &end);
    return end == word.c_str() ? -1 : value;
  }
  return -1;
}

double cpus_v2(const std::string& folder) {
  std::ifstream in(folder + "/cpu.max");
  std::string quota;
  double period = 0;
  if (!(in >> quota >> period) || quota == "max" || period <= 0) return -1;
  return std::atof(quota.c_str()) / period;
}

double cpus_v1(const std::string& folder) {
  const double quota = number_in(folder + "/cpu.cfs_quota_us"),
               period = number_in(folder + "/cpu.cfs_period_us");
  return quota > 0 && period > 0 ? quota / period : -1;
}

double bytes_left(double limit, double used, double cache) {
  return limit < 0 || used < 0 ? -1 : std::max(0.0, limit - used + std::max(0.0, cache));
}

double memory_v2(const std::string& folder) {
  return bytes_left(number_in(folder + "/memory.max"), number_in(folder + "/memory.current"),
                    number_in(folder + "/memory.stat", "inactive_file"));
}

double memory_v1(const std::string& folder) {
  return bytes_left(number_in(folder + "/memory.limit_in_bytes"),
                    number_in(folder + "/memory.usage_in_bytes"),
                    number_in(folder + "/memory.stat", "total_inactive_file"));
}

}  // namespace

double cgroup_cpu_limit(const std::string& root) {
  return std::max(0.0, least_in_cgroups(root, "cpu", cpus_v2, cpus_v1));
}

int64_t available_memory(const std::string& root) {
  constexpr double kKib = 1024;
  double least = number_in(root + "/proc/meminfo", "MemAvailable:") * kKib;
  const double group = least_in_cgroups(root, "memory", memory_v2, memory_v1);
  if (least < 0 || (group >= 0 && group < least)) least = group;
  return least < 0 ? -1 : int64_t(least);
}

int64_t peak_rss() {
  // Not getrusage: there a child starts with its parent's peak.
  constexpr double kKib = 1024;
  return int64_t(std::max(0.0, number_in("/proc/self/status", "VmHWM:")) * kKib);
}

int available_threads() {
  cpu_set_t set;
  const int allowed =
      sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : omp_get_num_procs();
  const double limit = cgroup_cpu_limit();
  return std::max(1, limit > 0 ? std::min(allowed, int(std::ceil(limit))) : allowed);
}

void set_threads(int count) {
  check(count > 0, "set_threads(", count, ")");
  omp_set_num_threads(count);
}

}  // namespace ff
