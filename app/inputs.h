// What predict and features read: targets, their alignments and templates.
#pragma once

#include <filesystem>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "io/features.h"
#include "io/templates.h"

namespace CLI {
class App;
}

namespace ff {

/// What a folder holds for a target: its alignments in AlphaFold's order, at most one file of hits.
struct AlignmentFiles {
  std::vector<std::string> alignments, hits;
};

/// The folder of --alignments; its names are read once, however many targets there are.
class AlignmentFolder {
 public:
  /// Throws Exit::kInput when it cannot be read.
  explicit AlignmentFolder(const std::string& path);
  /// What belongs to the target that goes by one of `names` (InputOptions::jobs); appends where it
  /// looked. From any thread.
  AlignmentFiles find(const std::vector<std::string>& names, bool only_target,
                      std::vector<std::string>& looked) const;

 private:
  std::filesystem::path root_;
  std::unordered_set<std::string> names_;
};

/// A target and the files that belong to it.
struct Job {
  std::string tag;    ///< names the target and its folder (io/fasta.h, tag_of); unique in the run
  std::string title;  ///< the FASTA record's whole title line
  std::string sequence;                    ///< upper case
  std::string source;                      ///< the file that it came from
  std::vector<std::string> alignments;     ///< files, in AlphaFold's order of merging
  std::vector<std::string> template_hits;  ///< .hhr or hmmsearch's Stockholm file, at most one
  std::string error;                       ///< why it cannot be predicted (its alignments are
                                           ///< missing, ...); "" where nothing is known against it
};

struct InputOptions {
  std::vector<std::string> inputs;  ///< FASTA, tables, ColabFold's a3m, folders of them
  std::string alignments, msa;
  std::string msa_mode = "dir";      ///< dir, single_sequence
  std::string templates = "search";  ///< none, search (hits in the alignment folder), custom
  TemplateOptions search;
  std::vector<std::string> template_files;  ///< FILE[:CHAIN] or folders; beside the hits
  std::string features;  ///< features.npz of `fastfold features` instead of all above

  void add_to(CLI::App& app);

  /// One job a target. `alignments` holds, for each target, TAG/ (OpenFold), TAG/msas/ (AlphaFold)
  /// or TAG.a3m, .sto, .gz; for the only target also msas/ or the files themselves. TAG is the
  /// job's tag, the title's first word (up to '|' or whole), the title as ColabFold makes a name of
  /// it, or the name of a FASTA file with one record. Throws Exit::kInput or Exit::kUsage for what
  /// concerns the whole run; what concerns one target is its `error`.
  std::vector<Job> jobs() const;
};

/// A target's features before any random choice, and what a user wants to know of them.
struct TargetInputs {
  RawFeatures raw;
  std::vector<UsedTemplate> templates;
  std::vector<std::string> warnings;
  std::vector<std::pair<std::string, int64_t>> rows;  ///< rows taken from each alignment file
  std::string msa_a3m;  ///< the merged alignment, insertions kept, for msa.a3m
};

/// Reads and merges. Of Stockholm files in a folder named `msas` it takes as many rows as AlphaFold
/// when it uses precomputed alignments: 10,000 of uniref90_hits, 501 of mgnify_hits; elsewhere all,
/// as OpenFold. Throws Exit::kInput naming the file.
TargetInputs read_inputs(const Job& job, const InputOptions& options);

/// A hash of each file that the target's features are made of but the hits' structures: the same
/// wherever the files stand. Throws Exit::kInput naming one that cannot be read.
std::vector<std::string> hashes_of_inputs(const Job& job, const InputOptions& options);

/// Makes the folder with those above it. Throws Exit::kUsage where nothing can be written in it.
void make_output_folder(const std::string& path);

}  // namespace ff
