// fastfold bench --comm: what the ranks of a run do together, under mpirun or srun.
#pragma once

#include <cstdint>
#include <string>

#include "app/commands.h"
#include "app/ranks.h"

namespace ff {

struct CommBench {
  bool wanted = false;
  RankOptions ranks;
  int64_t largest = 64 << 20;  ///< bytes of the largest collective

  /// Adds --comm, --comm-largest, --comm-timeout and --profile.
  void add_to(CLI::App& app);
};

/// The block whose scaling is timed.
struct CommBenchBlock {
  std::string preset;
  int64_t n_res = 0, n_seq = 0;
  Dtype dtype = Dtype::f32;
};

/// Prints two tables from rank 0 and writes them to `json` where that is not "": collectives by
/// size, and one Evoformer block on 1, 2, 4, ... and all ranks. Of `repeat` runs of the block, and
/// of five times as many of a collective, the median counts.
int bench_comm(const CommBench& options, const ComputeOptions& compute, const CommBenchBlock& block,
               int64_t repeat, const std::string& json);

}  // namespace ff
