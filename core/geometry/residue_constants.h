// Residue constants: the 20 amino acids, their atoms in the two layouts (atom37, atom14), their
// rigid groups and chi angles. Jumper et al. 2021, Suppl. Table 2 and Alg. 24.
#pragma once

#include <cstdint>
#include <string_view>

namespace ff {

constexpr int kRestypes = 20;                  ///< standard amino acids; index 20 is unknown, 'X'
constexpr int kUnknownRestype = kRestypes;     ///< 'X', "UNK"
constexpr int kGapRestype = kRestypes + 1;     ///< '-', in alignments only
constexpr int kMaskRestype = kRestypes + 2;    ///< the [MASK] of the masked MSA
constexpr int kMsaLetters = kMaskRestype;      ///< amino acids, X, gap
constexpr int kMsaClasses = kMaskRestype + 1;  ///< and the mask
constexpr int kAtom37 = 37;
constexpr int kAtom14 = 14;
/// 0 backbone, 1 pre-omega, 2 phi, 3 psi, 4..7 chi1..chi4.
constexpr int kRigidGroups = 8;

/// One letter by index, with X and the gap.
constexpr std::string_view kRestypeLetters = "ARNDCQEGHILKMFPSTWYVX-";
/// Three letters by index, UNK last.
constexpr std::string_view kRestypeNames[kRestypes + 1] = {
    "ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE", "LEU",
    "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL", "UNK"};
/// The atom37 layout; atoms of every residue stand at the same places.
constexpr std::string_view kAtomNames[kAtom37] = {
    "N",   "CA",  "C",   "CB",  "O",   "CG", "CG1", "CG2", "OG",  "OG1", "SG", "CD",  "CD1",
    "CD2", "ND1", "ND2", "OD1", "OD2", "SD", "CE",  "CE1", "CE2", "CE3", "NE", "NE1", "NE2",
    "OE1", "OE2", "CH2", "NH1", "NH2", "OH", "CZ",  "CZ2", "CZ3", "NZ",  "OXT"};
/// Places in the atom37 layout.
constexpr int kAtomN = 0, kAtomCa = 1, kAtomC = 2, kAtomCb = 3, kAtomO = 4;
constexpr int kGly = 7;

/// The alignment's alphabet (HHblits): the letters by index. B, Z, U, J and O have no index of
/// their own: see hhblits_id.
constexpr std::string_view kHhblitsLetters = "ACDEFGHIKLMNPQRSTVWYX-";

/// Everything derived from the table of literature positions. Rows: 20 amino acids, then UNK, which
/// has no atoms. Positions in angstrom, in the atom's rigid group.
struct ResidueConstants {
  /// Names by atom14 place; empty where there is no atom.
  std::string_view atom14_names[21][kAtom14];
  int32_t atom14_to_atom37[21][kAtom14];  ///< 0 where there is no atom
  int32_t atom37_to_atom14[21][kAtom37];  ///< 0 where there is no atom
  float atom14_mask[21][kAtom14];
  float atom37_mask[21][kAtom37];
  int32_t atom14_to_rigid_group[21][kAtom14];
  float atom14_rigid_group_positions[21][kAtom14][3];
  /// Each group to its parent (backbone; for chi2..chi4 the chi before), all angles at zero; 4x4
  /// row-major. Zero where the group does not exist.
  float rigid_group_default_frame[21][kRigidGroups][4][4];
  float chi_angles_mask[21][4];
  float chi_pi_periodic[21][4];        ///< 1 where a turn by pi changes nothing
  int32_t chi_atom_indices[21][4][4];  ///< atom37 places; 0 where there is no such angle
};

/// Built at first use; safe to call from any thread.
const ResidueConstants& residue_constants();

/// Index of a one-letter code, kUnknownRestype for any other character.
constexpr int restype_index(char letter) {
  const auto i = kRestypeLetters.substr(0, kRestypes).find(letter);
  return i == std::string_view::npos ? kUnknownRestype : int(i);
}

/// Index of a three-letter name, kUnknownRestype for any other.
constexpr int restype_index(std::string_view name) {
  for (int i = 0; i < kRestypes; ++i)
    if (kRestypeNames[i] == name) return i;
  return kUnknownRestype;
}

/// Place of an atom's name in the atom37 layout, -1 for any other.
constexpr int atom37_index(std::string_view name) {
  for (int i = 0; i < kAtom37; ++i)
    if (kAtomNames[i] == name) return i;
  return -1;
}

/// Index in kHhblitsLetters, with B as D, Z as E, U as C, J and O as X; -1 for any other character.
constexpr int hhblits_id(char letter) {
  constexpr std::string_view kFrom = "BZUJO", kTo = "DECXX";
  if (const auto i = kFrom.find(letter); i != std::string_view::npos) letter = kTo[i];
  const auto i = kHhblitsLetters.find(letter);
  return i == std::string_view::npos ? -1 : int(i);
}

/// From the alignment's alphabet to ours: X stays 20, the gap 21.
constexpr int hhblits_to_restype(int id) { return int(kRestypeLetters.find(kHhblitsLetters[id])); }

}  // namespace ff
