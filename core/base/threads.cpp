// Reads the affinity mask and the cgroup's limit.
#include "core/base/threads.h"

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>

#include "core/base/error.h"

namespace ff {

namespace {

/// Least of the limits that `read` finds in `path` and in the groups above it; 0 = none.
template <class Read>
double least_limit(std::string path, Read read) {
  double least = 0;
  while (true) {
    const double limit = read(path);
    if (limit > 0 && (least == 0 || limit < least)) least = limit;
    const size_t slash = path.rfind('/');
    if (path.empty() || slash == std::string::npos) return least;
    path.resize(slash);
  }
}

double read_v2(const std::string& folder) {
  std::ifstream in(folder + "/cpu.max");
  std::string quota;
  double period = 0;
  if (!(in >> quota >> period) || quota == "max" || period <= 0) return 0;
  return std::atof(quota.c_str()) / period;
}

double read_v1(const std::string& folder) {
  std::ifstream quota_in(folder + "/cpu.cfs_quota_us"), period_in(folder + "/cpu.cfs_period_us");
  double quota = 0, period = 0;
  if (!(quota_in >> quota) || !(period_in >> period) || quota <= 0 || period <= 0) return 0;
  return quota / period;
}

}  // namespace

double cgroup_cpu_limit(const std::string& root) {
  std::ifstream in(root + "/proc/self/cgroup");
  const std::string base = root + "/sys/fs/cgroup";
  double least = 0;
  const auto take = [&least](double limit) {
    if (limit > 0 && (least == 0 || limit < least)) least = limit;
  };
  for (std::string line; std::getline(in, line);) {
    // "0::/path" (v2) or "4:cpu,cpuacct:/path" (v1)
    const size_t a = line.find(':'), b = line.find(':', a + 1);
    if (a == std::string::npos || b == std::string::npos) continue;
    const std::string controllers = line.substr(a + 1, b - a - 1);
    std::string path = line.substr(b + 1);
    if (path == "/") path.clear();
    if (controllers.empty()) {
      for (const char* mount : {"", "/unified"})
        take(least_limit(path, [&](const std::string& p) { return read_v2(base + mount + p); }));
    } else if (("," + controllers + ",").find(",cpu,") != std::string::npos) {
      for (const std::string& mount : {std::string("cpu"), controllers})
        take(least_limit(path,
                         [&](const std::string& p) { return read_v1(base + "/" + mount + p); }));
    }
  }
  return least;
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
