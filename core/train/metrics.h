// How close a predicted structure is to the experimental one: lDDT, GDT, TM-score, RMSD, dRMSD. All
// in double.
#pragma once

#include <span>
#include <vector>

#include "core/geometry/rigid.h"
#include "core/tensor/tensor.h"

namespace ff {

using Points = std::span<const Vec3>;  ///< angstrom

struct Superposition {
  Rigid motion;     ///< of the first points onto the second
  double rmsd = 0;  ///< angstrom, after it
};

/// The rigid motion with the smallest RMSD (Kabsch 1976, by the quaternion of Horn 1987). The
/// points correspond by their order; at least one.
Superposition superpose(Points moving, Points fixed);

/// Root mean square difference of the distances within each structure, over all pairs of points; 0
/// for a single point.
double drmsd(Points a, Points b);

struct Lddt {
  double global = 0;                ///< over all distances
  std::vector<double> per_residue;  ///< over those of a residue's points; 1 where it has none
};

/// lDDT (Mariani et al. 2013, without stereochemistry checks): of the distances under 15 angstrom
/// between the reference's points of different residues, the share that the prediction keeps to
/// within 0.5, 1, 2 and 4 angstrom, on average.
/// - residue: [n] ascending from 0, the points' residues
/// - known: [n] 0 = the prediction lacks the point, whose distances count as not kept
///
/// Between two C-alpha atoms a residue this is AlphaFold's lddt.py.
Lddt lddt(Points predicted, Points reference, std::span<const int32_t> residue,
          std::span<const uint8_t> known);

struct FitScores {
  double tm = 0, gdt_ts = 0, gdt_ha = 0;
};

/// TM-score, GDT-TS and GDT-HA of C-alpha atoms, the best over the superpositions that the program
/// TMscore tries (Zhang and Skolnick 2004): fragments of the chain, extended by what comes to lie
/// near. The sums are divided by `length`, the reference's number of residues, which also sets
/// TM-score's scale. At least one pair of points.
FitScores best_fit(Points predicted, Points reference, int64_t length);

/// A predicted chain against its reference.
struct ChainScores {
  double lddt_ca = 0, lddt = 0, gdt_ts = 0, gdt_ha = 0, tm = 0;  ///< 0 to 1, 1 = the same
  double rmsd = 0, drmsd = 0;       ///< of C-alpha atoms, angstrom, over the residues compared
  int64_t compared = 0;             ///< residues with a C-alpha atom in both
  int64_t reference = 0;            ///< residues with one in the reference
  std::vector<double> per_residue;  ///< [n_res] lDDT-CA; NaN where the reference has no C-alpha
};

/// Rows are the reference's residues; the prediction's stand in the rows they are compared with.
/// - aatype: [n_res] i32 of the prediction: which of its atoms look alike
/// - predicted, reference: [n_res, 37, 3] f32, angstrom; their masks [n_res, 37] f32
///
/// lDDT of all atoms takes, of the two ways to name a residue's atoms that look alike, the one that
/// agrees better with the atoms around them. What the prediction lacks counts against lDDT, GDT and
/// TM-score. Throws Exit::kInput on other shapes and where no residue can be compared.
ChainScores compare_chains(const Tensor& aatype, const Tensor& predicted,
                           const Tensor& predicted_mask, const Tensor& reference,
                           const Tensor& reference_mask);

}  // namespace ff
