// The losses of the monomer and ptm models. Jumper et al. 2021, Suppl. 1.9; where the released code
// differs (epsilons, masks, averages) the code is followed.
//
// Each is one number with its gradient made in the same pass, in the inputs' type (f32 or f64) and
// on their device, which nothing waits for but the violations' terms; labels and features are the
// CPU's; sums run in a fixed order, whatever the number of threads. Lengths in angstrom; masks are
// 1 or 0.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "comm/dap.h"
#include "core/autograd/tape.h"
#include "core/tensor/arrays.h"

namespace ff {

/// Weights and constants under AlphaFold's names.
struct LossConfig {
  double distogram = 0.3, masked_msa = 2.0, predicted_lddt = 0.01, predicted_aligned_error = 0.0,
         experimentally_resolved = 0.0, structure_module = 1.0;
  double sidechain_weight_frac = 0.5, chi_weight = 0.5, angle_norm_weight = 0.01,
         structural_violation_loss_weight = 0.0;
  double fape_clamp_distance = 10, fape_loss_unit_distance = 10;
  double atom_clamp_distance = 10, length_scale = 10;
  double violation_tolerance_factor = 12, clash_overlap_tolerance = 1.5;
  bool filter_by_resolution = true;
  double min_resolution = 0.1, max_resolution = 3.0;
};

/// Every number of LossConfig as AlphaFold's tree has it (fixtures' config.json, section
/// "model.heads"); a head that is not there has weight 0. Throws Exit::kInput naming the file and
/// the key that is missing, of another type or not finite, or filters that differ between heads.
LossConfig alphafold_losses(const std::string& json_path);

/// What the losses read of the network's outputs; core/model has the shapes. Logits of heads that
/// are off are undefined.
struct LossInputs {
  std::vector<Var> affines, angles, unnormalized_angles;  ///< one for each structure layer
  Var frames, atoms;                                      ///< the last layer's
  Var distogram, masked_msa, lddt, aligned_error, resolved;
  Tensor distogram_edges, aligned_error_breaks;
  /// Ranks that share the sample: of pairs and of the MSA, the logits have the own rows.
  Dap dap;
  Range msa_rows;     ///< the own ones of the alignment, where there are several ranks
  int64_t n_seq = 0;  ///< the alignment's rows on all of them
};

struct Losses {
  Var total;  ///< the weighted sum
  /// Under the names of AlphaFold's outputs: "distogram/loss", ...; on the losses' device, those of
  /// violations on the CPU.
  Arrays terms;
};

/// All of them. batch: the slice's processed features; labels: io/labels.h's arrays with
/// "resolution" and, where both clamped and unclamped samples are trained on, "use_clamped_fape".
/// Under several ranks all get the same numbers, and the gradients are right once each starts with
/// its share, 1 / ranks. Violations are reported where `violations` asks for them, and cost
/// time only there and where they have a weight. Throws Exit::kInput naming a label that is missing
/// or of another shape.
Losses all_losses(const LossConfig& config, const LossInputs& in, const Arrays& batch,
                  const Arrays& labels, bool violations = true);

/// What predicted frames and points are held against.
struct FapeTarget {
  Tensor frames, frame_mask;  ///< [n_frame, 12], [n_frame]
  Tensor points, point_mask;  ///< [n_point, 3], [n_point]
};

/// Frame aligned point error, Suppl. Alg. 28:
///   mean over frames i, points j of min(clamp, sqrt(|T_i^-1 x_j - T*_i^-1 x*_j|^2 + 1e-4)) / scale
/// frames [n_frame, 12] rotation row-major, translation; points [n_point, 3], rows of any stride.
/// `clamped` is the share of the clamped error, the rest is unclamped (Suppl. 1.11.5).
Var fape(const Var& frames, const Var& points, const FapeTarget& target, double clamp,
         double clamped, double scale);

/// Squared error of the chi angles' sines and cosines, the better of both where a turn by pi
/// changes nothing; mean over layers and `mask` [n_res, 4]. Suppl. Alg. 27.
/// angles: layers of [n_res, 7, 2]; chi [n_res, 4] radians; aatype [n_res] i32
Var chi_loss(const std::vector<Var>& angles, const Tensor& chi, const Tensor& mask,
             const Tensor& aatype);

/// Mean of | sqrt(|x|^2 + 1e-6) - 1 | over layers, residues and the seven pairs. Suppl. Alg. 27.
Var angle_norm_loss(const std::vector<Var>& unnormalized, const Tensor& seq_mask);

/// sum_r weight[r] (logsumexp(logits[r]) - logits[r, class[r]]) / total.
/// logits [rows..., n_class]; classes (i32) and weights (f64): one for each row
Var cross_entropy(const Var& logits, const Tensor& classes, const Tensor& weights, double total);
Var cross_entropy(const Var& logits, const std::vector<int32_t>& classes,
                  const std::vector<double>& weights, double total);

/// Mean binary cross-entropy over the elements whose weight is not 0; labels, weights as logits.
Var binary_cross_entropy(const Var& logits, const Tensor& labels, const Tensor& weights);

/// The factors' weighted sum.
Var weighted_sum(const std::vector<std::pair<double, Var>>& terms);

/// Bond lengths, angles and clashes. Suppl. 1.9.11.
struct Violations {
  Var loss;      ///< AlphaFold's structural violation loss, unweighted
  Arrays terms;  ///< "violations/...", "metrics/..."
};
/// atoms [n_res, 14, 3]; batch: aatype, residue_index, seq_mask, atom14_atom_exists,
/// residx_atom14_to_atom37
/// `with_terms`: terms too, for which a device is waited for.
Violations violations(const Var& atoms, const Arrays& batch, double tolerance_factor,
                      double overlap_tolerance, bool with_terms = true);

/// lDDT of CA atoms for each residue, 0 to 1, rounded as in f32; cutoff 15. prediction, truth
/// [n_res, 3], mask [n_res]. Returns [n_res] f64, where the prediction is.
Tensor lddt_ca(const Tensor& prediction, const Tensor& truth, const Tensor& mask);

}  // namespace ff
