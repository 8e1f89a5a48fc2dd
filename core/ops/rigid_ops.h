// Operations of the structure module on frames, torsions and atoms. All take contiguous f32 or f64
// tensors, return new ones and throw ff::Error on shape or dtype mismatch.
//
// affine [n_res, 7]      unit quaternion (w, x, y, z), then translation
// frames [n_res, 8, 12]  rotation row-major, then translation; groups as in residue_constants.h
// aatype [n_res] i32     0 to 20; a table's row (the caller has checked it)
#pragma once

#include "core/autograd/tape.h"

namespace ff {

/// Points [n_res, 3 * k] (all x, all y, all z) from each residue's frame to the global one.
Var apply_rigids(const Var& affine, const Var& points);

/// Composes each frame with a small one. Suppl. Alg. 23.
/// update [n_res, 6]: b, c, d of the quaternion (1, b, c, d), then a translation in the frame
///   q' = q (1, b, c, d) / |.|,  t' = t + R(q) u
Var update_backbone(const Var& affine, const Var& update);

/// Translations times `factor`.
Var scale_translation(const Var& affine, double factor);

/// The same frames; no gradient passes to the rotations. Suppl. Alg. 20 line 20.
Var stop_rotation_gradient(const Var& affine);

/// Rotation matrices and translations, [n_res, 12].
Var affine_frames(const Var& affine);

/// x [n_res, 14] as seven pairs over their lengths, sqrt(max(|.|^2, 1e-12)): sines and cosines
/// [n_res, 7, 2].
Var normalize_angles(const Var& x);

/// What amino acids are made of, as tensors on the model's device; residue_constants.h, f32.
struct AtomTables {
  Tensor default_frames;    ///< [21, 8, 4, 4]
  Tensor atom14_group;      ///< [21, 14] i32
  Tensor atom14_positions;  ///< [21, 14, 3] angstrom
  Tensor atom14_mask;       ///< [21, 14]
};

/// Frames of the eight rigid groups in the global frame. Suppl. Alg. 24 lines 1-10, Alg. 25.
/// affine with translations in angstrom; angles [n_res, 7, 2] (sin, cos): omega before, phi, psi,
/// chi1 to chi4.
Var torsions_to_frames(const Var& affine, const Var& angles, const Tensor& aatype,
                       const AtomTables& tables);

/// Every atom at its literature position in its group's frame: [n_res, 14, 3] angstrom, zero where
/// there is no atom. Suppl. Alg. 24 line 11.
Var frames_to_atom14(const Var& frames, const Tensor& aatype, const AtomTables& tables);

/// [n_res, 37, 3] from atoms [n_res, 14, 3]: index [n_res, 37] i32 (0 to 13), mask [n_res, 37] f32.
Var atom14_to_atom37(const Var& atoms, const Tensor& index, const Tensor& mask);

/// max(x, 0).
Var relu(const Var& x);

/// x[i, j] + x[j, i] of x [n, n, c].
Var symmetrize(const Var& x);

}  // namespace ff
