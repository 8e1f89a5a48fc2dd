// What the network is told of a template: pair features and torsion angles. No gradient.
#pragma once

#include "core/geometry/atoms.h"
#include "core/model/config.h"
#include "core/tensor/arrays.h"

namespace ff {

/// Channels of template_pair_features: distance bins, two masks, two amino acids, a unit vector.
inline int64_t template_pair_channels(const TemplateConfig& config) {
  return config.dgram_features.num_bins + 49;
}

/// Pair features of template `t` for `count` residues i from `first`, zero where one of the two
/// residues lacks N, CA or C: [count, n_res, num_bins + 49] f32 with the distance bins of the
/// pseudo betas (39), whether both are there, the amino acid of j (22) and of i (22), the unit
/// vector from i to j in i's backbone frame (3; zero unless configured) and whether both backbones
/// are there. Jumper et al. 2021, Suppl. 1.2.9 Table 1, template_pair_feat. Reads template_aatype
/// [n_templ, n_res] i32, template_pseudo_beta [.., 3], template_pseudo_beta_mask,
/// template_all_atom_positions [.., 37, 3], template_all_atom_masks [.., 37]. Made on
/// `device`. Throws Exit::kInput on a missing feature or one of another shape or range.
Tensor template_pair_features(const Arrays& features, int64_t t, const TemplateConfig& config,
                              int64_t first, int64_t count, Device device = {});

struct TemplateTorsions {
  Tensor features;  ///< [n_templ, n_res, 57] f32
  Tensor mask;      ///< [n_templ, n_res] f32: psi is known
};

/// Amino acid (22), torsions (14), alternative torsions (14) and their mask (7) of every template
/// residue. Suppl. 1.2.9 Table 1, template_angle_feat.
TemplateTorsions template_torsion_features(const Arrays& features);

}  // namespace ff
