// Reads experimental structures, mmCIF or PDB: what was crystallised (SEQRES) and where its atoms
// were seen. AlphaFold's data/mmcif_parsing.py and templates._get_atom_positions.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/tensor/tensor.h"

namespace ff {

/// A protein chain over its whole sequence, the residues that were not seen included.
struct ChainStructure {
  std::string name;      ///< the authors' chain id
  std::string sequence;  ///< SEQRES in one-letter codes, a modified residue as its parent, else X
  Tensor positions;      ///< [n_res, 37, 3] f32, angstrom; zero where there is no atom
  Tensor mask;           ///< [n_res, 37] f32, 1 = the atom was seen
  /// [n_res] the highest B-factor of the residue's atoms (in predictions its confidence), else 0
  std::vector<float> b_factors = {};
};

struct StructureEntry {
  std::string release_date;     ///< YYYY-MM-DD, of the oldest revision; "" unknown (PDB files)
  std::string method;           ///< "x-ray diffraction", ...; "" unknown
  double resolution = 0;        ///< angstrom; 0 unknown
  bool several_models = false;  ///< others than the first were left out
  std::vector<ChainStructure> chains;  ///< proteins, by entity
};

/// The first model of a file, plain or gzip; mmCIF or PDB is told from the text. Of alternate
/// locations the one with the highest occupancy, selenium of MSE as SD, NH1 of arginine the one
/// nearer to CD. Without SEQRES (PDB) the sequence is that of the residues seen. Throws
/// Exit::kInput naming the file when it is damaged, holds no protein, or is larger than any entry
/// of the PDB.
StructureEntry read_structure(const std::string& path);

/// The same for a text; `name` stands for the file in errors.
StructureEntry parse_structure(std::string_view text, const std::string& name);

}  // namespace ff
