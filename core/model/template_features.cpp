// Template features from template atoms.
#include "core/model/template_features.h"

#include <algorithm>

#include "core/geometry/residue_constants.h"
#include "core/geometry/rigid.h"
#include "core/ops/kernels.h"

namespace ff {
namespace {

constexpr int kLetters = 22;  // amino acids, X and the gap

/// A template feature of n_templ and n_res, with further axes.
Tensor feature(const Arrays& features, const std::string& name, Dims lead,
               std::initializer_list<int64_t> rest, Dtype dtype = Dtype::f32) {
  for (int64_t d : rest) lead.push_back(d);
  const auto found = features.find(name);
  check_input(found != features.end(), "the batch has no feature '", name, "'");
  check_input(found->second.shape() == lead, "feature '", name, "' has shape ",
              found->second.shape().str(), ", expected ", lead.str());
  return found->second.to(dtype).contiguous();
}

/// template_aatype: it sets the number of templates and residues.
Tensor template_types(const Arrays& features) {
  const auto found = features.find("template_aatype");
  check_input(found != features.end() && found->second.rank() == 2,
              "the batch has no feature 'template_aatype' of shape [n_templ, n_res]");
  const Tensor t = found->second.to(Dtype::i32).contiguous();
  for (int64_t i = 0; i < t.numel(); ++i)
    check_input(t.data<int32_t>()[i] >= 0 && t.data<int32_t>()[i] < kLetters,
                "feature 'template_aatype' holds ", t.data<int32_t>()[i], ", expected 0 to 21");
  return t;
}

Vec3 atom(const float* residue, int atom) {
  return {residue[3 * atom], residue[3 * atom + 1], residue[3 * atom + 2]};
}

/// Squares of the bins' lower edges in float, as AlphaFold compares them, and of the last one's
/// upper edge.
Tensor squared_edges(const DistogramBins& bins) {
  const Tensor edges = Tensor::empty({bins.num_bins + 1});
  for (int64_t b = 0; b < bins.num_bins; ++b) {
    const float edge =
        float(bins.min_bin + (bins.max_bin - bins.min_bin) * double(b) / double(bins.num_bins - 1));
    edges.data<float>()[b] = edge * edge;
  }
  edges.data<float>()[bins.num_bins] = 1e8f;
  return edges;
}

}  // namespace

Tensor template_pair_features(const Arrays& features, int64_t t, const TemplateConfig& config,
                              int64_t first, int64_t count, Device device) {
  const Tensor types = template_types(features);
  const Dims lead = types.shape();
  check(t >= 0 && t < lead[0], "template ", t, " of ", lead[0]);
  const int64_t n = lead[1];
  const auto slice = [&](const char* name, std::initializer_list<int64_t> rest) {
    return feature(features, name, lead, rest).select(0, t);
  };
  const Tensor beta = slice("template_pseudo_beta", {3});
  const Tensor beta_mask = slice("template_pseudo_beta_mask", {});
  const Tensor atoms = slice("template_all_atom_positions", {kAtom37, 3});
  const Tensor atom_mask = slice("template_all_atom_masks", {kAtom37});
  const Tensor backbone = Tensor::empty({n}), frames = Tensor::empty({n, 12}, Dtype::f64);
  for (int64_t i = 0; i < n; ++i) {
    const float *p = atoms.data<float>() + i * kAtom37 * 3,
                *m = atom_mask.data<float>() + i * kAtom37;
    backbone.data<float>()[i] = m[kAtomN] * m[kAtomCa] * m[kAtomC];
    const Vec3 ca = atom(p, kAtomCa);
    const Rigid frame = frame_from_vectors(atom(p, kAtomC) - ca, atom(p, kAtomN) - ca, ca, 1e-20);
    std::copy_n(frame.rot.begin(), 9, frames.data<double>() + 12 * i);
    std::copy_n(frame.trans.begin(), 3, frames.data<double>() + 12 * i + 9);
  }
  const Tensor out = Tensor::empty({count, n, template_pair_channels(config)}, Dtype::f32, device);
  const auto there = [&](const Tensor& x) { return x.to(device); };
  kernels(device).template_pair_features(
      {there(types.select(0, t)), there(beta), there(beta_mask), there(backbone), there(frames),
       there(squared_edges(config.dgram_features)), config.use_template_unit_vector},
      first, out);
  return out;
}

TemplateTorsions template_torsion_features(const Arrays& features) {
  const Tensor types = template_types(features);
  const Dims lead = types.shape();
  const int64_t n_templ = lead[0], n = lead[1];
  const Tensor atoms = feature(features, "template_all_atom_positions", lead, {kAtom37, 3});
  const Tensor mask = feature(features, "template_all_atom_masks", lead, {kAtom37});
  TemplateTorsions out{Tensor::zeros({n_templ, n, kLetters + 35}), Tensor::empty({n_templ, n})};
  for (int64_t t = 0; t < n_templ; ++t) {
    const Tensor type = types.select(0, t), rows = out.features.select(0, t);
    const Torsions torsions = atom37_to_torsions(type, atoms.select(0, t), mask.select(0, t));
    rows.narrow(1, kLetters, 14).copy_from(torsions.sin_cos.view({n, 14}));
    rows.narrow(1, kLetters + 14, 14).copy_from(torsions.alt_sin_cos.view({n, 14}));
    rows.narrow(1, kLetters + 28, 7).copy_from(torsions.mask);
    for (int64_t i = 0; i < n; ++i)
      rows.data<float>()[i * rows.stride(0) + type.data<int32_t>()[i]] = 1;
    out.mask.select(0, t).copy_from(torsions.mask.select(1, 2));
  }
  return out;
}

}  // namespace ff
