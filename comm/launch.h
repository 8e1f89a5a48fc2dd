// What a launcher (mpirun, srun) says of this process, read before MPI is touched.
#pragma once

namespace ff {

struct Launched {
  int rank = 0;
  int size = 1;
  bool by_launcher = false;  ///< whether a launcher's variables are there, for one rank too
};

/// From the environment variables of Open MPI, PMI and PMIx. Throws Exit::kUsage where they make no
/// sense, and where srun started several tasks without MPI support.
Launched launched();

}  // namespace ff
