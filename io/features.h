// Features of one chain: raw ones from a sequence and its alignments, and processed ones, slice by
// slice, as the network takes them. AlphaFold's data/pipeline.py and model/tf; Jumper et al. 2021,
// Suppl. sections 1.2.1 to 1.2.9.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/base/data_config.h"
#include "core/tensor/arrays.h"
#include "io/msa.h"

namespace ff {

/// Templates as AlphaFold's template_* features, best first; undefined tensors: none.
struct TemplateFeatures {
  Tensor aatype;              ///< [n_templates, n_res, 22] f32, one-hot in kHhblitsLetters
  Tensor all_atom_positions;  ///< [n_templates, n_res, 37, 3] f32, angstrom
  Tensor all_atom_masks;      ///< [n_templates, n_res, 37] f32
  Tensor sum_probs;           ///< [n_templates, 1] f32

  int64_t size() const { return aatype ? aatype.size(0) : 0; }
};

/// What is known of a chain before any random choice.
struct RawFeatures {
  Tensor aatype;                         ///< [n_res] i32, 20 = unknown
  Tensor residue_index;                  ///< [n_res] i32
  int64_t n_seq = 0;                     ///< rows of the alignment; row 0 is the query
  std::vector<int8_t> msa;               ///< [n_seq, n_res], indices of kRestypeLetters (21 = gap)
  std::vector<int32_t> deletion_matrix;  ///< [n_seq, n_res], residues dropped left of each column
  std::vector<float> profile;            ///< [n_res, 22], frequencies over the rows of `msa`
  TemplateFeatures templates;

  int64_t n_res() const { return aatype.size(0); }
  const int8_t* row(int64_t s) const { return msa.data() + s * n_res(); }
  const int32_t* deletions(int64_t s) const { return deletion_matrix.data() + s * n_res(); }
};

/// Features of a sequence and its alignment (merge_msas); of the sequence alone where `msa` is
/// empty. Throws Exit::kInput, naming row and column, unless the sequence is upper-case letters and
/// the first row is the query.
RawFeatures make_raw_features(const std::string& sequence, const Msa& msa,
                              TemplateFeatures templates = {});

/// The alignment of raw features, inserted residues as 'x': it gives the same features again.
Msa to_msa(const RawFeatures& raw);

/// The same as AlphaFold's raw features (features.pkl): aatype [n_res, 21] i32 one-hot,
/// between_segment_residues, residue_index, seq_length, num_alignments [n_res] i32, msa (in
/// kHhblitsLetters) and deletion_matrix_int [n_seq, n_res] i32, and template_* where there are any.
Arrays to_arrays(const RawFeatures& raw);

/// The reverse of `to_arrays`. Throws Exit::kInput naming `path` and the key on a missing array, a
/// wrong shape or dtype, or a value out of range. Other arrays are left alone.
RawFeatures from_arrays(const Arrays& arrays, const std::string& path);

/// Everything random in one slice.
struct Choices {
  std::vector<int32_t> shuffle0;  ///< order of rows 1 .. n_seq-1; the first are cluster centres
  std::vector<int32_t> shuffle1;  ///< order of the other rows (from 0); the first are kept
  std::vector<int8_t> bert_mask;  ///< [n_clusters, n_res], 1 = to be predicted
  std::vector<int8_t> msa;        ///< [n_clusters, n_res], the centres after masking
  /// The nearest centre of each other row, where it was found on more columns than these; empty:
  /// make_slice finds it.
  std::vector<int32_t> nearest;
  int32_t random_crop_to_size_seed[2]{};  ///< AlphaFold's feature of this name; without effect here
};

/// The choices of a slice (recycle * num_ensemble + member) by Philox: the same for the same
/// arguments, independent between slices. Where the configuration does not resample in recycling,
/// they depend on the member alone. Throws Exit::kUsage on a configuration that leaves no cluster
/// or whose masking probabilities exceed 1.
Choices draw_choices(const RawFeatures& raw, const DataConfig& config, uint64_t seed,
                     int64_t slice);

/// How far `make_slice` pads with zeros.
struct Padding {
  int64_t n_res = 0;  ///< residues; below the chain's length: not at all
  /// Rows: to the configuration's sizes, as AlphaFold; or to one row where there is none.
  enum Rows { kFull, kLeast } rows = kFull;
};

/// The processed features of one slice under AlphaFold's names (fixtures' batch.npz without its
/// leading axis): msa_feat [n_clusters, n_res, 49] f32, extra_msa [n_extra, n_res] i32, ...; with
/// template_* where the configuration uses templates.
Arrays make_slice(const RawFeatures& raw, const DataConfig& config, const Choices& choices,
                  const Padding& padding = {});

inline Arrays make_slice(const RawFeatures& raw, const DataConfig& config, uint64_t seed,
                         int64_t slice) {
  return make_slice(raw, config, draw_choices(raw, config, seed, slice));
}

}  // namespace ff
