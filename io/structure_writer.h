// Writes predicted structures: PDB and ModelCIF.
#pragma once

#include <string>

#include "io/prediction.h"

namespace ff {

/// The structure in PDB format as AlphaFold writes it: one model, chain A, residues numbered from
/// 1, atoms in the atom37 order, the B factor pLDDT, TER, ENDMDL and END, lines of 80 columns.
/// Throws Exit::kInput when it does not fit the format (see fits_pdb) and Exit::kBug on positions
/// that are not finite.
std::string to_pdb(const Prediction& prediction);

/// Whether the PDB format can hold it: at most 9,999 residues and 99,999 serial numbers, positions
/// between -999.999 and 9999.999 angstrom.
bool fits_pdb(const Prediction& prediction);

/// What a ModelCIF file says besides the structure.
struct ModelInfo {
  std::string entry;       ///< names the data block; characters other than [A-Za-z0-9_.-] become _
  std::string title;       ///< any text; characters beyond ASCII become ?
  int64_t rank = 0;        ///< among the target's predictions, 0 = best
  bool alignment = true;   ///< homologous sequences were used
  bool templates = false;  ///< structural templates were used
};

/// The structure as mmCIF with the ModelCIF extension (mmcif_ma.dic): one chain A, label and auth
/// numbers from 1, unknown residues as UNK, B factors and _ma_qa_metric_local pLDDT, the global
/// metrics pLDDT and pTM. Throws Exit::kBug on positions that are not finite.
std::string to_mmcif(const Prediction& prediction, const ModelInfo& info);

}  // namespace ff
