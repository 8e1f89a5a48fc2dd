// fastfold prepare build: structures and alignments to shards of training chains.
#pragma once

#include <string>
#include <vector>

#include "app/inputs.h"

namespace ff {

constexpr double kMostOfOneResidue = 0.8;  ///< AlphaFold's training filter (Suppl. 1.2.5)

struct BuildOptions {
  std::vector<std::string> inputs, chains;
  InputOptions search;  ///< its alignments, templates and search
  std::string clusters, out;
  int64_t shard_size = 256, min_residues = 10;
  int jobs = 0;
  bool single_sequence = false, distillation = false, overwrite = false, quiet = false;

  void add_to(CLI::App& app);
};

/// For a table: without tabs and line ends.
std::string one_line(std::string text);

/// Returns the exit code.
int build_shards(const BuildOptions& options);

}  // namespace ff
