// Residue constants: the table of literature positions and the arrays derived from it.
#include "core/geometry/residue_constants.h"

#include <array>
#include <cmath>

namespace ff {
namespace {

struct Atom {
  std::string_view name;
  int group;
  double position[3];
};

struct Residue {
  std::string_view name;
  /// The chain of atoms whose windows of four define chi1, chi2, ...
  std::string_view chi_chain;
  /// In the atom14 layout's order; positions relative to the end of the group's rotation axis: x
  /// along the axis, the atom that defines the angle in the xy-plane with positive y.
  Atom atoms[kAtom14];
};

// The groups of Jumper et al. 2021, Suppl. Table 2, with AlphaFold's ideal geometry.
// clang-format off
constexpr Residue kResidues[kRestypes] = {
    {"ALA", "",
     {{"N", 0, -0.525, 1.363, 0}, {"CA", 0, 0, 0, 0}, {"C", 0, 1.526, 0, 0},
      {"O", 3, 0.627, 1.062, 0}, {"CB", 0, -0.529, -0.774, -1.205}}},
    {"ARG", "N CA CB CG CD NE CZ",
     {{"N", 0, -0.524, 1.362, 0}, {"CA", 0, 0, 0, 0}, {"C", 0, 1.525, 0, 0},
      {"O", 3, 0.626, 1.062, 0}, {"CB", 0, -0.524, -0.778, -1.209}, {"CG", 4, 0.616, 1.39, 0},
      {"CD", 5, 0.564, 1.414, 0}, {"NE", 6, 0.539, 1.357, 0}, {"CZ", 7, 0.758, 1.093, 0},
      {"NH1", 7, 0.206, 2.301, 0}, {"NH2", 7, 2.078, 0.978, 0}}},
    {"ASN", "N CA CB CG OD1",
     {{"N", 0, -0.536, 1.357, 0}, {"CA", 0, 0, 0, 0}, {"C", 0, 1.526, 0, 0},
      {"O", 3, 0.625, 1.062, 0}, {"CB", 0, -0.531, -0.787, -1.2}, {"CG", 4, 0.584, 1.399, 0},
      {"OD1", 5, 0.633, 1.059, 0}, {"ND2", 5, 0.593, -1.188, 0.001}}},
    {"ASP", "N CA CB CG OD1",
     {{"N", 0, -0.525, 1.362, 0}, {"CA", 0, 0, 0, 0}, {"C", 0, 1.527, 0, 0},
      {"O", 3, 0.626, 1.062, 0}, {"CB", 0, -0.526, -0.778, -1.208},
      {"CG", 4, 0.593, 1.398, 0}, {"OD1", 5, 0.61, 1.091, 0},
      {"OD2", 5, 0.592, -1.101, -0.003}}},
    {"CYS", "N CA CB SG",
     {{"N", 0, -0.522, 1.362, 0}, {"CA", 0, 0, 0, 0}, {"C", 0, 1.524, 0, 0},
      {"O", 3, 0.625, 1.062, 0}, {"CB", 0, -0.519, -0.773, -1.212}, {"SG", 4, 0.728, 1.653, 0}}},
    {"GLN", "N CA CB CG CD OE1",
     {{"N", 0, -0.526, 1.361, 0}, {"CA", 0, 0, 0, 0}, {"C", 0, 1.526, 0, 0},
      {"O", 3, 0.626, 1.062, 0}, {"CB", 0, -0.525, -0.779, -1.207},
      {"CG", 4, 0.615, 1.393, 0}, {"CD", 5, 0.587, 1.399, 0}, {"OE1", 6, 0.634, 1.06, 0},
      {"NE2", 6, 0.593, -1.189, -0.001}}},
    {"GLU", "N CA CB CG CD OE1",
     {{"N", 0, -0.528, 1.361, 0}, {"CA", 0, 0, 0, 0}, {"C", 0, 1.526, 0, 0},
      {"O", 3, 0.626, 1.062, 0}, {"CB", 0, -0.526, -0.781, -1.207},
      {"CG", 4, 0.615, 1.392, 0}, {"CD", 5, 0.6, 1.397, 0}, {"OE1", 6, 0.607, 1.095, 0},
      {"OE2", 6, 0.589, -1.104, -0.001}}},
    {"GLY", "",
     {{"N", 0, -0.572, 1.337, 0}, {"CA", 0, 0, 0, 0}, {"C", 0, 1.517, 0, 0},
      {"O", 3, 0.626, 1.062, 0}}},
    {"HIS", "N CA CB CG ND1",
     {{"N", 0, -0.527, 1.36, 0}, {"CA", 0, 0, 0, 0}, {"C", 0, 1.525, 0, 0},
      {"O", 3, 0.625, 1.063, 0}, {"CB", 0, -0.525, -0.778, -1.208}, {"CG", 4, 0.6, 1.37, 0},
      {"ND1", 5, 0.744, 1.16, 0}, {"CD2", 5, 0.889, -1.021, 0.003},
      {"CE1", 5, 2.03, 0.851, 0.002}, {"NE2", 5, 2.145, -0.466, 0.004}}},
    {"ILE", "N CA CB CG1 CD1",
     {{"N", 0, -0.493, 1.373, 0}, {"CA", 0, 0, 0, 0}, {"C", 0, 1.527, 0, 0},
      {"O", 3, 0.627, 1.062, 0}, {"CB", 0, -0.536, -0.793, -1.213},
      {"CG1", 4, 0.534, 1.437, 0}, {"CG2", 4, 0.54, -0.785, -1.199},
      {"CD1", 5, 0.619, 1.391, 0}}},
    {"LEU", "N CA CB CG CD1",
     {{"N", 0, -0.52, 1.363, 0}, {"CA", 0, 0, 0, 0}, {"C", 0, 1.525, 0, 0},
      {"O", 3, 0.625, 1.063, 0}, {"CB", 0, -0.522, -0.773, -1.214},
      {"CG", 4, 0.678, 1.371, 0}, {"CD1", 5, 0.53, 1.43, 0}, {"CD2", 5, 0.535, -0.774, 1.2}}},
    {"LYS", "N CA CB CG CD CE NZ",
     {{"N", 0, -0.526, 1.362, 0}, {"CA", 0, 0, 0, 0}, {"C", 0, 1.526, 0, 0},
      {"O", 3, 0.626, 1.062, 0}, {"CB", 0, -0.524, -0.778, -1.208}, {"CG", 4, 0.619, 1.39, 0},
      {"CD", 5, 0.559, 1.417, 0}, {"CE", 6, 0.56, 1.416, 0}, {"NZ", 7, 0.554, 1.387, 0}}},
    {"MET", "N CA CB CG SD CE",
     {{"N", 0, -0.521, 1.364, 0}, {"CA", 0, 0, 0, 0}, {"C", 0, 1.525, 0, 0},
      {"O", 3, 0.625, 1.062, 0}, {"CB", 0, -0.523, -0.776, -1.21}, {"CG", 4, 0.613, 1.391, 0},
      {"SD", 5, 0.703, 1.695, 0}, {"CE", 6, 0.32, 1.786, 0}}},
    {"PHE", "N CA CB CG CD1",
     {{"N", 0, -0.518, 1.363, 0}, {"CA", 0, 0, 0, 0}, {"C", 0, 1.524, 0, 0},
      {"O", 3, 0.626, 1.062, 0}, {"CB", 0, -0.525, -0.776, -1.212},
      {"CG", 4, 0.607, 1.377, 0}, {"CD1", 5, 0.709, 1.195, 0}, {"CD2", 5, 0.706, -1.196, 0},
      {"CE1", 5, 2.102, 1.198, 0}, {"CE2", 5, 2.098, -1.201, 0},
      {"CZ", 5, 2.794, -0.003, -0.001}}},
    {"PRO", "N CA CB CG CD",
     {{"N", 0, -0.566, 1.351, 0}, {"CA", 0, 0, 0, 0}, {"C", 0, 1.527, 0, 0},
      {"O", 3, 0.621, 1.066, 0}, {"CB", 0, -0.546, -0.611, -1.293},
      {"CG", 4, 0.382, 1.445, 0}, {"CD", 5, 0.477, 1.424, 0}}},
    {"SER", "N CA CB OG",
     {{"N", 0, -0.529, 1.36, 0}, {"CA", 0, 0, 0, 0}, {"C", 0, 1.525, 0, 0},
      {"O", 3, 0.626, 1.062, 0}, {"CB", 0, -0.518, -0.777, -1.211}, {"OG", 4, 0.503, 1.325, 0}}},
    {"THR", "N CA CB OG1",
     {{"N", 0, -0.517, 1.364, 0}, {"CA", 0, 0, 0, 0}, {"C", 0, 1.526, 0, 0},
      {"O", 3, 0.626, 1.062, 0}, {"CB", 0, -0.516, -0.793, -1.215},
      {"OG1", 4, 0.472, 1.353, 0}, {"CG2", 4, 0.55, -0.718, -1.228}}},
    {"TRP", "N CA CB CG CD1",
     {{"N", 0, -0.521, 1.363, 0}, {"CA", 0, 0, 0, 0}, {"C", 0, 1.525, 0, 0},
      {"O", 3, 0.627, 1.062, 0}, {"CB", 0, -0.523, -0.776, -1.212}, {"CG", 4, 0.609, 1.37, 0},
      {"CD1", 5, 0.824, 1.091, 0}, {"CD2", 5, 0.854, -1.148, -0.005},
      {"NE1", 5, 2.14, 0.69, -0.004}, {"CE2", 5, 2.186, -0.678, -0.007},
      {"CE3", 5, 0.622, -2.53, -0.007}, {"CZ2", 5, 3.283, -1.543, -0.011},
      {"CZ3", 5, 1.715, -3.389, -0.011}, {"CH2", 5, 3.028, -2.89, -0.013}}},
    {"TYR", "N CA CB CG CD1",
     {{"N", 0, -0.522, 1.362, 0}, {"CA", 0, 0, 0, 0}, {"C", 0, 1.524, 0, 0},
      {"O", 3, 0.627, 1.062, 0}, {"CB", 0, -0.522, -0.776, -1.213},
      {"CG", 4, 0.607, 1.382, 0}, {"CD1", 5, 0.716, 1.195, 0},
      {"CD2", 5, 0.713, -1.194, -0.001}, {"CE1", 5, 2.107, 1.2, -0.002},
      {"CE2", 5, 2.104, -1.201, -0.003}, {"CZ", 5, 2.791, -0.001, -0.003},
      {"OH", 5, 4.168, -0.002, -0.005}}},
    {"VAL", "N CA CB CG1",
     {{"N", 0, -0.494, 1.373, 0}, {"CA", 0, 0, 0, 0}, {"C", 0, 1.527, 0, 0},
      {"O", 3, 0.627, 1.062, 0}, {"CB", 0, -0.533, -0.795, -1.213},
      {"CG1", 4, 0.54, 1.429, 0}, {"CG2", 4, 0.533, -0.776, 1.203}}},
};
// clang-format on

using Vec = std::array<double, 3>;

Vec minus(const Vec& a, const Vec& b) { return {a[0] - b[0], a[1] - b[1], a[2] - b[2]}; }
double dot(const Vec& a, const Vec& b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
Vec scaled(const Vec& a, double s) { return {a[0] * s, a[1] * s, a[2] * s}; }
Vec normalized(const Vec& a) { return scaled(a, 1 / std::sqrt(dot(a, a))); }
Vec cross(const Vec& a, const Vec& b) {
  return {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]};
}

/// The frame at `origin` with x along `ex` and `ey` in the xy-plane.
void set_frame(float (&m)[4][4], const Vec& ex, const Vec& ey, const Vec& origin) {
  const Vec x = normalized(ex);
  const Vec y = normalized(minus(ey, scaled(x, dot(ey, x))));
  const Vec z = cross(x, y);
  for (int i = 0; i < 3; ++i) {
    m[i][0] = float(x[i]);
    m[i][1] = float(y[i]);
    m[i][2] = float(z[i]);
    m[i][3] = float(origin[i]);
  }
  m[3][3] = 1;
}

void set_residue(ResidueConstants& c, const Residue& residue) {
  const int r = restype_index(residue.name);
  Vec position[kAtom37] = {};
  for (int a = 0; a < kAtom14; ++a) {
    const Atom& atom = residue.atoms[a];
    if (atom.name.empty()) break;
    const int a37 = atom37_index(atom.name);
    position[a37] = {atom.position[0], atom.position[1], atom.position[2]};
    c.atom14_names[r][a] = atom.name;
    c.atom14_to_atom37[r][a] = a37;
    c.atom37_to_atom14[r][a37] = a;
    c.atom14_mask[r][a] = c.atom37_mask[r][a37] = 1;
    c.atom14_to_rigid_group[r][a] = atom.group;
    for (int i = 0; i < 3; ++i) c.atom14_rigid_group_positions[r][a][i] = float(atom.position[i]);
  }

  int chain[7], n_chain = 0;
  for (std::string_view rest = residue.chi_chain; !rest.empty();) {
    const auto space = rest.find(' ');
    chain[n_chain++] = atom37_index(rest.substr(0, space));
    rest = space == std::string_view::npos ? std::string_view() : rest.substr(space + 1);
  }

  auto& frame = c.rigid_group_default_frame[r];
  for (int i = 0; i < 4; ++i) frame[0][i][i] = frame[1][i][i] = 1;
  const Vec n = position[kAtomN], ca = position[kAtomCa], cc = position[kAtomC];
  set_frame(frame[2], minus(n, ca), {1, 0, 0}, n);
  set_frame(frame[3], minus(cc, ca), minus(ca, n), cc);
  for (int chi = 0; chi + 4 <= n_chain; ++chi) {
    c.chi_angles_mask[r][chi] = 1;
    for (int i = 0; i < 4; ++i) c.chi_atom_indices[r][chi][i] = chain[chi + i];
    // Every axis after the first starts at the origin of the group before.
    const Vec end = position[chain[chi + 2]], base = position[chain[chi + 1]];
    if (chi == 0)
      set_frame(frame[4], minus(end, base), minus(position[chain[0]], base), end);
    else
      set_frame(frame[4 + chi], end, {-1, 0, 0}, end);
  }
}

}  // namespace

const ResidueConstants& residue_constants() {
  static const ResidueConstants constants = [] {
    ResidueConstants c{};
    for (const Residue& residue : kResidues) set_residue(c, residue);
    for (std::string_view name : {"ASP", "PHE", "TYR"})
      c.chi_pi_periodic[restype_index(name)][1] = 1;
    c.chi_pi_periodic[restype_index("GLU")][2] = 1;
    return c;
  }();
  return constants;
}

}  // namespace ff
