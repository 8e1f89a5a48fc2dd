// The heads: what is read off the representations besides the structure.
#pragma once

#include "comm/dap.h"
#include "core/model/config.h"
#include "core/model/params.h"
#include "core/tensor/arrays.h"

namespace ff {

/// Logits before softmax or sigmoid, f32 or f64 as the representation is. `scope` is the head's
/// own. Jumper et al. 2021, Suppl. 1.9.6 (Alg. 29) to 1.9.10.
Var aligned_error_logits(const Scope& scope, const Var& pair);  ///< [n_res, n_res, bin]
Var masked_msa_logits(const Scope& scope, const Var& msa);      ///< [n_seq, n_res, 23]
Var resolved_logits(const Scope& scope, const Var& single);     ///< [n_res, 37]
Var lddt_logits(const Scope& scope, const Var& structure_act);  ///< [n_res, bin]

/// Inner bin edges in angstrom, f32: [num_bins - 1].
Tensor distogram_edges(const HeadsConfig& config);
Tensor aligned_error_breaks(const HeadsConfig& config);

/// What the heads whose weight is not zero say; the others are undefined.
struct HeadLogits {
  Var distogram, masked_msa, lddt, aligned_error, resolved;
};
/// scope: .../alphafold_iteration; the trunk's representations and the structure module's. The
/// distogram's logits [n_res, n_res, bin] are symmetric. Under several ranks pair and msa, and
/// their logits, are the own rows.
HeadLogits head_logits(const Scope& scope, const HeadsConfig& config, const Var& single,
                       const Var& pair, const Var& msa, const Var& structure_act,
                       const Dap& dap = {});

/// Runs the heads on the "representations/..." in `out` and adds "distogram/logits",
/// "distogram/bin_edges", "masked_msa/logits", "predicted_lddt/logits",
/// "experimentally_resolved/logits", "predicted_aligned_error/logits" and ".../breaks".
void run_heads(const Scope& scope, const HeadsConfig& config, Arrays& out, const Dap& dap = {});

}  // namespace ff
