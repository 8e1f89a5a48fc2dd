// Confidence: what the heads' logits say of a prediction. All sums in double.
#pragma once

#include "comm/dap.h"
#include "core/model/config.h"
#include "core/tensor/arrays.h"

namespace ff {

/// Expected lDDT-CA of each residue, 0 to 100. Jumper et al. 2021, Suppl. Alg. 29.
/// logits [n_res, num_bins] f32 or f64; returns [n_res] f32.
Tensor plddt(const Tensor& logits);

struct AlignedError {
  /// [n_res, n_res] f32 angstrom: of residue j when residue i's frames are aligned
  Tensor expected;
  double max = 0;  ///< angstrom: the largest that can be said
};

/// logits [own rows, n_res, num_bins] f32 or f64, breaks [num_bins - 1] f32 angstrom, evenly
/// spaced. What the ranks of `dap` make of their rows is joined on all.
AlignedError predicted_aligned_error(const Tensor& logits, const Tensor& breaks,
                                     const Dap& dap = {});

/// Predicted TM-score, 0 to 1: the best expectation over the aligned residues. Suppl. 1.9.7.
/// logits and breaks as above; residue_weights [n_res] f32 or undefined (all 1). With asym_id
/// [n_res] i32 (chains) only pairs of different chains count: the interface's score, ipTM.
double predicted_tm_score(const Tensor& logits, const Tensor& breaks,
                          const Tensor& residue_weights = {}, const Tensor& asym_id = {},
                          const Dap& dap = {});

/// Adds "confidence/plddt", and where the aligned error's head is, "confidence/ptm",
/// "confidence/predicted_aligned_error_expected" and "confidence/max_predicted_aligned_error", from
/// the logits in `out`.
void add_confidence(const HeadsConfig& config, Arrays& out, const Dap& dap = {});

}  // namespace ff
