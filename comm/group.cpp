// Ranks that work together: what the launcher says.
#include "comm/group.h"

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "core/base/error.h"

namespace ff {
namespace {

int number(const char* variable, const char* text) {
  int value = -1;
  const char* end = text + std::strlen(text);
  const auto [rest, error] = std::from_chars(text, end, value);
  if (error != std::errc() || rest != end || value < 0) {
    fail(Exit::kUsage, "environment variable ", variable, " is '", text,
         "', expected a number of ranks; unset it or start with mpirun");
  }
  return value;
}

}  // namespace

Group launched_group() {
  constexpr std::pair<const char*, const char*> kLaunchers[] = {
      {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"}, {"PMI_RANK", "PMI_SIZE"}};
  for (const auto& [rank_name, size_name] : kLaunchers) {
    const char* rank = std::getenv(rank_name);
    const char* size = std::getenv(size_name);
    if (!rank || !size) continue;
    const Group group{number(rank_name, rank), number(size_name, size)};
    if (group.rank >= group.size) {
      fail(Exit::kUsage, rank_name, " is ", rank, ", expected less than ", size_name, ", ", size,
           "; unset them or start with mpirun");
    }
    return group;
  }
  return {};
}

void require_single(const Group& group) {
  if (group.size == 1) return;
  fail(Exit::kUsage, "started as ", group.size,
       " ranks, and this version works with one; start it without mpirun or srun");
}

}  // namespace ff
