// Writes predicted structures.
#pragma once

#include <string>

#include "core/tensor/tensor.h"

namespace ff {

struct PredictedStructure {
  Tensor aatype;     ///< [n_res] i32, 20 = unknown
  Tensor positions;  ///< [n_res, 37, 3] f32, angstrom
  Tensor mask;       ///< [n_res, 37] f32, an atom is there from 0.5 on
  Tensor b_factors;  ///< [n_res] f32, pLDDT 0 to 100
  std::string chain = "A";
};

/// The structure in PDB format as AlphaFold writes it: one model, residues numbered from 1, atoms
/// in the atom37 order, TER, ENDMDL and END, lines of 80 columns. Throws Exit::kInput when it does
/// not fit the format (more than 9,999 residues or 99,999 atoms) and Exit::kBug on positions that
/// are not finite or beyond its columns.
std::string to_pdb(const PredictedStructure& structure);

}  // namespace ff
