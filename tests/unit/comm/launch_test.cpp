// What a launcher's variables say.
#include "comm/launch.h"

#include <catch2/catch.hpp>
#include <cstdlib>

#include "core/base/error.h"

using namespace ff;

namespace {

constexpr const char* kAll[] = {
    "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE", "PMIX_RANK",
    "SLURM_PROCID",         "SLURM_STEP_NUM_TASKS"};

struct Variables {
  Variables(std::initializer_list<std::pair<const char*, const char*>> set) {
    for (const char* name : kAll) unsetenv(name);
    for (const auto& [name, value] : set) setenv(name, value, 1);
  }
  ~Variables() {
    for (const char* name : kAll) unsetenv(name);
  }
};

}  // namespace

TEST_CASE("without a launcher there is one rank") {
  const Variables none{};
  CHECK(launched().rank == 0);
  CHECK(launched().size == 1);
  CHECK_FALSE(launched().by_launcher);
}

TEST_CASE("every launcher's ranks are read") {
  for (const auto& [rank, size] :
       {std::pair("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        std::pair("PMI_RANK", "PMI_SIZE"), std::pair("PMIX_RANK", "SLURM_STEP_NUM_TASKS")}) {
    const Variables two{{rank, "1"}, {size, "2"}};
    CAPTURE(rank);
    CHECK(launched().rank == 1);
    CHECK(launched().size == 2);
    CHECK(launched().by_launcher);
  }
}

TEST_CASE("tasks of srun that do not know of each other are refused") {
  const Variables plain{{"SLURM_PROCID", "1"}, {"SLURM_STEP_NUM_TASKS", "4"}};
  CHECK_THROWS_WITH(launched(), Catch::Contains("--mpi=pmix"));
  const Variables one{{"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}};
  CHECK(launched().size == 1);
}

TEST_CASE("a launcher's nonsense is an error that names the variable") {
  for (const char* rank : {"", "x", "-1", "1 ", "2", "99999999999999999999"}) {
    const Variables bad{{"PMI_RANK", rank}, {"PMI_SIZE", "2"}};
    CAPTURE(rank);
    CHECK_THROWS_WITH(launched(), Catch::Contains("PMI_RANK"));
  }
}
