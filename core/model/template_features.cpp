// Template features from template atoms.
#include "core/model/template_features.h"

#include <cmath>
#include <vector>

#include "core/geometry/residue_constants.h"
#include "core/geometry/rigid.h"

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

/// Squares of the bins' lower edges in float, as AlphaFold compares them.
std::vector<float> squared_edges(const DistogramBins& bins) {
  std::vector<float> edges;
  for (int64_t b = 0; b < bins.num_bins; ++b) {
    const float edge =
        float(bins.min_bin + (bins.max_bin - bins.min_bin) * double(b) / double(bins.num_bins - 1));
    edges.push_back(edge * edge);
  }
  edges.push_back(1e8f);
  return edges;
}

}  // namespace

Tensor template_pair_features(const Arrays& features, int64_t t, const TemplateConfig& config,
                              int64_t first, int64_t count) {
  const Tensor types = template_types(features);
  const Dims lead = types.shape();
  check(t >= 0 && t < lead[0], "template ", t, " of ", lead[0]);
  const int64_t n = lead[1], bins = config.dgram_features.num_bins;
  const auto slice = [&](const char* name, std::initializer_list<int64_t> rest) {
    return feature(features, name, lead, rest).select(0, t);
  };
  const Tensor beta = slice("template_pseudo_beta", {3});
  const Tensor beta_mask = slice("template_pseudo_beta_mask", {});
  const Tensor atoms = slice("template_all_atom_positions", {kAtom37, 3});
  const Tensor atom_mask = slice("template_all_atom_masks", {kAtom37});
  const int32_t* type = types.data<int32_t>() + t * n;
  const float *b = beta.data<float>(), *bm = beta_mask.data<float>();

  std::vector<float> backbone(static_cast<size_t>(n));
  std::vector<Rigid> frames(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    const float *p = atoms.data<float>() + i * kAtom37 * 3,
                *m = atom_mask.data<float>() + i * kAtom37;
    backbone[i] = m[kAtomN] * m[kAtomCa] * m[kAtomC];
    const Vec3 ca = atom(p, kAtomCa);
    frames[i] = frame_from_vectors(atom(p, kAtomC) - ca, atom(p, kAtomN) - ca, ca, 1e-20);
  }
  const std::vector<float> edges = squared_edges(config.dgram_features);
  const int64_t channels = template_pair_channels(config);
  const Tensor out = Tensor::zeros({count, n, channels});
#pragma omp parallel for
  for (int64_t i = first; i < first + count; ++i)
    for (int64_t j = 0; j < n; ++j) {
      const float keep = backbone[i] * backbone[j];
      if (keep == 0) continue;
      float* to = out.data<float>() + ((i - first) * n + j) * channels;
      float dist2 = 0;
      for (int x = 0; x < 3; ++x)
        dist2 += (b[3 * i + x] - b[3 * j + x]) * (b[3 * i + x] - b[3 * j + x]);
      for (int64_t k = 0; k < bins; ++k)
        if (dist2 > edges[k] && dist2 < edges[k + 1]) to[k] = keep;
      to += bins;
      *to++ = bm[i] * bm[j] * keep;
      to[type[j]] = keep;
      to[kLetters + type[i]] = keep;
      to += 2 * kLetters;
      if (config.use_template_unit_vector) {
        const Vec3 v = to_local(frames[i], frames[j].trans);
        const double scale = keep / std::sqrt(1e-6 + v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
        for (int x = 0; x < 3; ++x) to[x] = float(v[x] * scale);
      }
      to[3] = keep;
    }
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
