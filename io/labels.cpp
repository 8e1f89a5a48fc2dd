// Labels by the functions of core/geometry, under AlphaFold's names.
#include "io/labels.h"

#include <algorithm>
#include <cmath>

#include "core/geometry/atoms.h"
#include "core/geometry/residue_constants.h"

namespace ff {
namespace {

/// The rows of a table [21, width] by residue type.
template <class T>
Tensor rows_of(const T* table, int64_t width, const Tensor& aatype) {
  const int64_t n = aatype.numel();
  const Tensor out = Tensor::empty({n, width}, dtype_of<T>());
  for (int64_t i = 0; i < n; ++i)
    std::copy_n(table + aatype.data<int32_t>()[i] * width, width, out.data<T>() + i * width);
  return out;
}

/// The angles of [n_res, 7, 2] that are chi angles, 0 where the mask is.
Tensor chi_of(const Tensor& sin_cos, const Tensor& mask) {
  const int64_t n = mask.size(0);
  const Tensor out = Tensor::empty({n, 4});
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < 4; ++k) {
      const float* angle = sin_cos.data<float>() + (i * 7 + 3 + k) * 2;
      out.data<float>()[i * 4 + k] =
          std::atan2(angle[0], angle[1]) * mask.data<float>()[i * 7 + 3 + k];
    }
  return out;
}

}  // namespace

Arrays make_labels(const ChainStructure& chain, double resolution) {
  const auto n = int64_t(chain.sequence.size());
  const Tensor aatype = Tensor::empty({n}, Dtype::i32);
  for (int64_t i = 0; i < n; ++i)
    aatype.data<int32_t>()[i] = restype_index(chain.sequence[size_t(i)]);
  const ResidueConstants& constants = residue_constants();
  const Torsions torsions = atom37_to_torsions(aatype, chain.positions, chain.mask);
  const RigidGroups groups = atom37_to_frames(aatype, chain.positions, chain.mask);
  const Atom14 atom14 = atom37_to_atom14(aatype, chain.positions, chain.mask);
  return {
      {"aatype", aatype},
      {"all_atom_positions", chain.positions},
      {"all_atom_mask", chain.mask},
      {"atom14_atom_exists", rows_of(constants.atom14_mask[0], kAtom14, aatype)},
      {"atom37_atom_exists", rows_of(constants.atom37_mask[0], kAtom37, aatype)},
      {"residx_atom14_to_atom37", rows_of(constants.atom14_to_atom37[0], kAtom14, aatype)},
      {"residx_atom37_to_atom14", rows_of(constants.atom37_to_atom14[0], kAtom37, aatype)},
      {"rigidgroups_gt_frames", groups.frames},
      {"rigidgroups_alt_gt_frames", groups.alt_frames},
      {"rigidgroups_gt_exists", groups.exists},
      {"rigidgroups_group_exists", groups.group_exists},
      {"rigidgroups_group_is_ambiguous", groups.is_ambiguous},
      {"torsion_angles_sin_cos", torsions.sin_cos},
      {"alt_torsion_angles_sin_cos", torsions.alt_sin_cos},
      {"torsion_angles_mask", torsions.mask},
      {"chi_angles", chi_of(torsions.sin_cos, torsions.mask)},
      {"alt_chi_angles", chi_of(torsions.alt_sin_cos, torsions.mask)},
      {"chi_mask", torsions.mask.narrow(1, 3, 4).contiguous()},
      {"backbone_affine_tensor", backbone_affine(groups)},
      {"backbone_affine_mask", groups.exists.select(1, 0).contiguous()},
      {"atom14_gt_positions", atom14.positions},
      {"atom14_gt_exists", atom14.exists},
      {"atom14_alt_gt_positions", atom14.alt_positions},
      {"atom14_alt_gt_exists", atom14.alt_exists},
      {"atom14_atom_is_ambiguous", atom14.is_ambiguous},
      {"pseudo_beta", pseudo_beta(aatype, chain.positions)},
      {"pseudo_beta_mask", pseudo_beta_mask(aatype, chain.mask)},
      {"resolution", Tensor::scalar(float(resolution))},
  };
}

}  // namespace ff
