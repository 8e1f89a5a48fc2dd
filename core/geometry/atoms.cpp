// Torsion angles, rigid groups, atom14 and the pseudo beta carbon, from atom37 positions.
#include "core/geometry/atoms.h"

#include <algorithm>
#include <cmath>
#include <string>

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

void check_atoms(const char* what, const Tensor& aatype, const Tensor& positions,
                 const Tensor& mask) {
  const int64_t n = aatype.numel();
  check_input(positions.shape() == Dims{n, kAtom37, 3} && mask.shape() == Dims{n, kAtom37} &&
                  aatype.rank() == 1,
              what, ": aatype ", aatype.shape().str(), ", positions ", positions.shape().str(),
              ", mask ", mask.shape().str(), ", expected [n_res], [n_res, 37, 3], [n_res, 37]");
}

int known_type(int32_t given) {
  check_input(given >= 0, "aatype holds ", given, ", expected 0 to 21");
  return std::min<int32_t>(given, kUnknownRestype);
}

}  // namespace

Torsions atom37_to_torsions(const Tensor& aatype, const Tensor& positions, const Tensor& mask) {
  check_atoms("torsion angles", aatype, positions, mask);
  const int64_t n = aatype.numel();
  const Tensor type = aatype.contiguous(), atoms = positions.contiguous(),
               there = mask.contiguous();
  const ResidueConstants& constants = residue_constants();
  Torsions out{Tensor::empty({n, 7, 2}), Tensor::empty({n, 7, 2}), Tensor::empty({n, 7})};
  for (int64_t i = 0; i < n; ++i) {
    const int a = known_type(type.data<int32_t>()[i]);
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

Tensor pseudo_beta_mask(const Tensor& aatype, const Tensor& mask) {
  const int64_t n = aatype.numel();
  check_input(mask.shape() == Dims{n, kAtom37}, "pseudo beta: mask ", mask.shape().str(), " for ",
              n, " residues");
  const Tensor type = aatype.contiguous(), there = mask.contiguous(), out = Tensor::empty({n});
  for (int64_t i = 0; i < n; ++i)
    out.data<float>()[i] =
        there.data<float>()[i * kAtom37 + (type.data<int32_t>()[i] == kGly ? kAtomCa : kAtomCb)];
  return out;
}

RigidGroups atom37_to_frames(const Tensor& aatype, const Tensor& positions, const Tensor& mask) {
  check_atoms("rigid groups", aatype, positions, mask);
  const int64_t n = aatype.numel();
  const Tensor type = aatype.contiguous(), atoms = positions.contiguous(),
               there = mask.contiguous();
  const ResidueConstants& constants = residue_constants();
  const Dims per_group{n, kRigidGroups};
  RigidGroups out{Tensor::empty({n, kRigidGroups, 12}), Tensor::empty({n, kRigidGroups, 12}),
                  Tensor::empty(per_group), Tensor::empty(per_group), Tensor::empty(per_group)};
  for (int64_t i = 0; i < n; ++i) {
    const int a = known_type(type.data<int32_t>()[i]);
    for (int g = 0; g < kRigidGroups; ++g) {
      // On the negative x axis, the origin, in the xy plane; the N of groups that do not exist.
      std::array<int, 3> base{};
      float exists = g == 0 || g == 3, ambiguous = 0;
      if (g == 0)
        base = {kAtomC, kAtomCa, kAtomN};
      else if (g == 3)
        base = {kAtomCa, kAtomC, kAtomO};
      else if (g >= 4) {
        exists = constants.chi_angles_mask[a][g - 4];
        ambiguous = constants.chi_pi_periodic[a][g - 4];
        for (size_t k = 0; k < 3; ++k) base[k] = constants.chi_atom_indices[a][g - 4][k + 1];
      }
      std::array<Vec3, 3> p;
      float seen = 1;
      for (size_t k = 0; k < 3; ++k) {
        const int64_t at = i * kAtom37 + base[k];
        seen = std::min(seen, there.data<float>()[at]);
        for (size_t x = 0; x < 3; ++x) p[k][x] = atoms.data<float>()[3 * at + int64_t(x)];
      }
      const Rigid frame = frame_from_vectors(p[1] - p[0], p[2] - p[1], p[1], 1e-8);
      const int64_t at = i * kRigidGroups + g;
      float *to = out.frames.data<float>() + 12 * at, *alt = out.alt_frames.data<float>() + 12 * at;
      for (size_t k = 0; k < 9; ++k) {
        // The backbone's frame has C on its positive x axis.
        const double value = g == 0 && k % 3 != 1 ? -frame.rot[k] : frame.rot[k];
        to[k] = float(value);
        alt[k] = float(ambiguous > 0 && k % 3 != 0 ? -value : value);
      }
      for (size_t k = 0; k < 3; ++k) to[9 + k] = alt[9 + k] = float(frame.trans[k]);
      out.exists.data<float>()[at] = seen * exists;
      out.group_exists.data<float>()[at] = exists;
      out.is_ambiguous.data<float>()[at] = ambiguous;
    }
  }
  return out;
}

Tensor backbone_affine(const RigidGroups& groups) {
  const int64_t n = groups.frames.size(0);
  const Tensor out = Tensor::zeros({n, 7});
  for (int64_t i = 0; i < n; ++i) {
    const float* frame = groups.frames.data<float>() + i * kRigidGroups * 12;
    float* to = out.data<float>() + 7 * i;
    std::array<double, 9> rot{};
    if (groups.exists.data<float>()[i * kRigidGroups] > 0) std::copy_n(frame, 9, rot.begin());
    std::copy_n(quaternion(rot).begin(), 4, to);
    std::copy_n(frame + 9, 3, to + 4);
  }
  return out;
}

int alternative_atom14(int aatype, int atom) {
  const ResidueConstants& constants = residue_constants();
  const auto& names = constants.atom14_names[aatype];
  const int group = constants.atom14_to_rigid_group[aatype][atom];
  if (names[atom].empty() || group < 4 || constants.chi_pi_periodic[aatype][group - 4] == 0)
    return atom;
  // The two are named alike but for their number.
  std::string other(names[atom]);
  if (other.back() != '1' && other.back() != '2') return atom;
  other.back() = char('1' + '2' - other.back());
  return int(std::find(names, names + kAtom14, other) - names);
}

Atom14 atom37_to_atom14(const Tensor& aatype, const Tensor& positions, const Tensor& mask) {
  check_atoms("atom14", aatype, positions, mask);
  const int64_t n = aatype.numel();
  const Tensor type = aatype.contiguous(), atoms = positions.contiguous(),
               there = mask.contiguous();
  const ResidueConstants& constants = residue_constants();
  const Dims xyz{n, kAtom14, 3}, flags{n, kAtom14};
  Atom14 out{Tensor::zeros(xyz), Tensor::zeros(flags), Tensor::zeros(xyz), Tensor::zeros(flags),
             Tensor::zeros(flags)};
  for (int64_t i = 0; i < n; ++i) {
    const int a = known_type(type.data<int32_t>()[i]);
    for (int k = 0; k < kAtom14; ++k) {
      const int alt = alternative_atom14(a, k);
      const int64_t to = i * kAtom14 + k, alt_to = i * kAtom14 + alt,
                    from = i * kAtom37 + constants.atom14_to_atom37[a][k];
      out.is_ambiguous.data<float>()[to] = alt != k;
      const float exists = constants.atom14_mask[a][k] * there.data<float>()[from];
      out.exists.data<float>()[to] = out.alt_exists.data<float>()[alt_to] = exists;
      for (int x = 0; x < 3; ++x)
        out.positions.data<float>()[3 * to + x] = out.alt_positions.data<float>()[3 * alt_to + x] =
            exists * atoms.data<float>()[3 * from + x];
    }
  }
  return out;
}

}  // namespace ff
