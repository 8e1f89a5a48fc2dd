// What is read off atoms in the atom37 layout: torsion angles and the pseudo beta carbon.
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
/// atoms coincide). aatype    [n_res] i32   above 20 counts as unknown positions [n_res, 37, 3] f32
/// angstrom mask      [n_res, 37] f32, 1 = there Throws Exit::kInput on other shapes or a negative
/// aatype.
Torsions atom37_to_torsions(const Tensor& aatype, const Tensor& positions, const Tensor& mask);

/// CB, or CA of glycine: [n_res, 3] f32 of positions [n_res, 37, 3] f32 or f64.
Tensor pseudo_beta(const Tensor& aatype, const Tensor& positions);

}  // namespace ff
