// The group that a launcher made.
#include "comm/group.h"

#include <catch2/catch.hpp>
#include <cstdlib>

#include "core/base/error.h"

using namespace ff;

namespace {

struct Variables {
  Variables(const char* rank, const char* size) {
    unsetenv("OMPI_COMM_WORLD_RANK");
    unsetenv("OMPI_COMM_WORLD_SIZE");
    if (rank) setenv("PMI_RANK", rank, 1);
    if (size) setenv("PMI_SIZE", size, 1);
  }
  ~Variables() {
    unsetenv("PMI_RANK");
    unsetenv("PMI_SIZE");
  }
};

}  // namespace

TEST_CASE("without a launcher there is a group of one") {
  const Variables none(nullptr, nullptr);
  CHECK(launched_group().rank == 0);
  CHECK(launched_group().size == 1);
  CHECK_NOTHROW(require_single(launched_group()));
}

TEST_CASE("a launcher's ranks are read, and more than one is refused") {
  const Variables two("1", "2");
  const Group group = launched_group();
  CHECK(group.rank == 1);
  CHECK(group.size == 2);
  CHECK_THROWS_AS(require_single(group), Error);
}

TEST_CASE("a launcher's nonsense is an error that names the variable") {
  for (const char* rank : {"", "x", "-1", "1 ", "2", "99999999999999999999"}) {
    const Variables bad(rank, "2");
    CAPTURE(rank);
    CHECK_THROWS_WITH(launched_group(), Catch::Contains("PMI_RANK"));
  }
}
