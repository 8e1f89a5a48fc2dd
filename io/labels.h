// Labels: what the losses compare a prediction with, from a chain's atoms.
#pragma once

#include "core/tensor/arrays.h"
#include "io/structure_reader.h"

namespace ff {

/// AlphaFold's labels of a chain over its whole sequence, under AlphaFold's names; all f32 but
/// aatype and the residx maps, which are i32; lengths in angstrom, angles in radians:
///   aatype [n_res]; all_atom_positions [n_res, 37, 3], all_atom_mask [n_res, 37];
///   atom14_atom_exists, residx_atom14_to_atom37 [n_res, 14]; atom37_atom_exists,
///   residx_atom37_to_atom14 [n_res, 37];
///   rigidgroups_{gt,alt_gt}_frames [n_res, 8, 12], rigidgroups_{gt_exists, group_exists,
///   group_is_ambiguous} [n_res, 8] (atom37_to_frames);
///   torsion_angles_sin_cos, alt_torsion_angles_sin_cos [n_res, 7, 2], torsion_angles_mask
///   [n_res, 7] (atom37_to_torsions); chi_angles, alt_chi_angles, chi_mask [n_res, 4];
///   backbone_affine_tensor [n_res, 7], backbone_affine_mask [n_res];
///   atom14_{gt,alt_gt}_{positions, exists}, atom14_atom_is_ambiguous (atom37_to_atom14);
///   pseudo_beta [n_res, 3], pseudo_beta_mask [n_res]; resolution [], 0 unknown.
/// What belongs to atoms that were not seen is masked; a frame or angle under mask 0 has no
/// meaning.
Arrays make_labels(const ChainStructure& chain, double resolution);

}  // namespace ff
