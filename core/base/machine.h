// What this process may use of the machine: threads and memory.
#pragma once

#include <cstdint>
#include <string>

namespace ff {

/// The processors that the affinity mask allows, and no more than the cgroup's CPU limit (v1 and
/// v2, with those of the groups above it), rounded up; at least 1.
int available_threads();

/// The CPU limit of this process's cgroup in processors, 0 where there is none. `root` is put
/// before /proc and /sys.
double cgroup_cpu_limit(const std::string& root = "");

/// Threads of all parallel regions that start after this call.
void set_threads(int count);

/// Bytes that can still be had: what the system calls available, and no more than the cgroup's
/// limits leave (its file cache counts as free). -1 where neither is known.
int64_t available_memory(const std::string& root = "");

/// Highest resident set of this process so far, bytes.
int64_t peak_rss();

}  // namespace ff
