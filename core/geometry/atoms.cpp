// Torsion angles and the pseudo beta carbon, from atom37 positions.
#include "core/geometry/atoms.h"

#include <algorithm>
#include <cmath>

#include "core/geometry/residue_constants.h"
#include "core/geometry/rigid.h"

namespace ff {
namespace {

/// An atom of this residue or, `previous`, of the one before.
struct AtomRef {
  int atom;
  bool previous = false;
};

using Quad = std::array<AtomRef, 4>;

constexpr Quad kBackboneQuads[3] = {
    {{{kAtomCa, true}, {kAtomC, true}, {kAtomN}, {kAtomCa}}},  // omega before
    {{{kAtomC, true}, {kAtomN}, {kAtomCa}, {kAtomC}}},         // phi
    {{{kAtomN}, {kAtomCa}, {kAtomC}, {kAtomO}}},               // psi, by O on the other side
};

/// Sine and cosine of the torsion about p[1]-p[2].
std::array<double, 2> torsion(const std::array<Vec3, 4>& p) {
  const Rigid frame = frame_from_vectors(p[2] - p[1], p[0] - p[2], p[2], 1e-8);
  const Vec3 end = to_local(frame, p[3]);
  const double length = std::sqrt(end[2] * end[2] + end[1] * end[1] + 1e-8);
  return {end[2] / length, end[1] / length};
}

}  // namespace

Torsions atom37_to_torsions(const Tensor& aatype, const Tensor& positions, const Tensor& mask) {
  const int64_t n = aatype.numel();
  check_input(positions.shape() == Dims{n, kAtom37, 3} && mask.shape() == Dims{n, kAtom37} &&
                  aatype.rank() == 1,
              "torsion angles: aatype ", aatype.shape().str(), ", positions ",
              positions.shape().str(), ", mask ", mask.shape().str(),
              ", expected [n_res], [n_res, 37, 3], [n_res, 37]");
  const Tensor type = aatype.contiguous(), atoms = positions.contiguous(),
               there = mask.contiguous();
  const ResidueConstants& constants = residue_constants();
  Torsions out{Tensor::empty({n, 7, 2}), Tensor::empty({n, 7, 2}), Tensor::empty({n, 7})};
  for (int64_t i = 0; i < n; ++i) {
    const int32_t given = type.data<int32_t>()[i];
    check_input(given >= 0, "aatype holds ", given, ", expected 0 to 21");
    const int a = std::min<int32_t>(given, kUnknownRestype);
    for (int k = 0; k < 7; ++k) {
      Quad quad{};
      if (k < 3)
        quad = kBackboneQuads[k];
      else
        for (int p = 0; p < 4; ++p) quad[p].atom = constants.chi_atom_indices[a][k - 3][p];
      double exists = k < 3 ? 1 : constants.chi_angles_mask[a][k - 3];
      std::array<Vec3, 4> p{};  // before the first residue: zeros, which do not exist
      for (int q = 0; q < 4; ++q) {
        const int64_t residue = i - quad[q].previous;
        if (residue < 0) {
          exists = 0;
          continue;
        }
        const int64_t at = residue * kAtom37 + quad[q].atom;
        exists *= there.data<float>()[at];
        for (int x = 0; x < 3; ++x) p[q][x] = atoms.data<float>()[3 * at + x];
      }
      const std::array<double, 2> angle = torsion(p);
      const double side = k == 2 ? -1 : 1;
      const double turn = k >= 3 && constants.chi_pi_periodic[a][k - 3] > 0 ? -1 : 1;
      for (int s = 0; s < 2; ++s) {
        out.sin_cos.data<float>()[(i * 7 + k) * 2 + s] = float(side * angle[s]);
        out.alt_sin_cos.data<float>()[(i * 7 + k) * 2 + s] = float(turn * side * angle[s]);
      }
      out.mask.data<float>()[i * 7 + k] = float(exists);
    }
  }
  return out;
}

Tensor pseudo_beta(const Tensor& aatype, const Tensor& positions) {
  const int64_t n = aatype.numel();
  check_input(positions.shape() == Dims{n, kAtom37, 3}, "pseudo beta: positions ",
              positions.shape().str(), " for ", n, " residues");
  const Tensor type = aatype.contiguous(), out = Tensor::empty({n, 3});
  for (int64_t i = 0; i < n; ++i) {
    const int atom = type.data<int32_t>()[i] == kGly ? kAtomCa : kAtomCb;
    out.select(0, i).copy_from(positions.select(0, i).select(0, atom));
  }
  return out;
}

}  // namespace ff
