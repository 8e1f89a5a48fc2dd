// The structure module: single and pair representations to frames, torsions and atoms.
#pragma once

#include <vector>

#include "comm/dap.h"
#include "core/model/config.h"
#include "core/model/params.h"
#include "core/model/trace.h"
#include "core/ops/dropout.h"
#include "core/tensor/arrays.h"

namespace ff {

/// What one of the module's layers says; the losses read every layer.
struct FoldLayer {
  Var affine;               ///< [n_res, 7] unit quaternion, translation in angstrom
  Var unnormalized_angles;  ///< [n_res, 14]
  Var angles;               ///< [n_res, 7, 2] sine, cosine
  Var frames;               ///< [n_res, 8, 12]
  Var atoms;                ///< [n_res, 14, 3] angstrom
};

struct Fold {
  Var act;  ///< [n_res, num_channel], the last layer's
  std::vector<FoldLayer> layers;
};

/// All layers of the structure module. Jumper et al. 2021, Suppl. Alg. 20-25.
/// single [n_res, c_s], pair [own rows, n_res, c_z], f32 or f64 (one type, the parameters' too)
/// features: aatype [n_res] i32, 0 to 20; seq_mask [n_res]
/// Under several ranks the pair representation stays split: each attends for its own residues over
/// everybody's keys, points and frames, and the new single representation is joined.
/// Throws Exit::kInput on a missing feature or one of another shape or range.
Fold fold(const Scope& scope, const StructureConfig& config, const Var& single, const Var& pair,
          const Arrays& features, const Trace& trace, const DropoutStream& dropout = {},
          const Dap& dap = {});

/// `fold` as arrays: "structure_module/" with traj [num_layer, n_res, 7] (angstrom), sidechains/
/// {angles_sin_cos, unnormalized_angles_sin_cos [.., 7, 2], frames [.., 8, 12], atom_pos [.., 14,
/// 3]}, final_atom14_positions, final_atom14_mask, final_atom_positions [n_res, 37, 3],
/// final_atom_mask, final_affines; and "representations/structure_module". Needs
/// residx_atom37_to_atom14, atom37_atom_exists and atom14_atom_exists besides.
Arrays structure_module(const Scope& scope, const StructureConfig& config, const Var& single,
                        const Var& pair, const Arrays& features, const Trace& trace,
                        const DropoutStream& dropout = {}, const Dap& dap = {});

}  // namespace ff
