// Bond lengths and angles within residues: how close and how far two atoms of a residue may be.
#pragma once

#include "core/geometry/residue_constants.h"

namespace ff {

/// Bounds on the distances of a residue's atoms in the atom14 layout, angstrom; zero where an atom
/// does not exist. Row 20 (unknown) is zero.
struct DistanceBounds {
  float lower[21][kAtom14][kAtom14], upper[21][kAtom14][kAtom14];
};

/// Van der Waals radius of an element by its symbol's first letter (C, N, O, S), angstrom.
float van_der_waals_radius(char element);

/// Atoms that are not bonded: the sum of their van der Waals radii less `overlap_tolerance`, and no
/// upper bound (1e10). Atoms joined by a bond or an angle: the literature distance plus and minus
/// `tolerance_factor` standard deviations. Jumper et al. 2021, Suppl. 1.9.11; AlphaFold's
/// make_atom14_dists_bounds; lengths and angles of Engh & Huber.
DistanceBounds distance_bounds(double overlap_tolerance, double tolerance_factor);

}  // namespace ff
