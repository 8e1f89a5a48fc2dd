// The cgroup's limits, from made-up /proc and /sys trees.
#include "core/base/machine.h"

#include <unistd.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>

#include "core/base/error.h"
#include "core/base/log.h"

using namespace ff;
namespace fs = std::filesystem;

namespace {

class Tree {
 public:
  Tree() : root_(fs::temp_directory_path() / cat("ff_cgroup_", getpid())) {}
  ~Tree() { fs::remove_all(root_); }
  void put(const std::string& path, const std::string& text) const {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  std::string str() const { return root_; }

 private:
  fs::path root_;
};

}  // namespace

TEST_CASE("cgroup v2: the least limit up the tree") {
  const Tree tree;
  tree.put("proc/self/cgroup", "0::/user/job\n");
  CHECK(cgroup_cpu_limit(tree.str()) == 0);
  tree.put("sys/fs/cgroup/user/job/cpu.max", "max 100000\n");
  CHECK(cgroup_cpu_limit(tree.str()) == 0);
  tree.put("sys/fs/cgroup/user/cpu.max", "250000 100000\n");
  CHECK(cgroup_cpu_limit(tree.str()) == 2.5);
  tree.put("sys/fs/cgroup/user/job/cpu.max", "400000 100000\n");
  CHECK(cgroup_cpu_limit(tree.str()) == 2.5);
}

TEST_CASE("cgroup v1: quota and period") {
  const Tree tree;
  tree.put("proc/self/cgroup", "5:memory:/job\n4:cpu,cpuacct:/job\n");
  tree.put("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "150000\n");
  tree.put("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n");
  CHECK(cgroup_cpu_limit(tree.str()) == 1.5);
  tree.put("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "-1\n");
  CHECK(cgroup_cpu_limit(tree.str()) == 0);
}

TEST_CASE("memory: what the system has, and no more than the groups leave") {
  const Tree tree;
  CHECK(available_memory(tree.str()) == -1);
  tree.put("proc/meminfo", "MemTotal:  4000 kB\nMemFree:  100 kB\nMemAvailable:  3000 kB\n");
  tree.put("proc/self/cgroup", "0::/user/job\n");
  CHECK(available_memory(tree.str()) == 3000 * 1024);
  tree.put("sys/fs/cgroup/user/job/memory.max", "max\n");
  CHECK(available_memory(tree.str()) == 3000 * 1024);
  tree.put("sys/fs/cgroup/user/memory.max", "1000000\n");
  tree.put("sys/fs/cgroup/user/memory.current", "600000\n");
  tree.put("sys/fs/cgroup/user/memory.stat", "anon 1\ninactive_file 50000\n");
  CHECK(available_memory(tree.str()) == 450000);
  tree.put("proc/self/cgroup", "5:memory:/job\n");
  tree.put("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "200000\n");
  tree.put("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "250000\n");
  CHECK(available_memory(tree.str()) == 0);
  CHECK(available_memory() > 0);
  CHECK(peak_rss() > 0);
}

TEST_CASE("a tree without cgroups has no limit, and there is always a thread") {
  CHECK(cgroup_cpu_limit("/no/such/root") == 0);
  CHECK(available_threads() >= 1);
}

TEST_CASE("bytes and seconds for people") {
  CHECK(show_bytes(0) == "0 B");
  CHECK(show_bytes(1023) == "1023 B");
  CHECK(show_bytes(3 << 20) == "3.00 MiB");
  CHECK(show_seconds(4.24) == "4.2 s");
  CHECK(show_seconds(59.97) == "1 min 0 s");
  CHECK(show_seconds(7500) == "2 h 5 min");
}
