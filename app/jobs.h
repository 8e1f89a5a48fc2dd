// What predict has to do: targets from FASTA files, and the alignments that belong to each.
#pragma once

#include <string>
#include <vector>

#include "io/msa.h"

namespace ff {

struct Job {
  std::string tag;                      ///< names the target and its folder; unique in the run
  std::string sequence;                 ///< upper case
  std::vector<std::string> alignments;  ///< files, in AlphaFold's order of merging
};

/// One job for each record of the FASTA files. `alignments` is a folder with TAG/*.a3m or TAG.a3m
/// (or .sto, .gz), or with the files of the only target; `msa` is the one file of the only target;
/// both may be empty. Throws Exit::kInput on a file or folder that is not there, Exit::kUsage where
/// --msa meets several targets.
std::vector<Job> plan_jobs(const std::vector<std::string>& inputs, const std::string& alignments,
                           const std::string& msa);

/// The job's alignments. Throws Exit::kInput, naming the file, where one is of another sequence.
std::vector<Msa> read_alignments(const Job& job);

/// Makes the folder with those above it. Throws Exit::kUsage where nothing can be written in it.
void make_output_folder(const std::string& path);

}  // namespace ff
