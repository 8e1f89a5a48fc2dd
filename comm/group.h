// Ranks that work together. Without MPI at build time a group of one is all there is.
#pragma once

namespace ff {

struct Group {
  int rank = 0;
  int size = 1;
};

/// The ranks that a launcher (mpirun, srun with PMI) started, as its environment variables tell; a
/// group of one without a launcher. Throws Exit::kUsage where those variables make no sense.
Group launched_group();

/// Throws Exit::kUsage for more than one rank: without a backend to join them, each rank would do
/// the whole work and write the same files. The message comes from rank 0; the others' is empty.
void require_single(const Group& group);

}  // namespace ff
