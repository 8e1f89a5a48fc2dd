// A build without MPI: one rank is all there is.
#include "comm/launch.h"
#include "comm/link.h"
#include "core/base/error.h"

namespace ff {

std::unique_ptr<Link> mpi_link(double) {
  const Launched found = launched();
  if (found.size > 1)
    fail(Exit::kUsage, "started as ", found.size,
         " ranks, but this build has no MPI; build it where libopenmpi-dev is installed");
  return nullptr;
}

std::string mpi_version() { return ""; }

void abort_all_ranks(int) {}

}  // namespace ff
