// The variables that launchers set.
#include "comm/launch.h"

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

Launched launched() {
  // srun's PMIx plugin gives the size in SLURM's own variable.
  constexpr std::pair<const char*, const char*> kLaunchers[] = {
      {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
      {"PMI_RANK", "PMI_SIZE"},
      {"PMIX_RANK", "SLURM_STEP_NUM_TASKS"}};
  for (const auto& [rank_name, size_name] : kLaunchers) {
    const char* rank = std::getenv(rank_name);
    const char* size = std::getenv(size_name);
    if (!rank || !size) continue;
    const Launched found{number(rank_name, rank), number(size_name, size), true};
    if (found.rank >= found.size) {
      fail(Exit::kUsage, rank_name, " is ", rank, ", expected less than ", size_name, ", ", size,
           "; unset them or start with mpirun");
    }
    return found;
  }
  // A step of several tasks and none of the above: every task would do the whole work.
  const char* tasks = std::getenv("SLURM_STEP_NUM_TASKS");
  if (tasks && std::getenv("SLURM_PROCID") && number("SLURM_STEP_NUM_TASKS", tasks) > 1)
    fail(Exit::kUsage, "srun started ", tasks,
         " tasks without telling them of each other; use srun --mpi=pmix (or pmi2), or mpirun");
  return {};
}

}  // namespace ff
