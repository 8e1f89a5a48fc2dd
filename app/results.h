// The files of one target: structures, scores, ranking, report, and the marker that says they are
// complete.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor/arrays.h"
#include "io/file_lock.h"
#include "io/prediction.h"

namespace ff {

enum class Layout { kFastfold, kAlphafold, kColabfold };
enum class Format { kPdb, kCif, kBoth };

/// "fastfold", "alphafold", "colabfold"; "pdb", "cif", "both". Throw Exit::kUsage for another.
Layout layout_of_name(const std::string& name);
Format format_of_name(const std::string& name);

struct ResultOptions {
  std::string folder;  ///< OUT, in which each target has its folder or, ColabFold's way, its files
  Layout layout = Layout::kFastfold;
  Format format = Format::kBoth;  ///< a structure that no PDB file can hold is written as mmCIF
};

/// What one target's run gave. An empty text is a file that is not written.
struct TargetResults {
  std::string tag;                 ///< names the target; a file name without slashes
  std::string title;               ///< the record's title line
  std::vector<Prediction> ranked;  ///< best first
  std::vector<Arrays> arrays;      ///< for --save, one set a prediction in the same order; or empty
  std::string rank_by = "plddt";   ///< or "ptm"
  bool alignment = true;           ///< that the network was given
  nlohmann::json timings, run;
  std::string msa_a3m, report_html, coverage_svg, plddt_svg, pae_svg;
  std::string fingerprint;  ///< of the inputs and settings, returned by check_complete
};

/// ColabFold's scores: {"plddt": [...], "max_pae": x, "pae": [[...], ...], "ptm": x}, at most two
/// decimals; pae, max_pae (the matrix's largest) and ptm only where the model tells them.
std::string scores_json(const Prediction& prediction);

/// The predicted aligned errors as AlphaFold's code writes them for AlphaFold DB's readers, one
/// decimal: [{"predicted_aligned_error": [[...], ...], "max_predicted_aligned_error": 31.75}].
std::string pae_json(const Prediction& prediction);
/// ColabFold's: the same as an object instead of a list of one, two decimals, the matrix's largest.
std::string colabfold_pae_json(const Prediction& prediction);

/// AlphaFold's confidence of each residue: {"residueNumber": [1, ...], "confidenceScore": [...],
/// "confidenceCategory": ["D" below 50, "L" below 70, "M" below 90, "H"]}.
std::string confidence_json(const Prediction& prediction);

/// AlphaFold's names of the predictions: "model_1_ptm_pred_0", the number counting a model's seeds
/// from the lowest.
std::vector<std::string> alphafold_names(const std::vector<Prediction>& ranked);

/// AlphaFold's ranking_debug.json: {"plddts": {name: mean pLDDT, ...}, "order": [names, best
/// first]}, or "ptms".
nlohmann::ordered_json ranking_json(const std::vector<Prediction>& ranked,
                                    const std::string& rank_by);

/// Where the target's first-ranked structure stands.
std::string best_structure_path(const TargetResults& results, const ResultOptions& options);

/// Writes the target's files, each under a temporary name first; the completion marker of an
/// earlier run is removed before, with what that run and interrupted ones left and this one does
/// not write, and the new one comes last: whenever the process is killed, a marker stands beside a
/// complete set of files or there is none. Layouts:
///   fastfold   OUT/TAG/{ranked_000.{pdb,cif}, scores_rank_000.json, pae_rank_000.json,
///              arrays_rank_000.npz, ranking.json, timings.json, run.json, msa.a3m, report.html,
///              {coverage,plddt,pae}.svg}, marker OUT/TAG/complete.json
///   alphafold  OUT/TAG/{ranked_0.{pdb,cif}, NAME = model_1_ptm_pred_0: unrelaxed_NAME.{pdb,cif},
///              confidence_NAME.json, pae_NAME.json, arrays_NAME.npz, ranking_debug.json,
///              timings.json, run.json, msa.a3m, report.html, *.svg}, marker the same
///   colabfold  OUT/{TAG_unrelaxed_RANK.{pdb,cif}, TAG_scores_RANK.json, TAG_arrays_RANK.npz,
///              RANK = rank_001_alphafold2_ptm_model_1_seed_000,
///              TAG_predicted_aligned_error_v1.json, TAG.a3m, TAG_{coverage,plddt,pae}.svg,
///              TAG_timings.json, TAG_run.json, TAG_report.html}, marker OUT/TAG.done.txt
/// The caller holds the target's TargetLock.
void write_results(const TargetResults& results, const ResultOptions& options);

struct Completion {
  enum State { kMissing, kComplete, kDamaged } state = kMissing;
  std::string damage;       ///< which file is missing or differs from what the marker says
  std::string fingerprint;  ///< of the run that wrote the marker
};

/// Whether the target's files are all there and as they were written (sizes and SHA-256).
Completion check_complete(const std::string& tag, const ResultOptions& options);

/// Removes what a run killed just before it took the marker away, or just after it wrote it, has
/// left beside a complete target. The caller holds the target's TargetLock.
void remove_leftovers(const std::string& tag, const ResultOptions& options);

/// Keeps other processes from writing the same target while it lives.
class TargetLock {
 public:
  /// Makes OUT where it is missing. Throws Exit::kUsage "TAG is being written by another fastfold
  /// (process N on HOST)". Where the file system has no locks: a warning, and no protection.
  TargetLock(const std::string& folder, const std::string& tag);

 private:
  std::optional<FileLock> lock_;
};

}  // namespace ff
