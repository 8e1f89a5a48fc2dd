// What is read off atoms in the atom37 layout: torsion angles, rigid groups, the atom14 layout and
// the pseudo beta carbon.
#pragma once

#include "core/tensor/tensor.h"

namespace ff {

struct Torsions {
  Tensor sin_cos;      ///< [n_res, 7, 2] f32: omega before, phi, psi, chi1 to chi4
  Tensor alt_sin_cos;  ///< the same with the chi angles of symmetric ends turned by pi
  Tensor mask;         ///< [n_res, 7] f32: the angle exists and its four atoms are there
};

/// Torsion angles as AlphaFold's atom37_to_torsion_angles has them: missing atoms enter with the
/// coordinates given, so that an angle whose mask is 0 has no meaning (it is 0, 0 where all its
/// atoms coincide).
/// - aatype: [n_res] i32, above 20 counts as unknown
/// - positions: [n_res, 37, 3] f32, angstrom
/// - mask: [n_res, 37] f32, 1 = there
///
/// Throws Exit::kInput on other shapes or a negative aatype.
Torsions atom37_to_torsions(const Tensor& aatype, const Tensor& positions, const Tensor& mask);

/// CB, or CA of glycine: [n_res, 3] f32 of positions [n_res, 37, 3] f32 or f64.
Tensor pseudo_beta(const Tensor& aatype, const Tensor& positions);

/// 1 where the atom of pseudo_beta is there: [n_res] f32 of mask [n_res, 37] f32.
Tensor pseudo_beta_mask(const Tensor& aatype, const Tensor& mask);

/// The frames of a residue's eight rigid groups.
struct RigidGroups {
  Tensor frames;        ///< [n_res, 8, 12] f32: rotation row-major, then translation in angstrom
  Tensor alt_frames;    ///< the same with the ends that look alike turned by pi
  Tensor exists;        ///< [n_res, 8] f32: the group exists and its three atoms are there
  Tensor group_exists;  ///< [n_res, 8] f32: residues of this type have the group
  Tensor is_ambiguous;  ///< [n_res, 8] f32: its end looks alike when turned by pi
};

/// AlphaFold's atom37_to_frames; a frame whose `exists` is 0 has no meaning. Arguments and errors
/// as atom37_to_torsions.
RigidGroups atom37_to_frames(const Tensor& aatype, const Tensor& positions, const Tensor& mask);

/// The backbone's frame, the first of `groups`: [n_res, 7] f32, a quaternion w >= 0, x, y, z and
/// the translation in angstrom; no rotation where the backbone is incomplete.
Tensor backbone_affine(const RigidGroups& groups);

/// The place in the atom14 layout of the atom that cannot be told from this one (OD1 and OD2 of
/// aspartate, OE1 and OE2 of glutamate, CD and CE of phenylalanine and tyrosine); itself for
/// others.
int alternative_atom14(int aatype, int atom);

/// Positions in the atom14 layout.
struct Atom14 {
  Tensor positions, exists;          ///< [n_res, 14, 3] f32 angstrom, zero if missing; [n_res, 14]
  Tensor alt_positions, alt_exists;  ///< with the names of atoms that look alike exchanged
  Tensor is_ambiguous;               ///< [n_res, 14] f32: the atom has such a double
};

/// Arguments and errors as atom37_to_torsions.
Atom14 atom37_to_atom14(const Tensor& aatype, const Tensor& positions, const Tensor& mask);

}  // namespace ff
