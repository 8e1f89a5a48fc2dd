// From the network's outputs and the labels to every loss and their weighted sum.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/base/error.h"
#include "core/geometry/residue_constants.h"
#include "core/loss/losses.h"
#include "core/loss/node.h"
#include "core/ops/rigid_ops.h"
#include "core/ops/views.h"

namespace ff {
namespace {

const Tensor& named(const char* where, const Arrays& from, const char* name, const Dims& shape) {
  const auto found = from.find(name);
  check_input(found != from.end(), "the ", where, " have no '", name, "'");
  check_input(found->second.shape() == shape, "'", name, "' of the ", where, " has shape ",
              found->second.shape(), ", expected ", shape);
  return found->second;
}
const Tensor& label(const Arrays& labels, const char* name, const Dims& shape) {
  return named("labels", labels, name, shape);
}
const Tensor& feature(const Arrays& batch, const char* name, const Dims& shape) {
  return named("features", batch, name, shape);
}

std::vector<double> doubles(const Tensor& t) {
  const Tensor x = t.to(Dtype::f64).contiguous();
  return {x.data<double>(), x.data<double>() + x.numel()};
}

/// A label of one number, wherever its axes went; `missing` where there is none.
double number(const Arrays& labels, const char* name, double missing) {
  const auto found = labels.find(name);
  if (found == labels.end()) return missing;
  check_input(found->second.numel() == 1, "label '", name, "' has shape ", found->second.shape(),
              ", expected one number");
  return doubles(found->second)[0];
}

double sum_of(const std::vector<double>& x) { return std::accumulate(x.begin(), x.end(), 0.0); }

/// Cross-entropy over all pairs of rows' residues, of which `logits` has the own ones. f(i, j): the
/// class of a pair; mask [n].
template <class F>
Var pair_cross_entropy(const Dap& dap, const Var& logits, const std::vector<double>& mask,
                       double epsilon, F f) {
  const int64_t n = int64_t(mask.size());
  const Range own = dap.mine(n);
  std::vector<int32_t> classes(static_cast<size_t>(own.count * n));
  std::vector<double> weights(classes.size());
#pragma omp parallel for
  for (int64_t i = own.start; i < own.end(); ++i)
    for (int64_t j = 0; j < n; ++j) {
      const size_t at = size_t((i - own.start) * n + j);
      classes[at] = f(i, j);
      weights[at] = mask[size_t(i)] * mask[size_t(j)];
    }
  const double count = sum_of(mask);
  return reduce(dap, cross_entropy(logits, classes, weights, epsilon + count * count));
}

/// How many of `breaks` are below x.
int32_t bin(double x, const std::vector<double>& breaks) {
  return int32_t(std::lower_bound(breaks.begin(), breaks.end(), x) - breaks.begin());
}

std::vector<double> squares(const Tensor& edges) {
  std::vector<double> out = doubles(edges);
  for (double& x : out) x *= x;
  return out;
}

double distance2(const double* a, const double* b) {
  double sum = 0;
  for (int k = 0; k < 3; ++k) sum += (a[k] - b[k]) * (a[k] - b[k]);
  return sum;
}

/// R^T (x - t) of a frame of 12.
void to_local(const double* frame, const double* x, double* out) {
  for (int k = 0; k < 3; ++k) {
    out[k] = 0;
    for (int r = 0; r < 3; ++r) out[k] += frame[3 * r + k] * (x[r] - frame[9 + r]);
  }
}

/// 1 where the ground truth with exchanged names is closer. Suppl. Alg. 26 lines 1-5.
std::vector<double> alternative_is_better(const Tensor& atoms, const Arrays& labels, int64_t n) {
  const auto get = [&](const char* name, const Dims& shape) {
    return doubles(label(labels, name, shape));
  };
  const Dims points{n, kAtom14, 3}, flags{n, kAtom14};
  const std::vector<double> truth = get("atom14_gt_positions", points),
                            alternative = get("atom14_alt_gt_positions", points),
                            exists = get("atom14_gt_exists", flags),
                            ambiguous = get("atom14_atom_is_ambiguous", flags), x = doubles(atoms);
  std::vector<double> better(static_cast<size_t>(n));
#pragma omp parallel for schedule(dynamic, 4)
  for (int64_t i = 0; i < n; ++i) {
    double sum = 0, alternative_sum = 0;
    for (int64_t a = i * kAtom14; a < (i + 1) * kAtom14; ++a) {
      if (exists[size_t(a)] * ambiguous[size_t(a)] == 0) continue;
      for (int64_t b = 0; b < n * kAtom14; ++b) {
        const double weight = exists[size_t(b)] * (1 - ambiguous[size_t(b)]);
        if (weight == 0) continue;
        const auto distance = [&](const std::vector<double>& p) {
          return std::sqrt(1e-10 + distance2(&p[size_t(3 * a)], &p[size_t(3 * b)]));
        };
        const double here = distance(x), gap = here - distance(truth),
                     other = here - distance(alternative);
        sum += weight * std::sqrt(1e-10 + gap * gap);
        alternative_sum += weight * std::sqrt(1e-10 + other * other);
      }
    }
    better[size_t(i)] = alternative_sum < sum ? 1 : 0;
  }
  return better;
}

/// Rows of `a` where `choose` is 0, of `b` where it is 1.
Tensor chosen(const std::vector<double>& choose, const Tensor& a, const Tensor& b) {
  const Tensor out = a.contiguous().clone(), other = b.to(a.dtype()).contiguous();
  for (size_t i = 0; i < choose.size(); ++i)
    if (choose[i] != 0) out.select(0, int64_t(i)).copy_from(other.select(0, int64_t(i)));
  return out;
}

/// Suppl. Alg. 20 lines 17-24 and 1.9.11; adds its terms.
Var structure_loss(const LossConfig& config, const LossInputs& in, const Arrays& batch,
                   const Arrays& labels, bool with_violations, Arrays& terms) {
  const int64_t n = in.atoms.size(0), layers = int64_t(in.affines.size());
  const Dtype dtype = in.atoms.value().dtype();
  const auto add = [&](const std::string& name, const Tensor& value) {
    terms["structure_module/" + name] = value;
  };
  const Var gt =
      affine_frames(Var(label(labels, "backbone_affine_tensor", {n, 7}).to(dtype).contiguous()));
  const Tensor mask = label(labels, "backbone_affine_mask", {n});
  const FapeTarget backbone{gt.value(), mask, gt.value().narrow(1, 9, 3), mask};
  const double clamped = number(labels, "use_clamped_fape", 1);
  std::vector<std::pair<double, Var>> sum;
  for (const Var& affine : in.affines) {
    const Var frames = affine_frames(affine);
    const Var error = fape(frames, narrow(frames, 1, 9, 3), backbone, config.fape_clamp_distance,
                           clamped, config.fape_loss_unit_distance);
    sum.emplace_back((1 - config.sidechain_weight_frac) / double(layers), error);
    add("fape", error.value());
  }

  const std::vector<double> better = alternative_is_better(in.atoms.value(), labels, n);
  const Tensor names = Tensor::empty({n});
  for (int64_t i = 0; i < n; ++i) names.data<float>()[i] = float(better[size_t(i)]);
  const auto renamed = [&](const char* name, const char* alternative, const Dims& shape) {
    return chosen(better, label(labels, name, shape), label(labels, alternative, shape));
  };
  const Tensor positions =
                   renamed("atom14_gt_positions", "atom14_alt_gt_positions", {n, kAtom14, 3}),
               exists = renamed("atom14_gt_exists", "atom14_alt_gt_exists", {n, kAtom14}),
               frames = renamed("rigidgroups_gt_frames", "rigidgroups_alt_gt_frames",
                                {n, kRigidGroups, 12});
  add("alt_naming_is_better", names);
  add("renamed_atom14_gt_positions", positions);
  add("renamed_atom14_gt_exists", exists);
  const Tensor frame_mask = label(labels, "rigidgroups_gt_exists", {n, kRigidGroups}).contiguous();
  const Var side_chains =
      fape(view(in.frames, {n * kRigidGroups, 12}), view(in.atoms, {n * kAtom14, 3}),
           {frames.view({n * kRigidGroups, 12}), frame_mask.view({n * kRigidGroups}),
            positions.view({n * kAtom14, 3}), exists.view({n * kAtom14})},
           config.atom_clamp_distance, 1, config.length_scale);
  sum.emplace_back(config.sidechain_weight_frac, side_chains);
  add("sidechain_fape", side_chains.value());

  const Tensor aatype = feature(batch, "aatype", {n}).to(Dtype::i32).contiguous();
  for (int64_t i = 0; i < n; ++i) {
    const int32_t type = aatype.data<int32_t>()[i];
    check_input(type >= 0 && type <= kUnknownRestype, "aatype holds ", type, ", expected 0 to ",
                kUnknownRestype);
  }
  const Var chi = chi_loss(in.angles, label(labels, "chi_angles", {n, 4}),
                           label(labels, "chi_mask", {n, 4}), aatype);
  const Var norm = angle_norm_loss(in.unnormalized_angles, feature(batch, "seq_mask", {n}));
  sum.emplace_back(config.chi_weight, chi);
  sum.emplace_back(config.angle_norm_weight, norm);
  add("chi_loss", chi.value());
  add("angle_norm_loss", norm.value());

  if (with_violations || config.structural_violation_loss_weight != 0) {
    const Violations v = violations(in.atoms, batch, config.violation_tolerance_factor,
                                    config.clash_overlap_tolerance);
    for (const auto& [name, value] : v.terms) add(name, value);
    if (config.structural_violation_loss_weight != 0)
      sum.emplace_back(config.structural_violation_loss_weight, v.loss);
  }
  const Var total = weighted_sum(sum);
  add("loss", total.value());
  return total;
}

Var distogram_loss(const LossInputs& in, const Arrays& labels, int64_t n) {
  const std::vector<double> x = doubles(label(labels, "pseudo_beta", {n, 3})),
                            breaks = squares(in.distogram_edges);
  return pair_cross_entropy(in.dap, in.distogram, doubles(label(labels, "pseudo_beta_mask", {n})),
                            1e-6, [&](int64_t i, int64_t j) {
                              return bin(distance2(&x[size_t(3 * i)], &x[size_t(3 * j)]), breaks);
                            });
}

Var masked_msa_loss(const LossInputs& in, const Arrays& batch) {
  const bool whole = in.dap.single();
  const Dims shape{whole ? in.masked_msa.size(0) : in.n_seq, in.masked_msa.size(1)};
  const int64_t letters = in.masked_msa.size(2);
  const Tensor mask = feature(batch, "bert_mask", shape);
  const double total = 1e-8 + sum_of(doubles(mask));
  const Range rows = whole ? Range{0, shape[0]} : in.msa_rows;
  const auto own = [&](const Tensor& t) { return doubles(t.narrow(0, rows.start, rows.count)); };
  std::vector<int32_t> classes;
  for (const double letter : own(feature(batch, "true_msa", shape))) {
    check_input(letter >= 0 && letter < double(letters), "true_msa holds ", letter);
    classes.push_back(int32_t(letter));
  }
  return reduce(in.dap, cross_entropy(in.masked_msa, classes, own(mask), total));
}

Var lddt_loss(const LossInputs& in, const Arrays& labels, int64_t n) {
  const Tensor mask = label(labels, "all_atom_mask", {n, kAtom37}).select(1, kAtomCa);
  const std::vector<double> lddt =
      lddt_ca(in.atoms.value().select(1, 1),
              label(labels, "all_atom_positions", {n, kAtom37, 3}).select(1, kAtomCa), mask);
  const int32_t bins = int32_t(in.lddt.size(1));
  std::vector<int32_t> classes;
  for (const double x : lddt) classes.push_back(std::min(bins - 1, int32_t(x * bins)));
  const std::vector<double> weights = doubles(mask);
  return cross_entropy(in.lddt, classes, weights, 1e-8 + sum_of(weights));
}

/// Suppl. 1.9.7. A residue has no error in its own frame: the diagonal is exactly zero.
Var aligned_error_loss(const LossInputs& in, const Arrays& labels, int64_t n) {
  const std::vector<double> breaks = squares(in.aligned_error_breaks);
  const std::vector<double>
      ours = doubles(affine_frames(Var(in.affines.back().value())).value()),
      truth = doubles(
          affine_frames(
              Var(label(labels, "backbone_affine_tensor", {n, 7}).to(Dtype::f64).contiguous()))
              .value());
  return pair_cross_entropy(in.dap, in.aligned_error,
                            doubles(label(labels, "backbone_affine_mask", {n})), 1e-8,
                            [&](int64_t i, int64_t j) {
                              double a[3], b[3];
                              to_local(&ours[size_t(12 * i)], &ours[size_t(12 * j + 9)], a);
                              to_local(&truth[size_t(12 * i)], &truth[size_t(12 * j + 9)], b);
                              return i == j ? 0 : bin(distance2(a, b), breaks);
                            });
}

}  // namespace

std::vector<double> lddt_ca(const Tensor& prediction, const Tensor& truth, const Tensor& mask) {
  const std::vector<double> x = doubles(prediction), y = doubles(truth), keep = doubles(mask);
  const size_t n = keep.size();
  std::vector<double> out(n);
#pragma omp parallel for
  for (size_t i = 0; i < n; ++i) {
    float count = 1e-10f, score = 1e-10f;
    for (size_t j = 0; j < n; ++j) {
      const double real = std::sqrt(1e-10 + distance2(&y[3 * i], &y[3 * j]));
      if (i == j || real >= 15 || keep[i] * keep[j] == 0) continue;
      const double gap = std::abs(real - std::sqrt(1e-10 + distance2(&x[3 * i], &x[3 * j])));
      count += 1;
      for (const double bound : {0.5, 1.0, 2.0, 4.0}) score += gap < bound ? 0.25f : 0;
    }
    // Scores are quarters over counts and often fall on a bin's edge (2.5 of 25 contacts, 50 bins):
    // there the side is f32's rounding, operation by operation as AlphaFold has it.
    const float norm = 1 / count;
    out[i] = double(norm * score);
  }
  return out;
}

Losses all_losses(const LossConfig& config, const LossInputs& in, const Arrays& batch,
                  const Arrays& labels, bool violations) {
  const int64_t n = in.atoms.size(0);
  Losses out;
  const double resolution = number(labels, "resolution", 0);
  const double resolved = !config.filter_by_resolution || (resolution >= config.min_resolution &&
                                                           resolution <= config.max_resolution)
                              ? 1
                              : 0;
  std::vector<std::pair<double, Var>> sum{
      {config.structure_module, structure_loss(config, in, batch, labels, violations, out.terms)}};
  const auto add = [&](const char* name, double weight, double keep, const Var& loss) {
    out.terms[cat(name, "/loss")] =
        keep != 0 ? loss.value() : Tensor::zeros({}, loss.value().dtype());
    if (keep * weight != 0) sum.emplace_back(weight, loss);
  };
  if (in.distogram) add("distogram", config.distogram, 1, distogram_loss(in, labels, n));
  if (in.masked_msa) add("masked_msa", config.masked_msa, 1, masked_msa_loss(in, batch));
  if (in.lddt) add("predicted_lddt", config.predicted_lddt, resolved, lddt_loss(in, labels, n));
  if (in.aligned_error)
    add("predicted_aligned_error", config.predicted_aligned_error, resolved,
        aligned_error_loss(in, labels, n));
  if (in.resolved)
    add("experimentally_resolved", config.experimentally_resolved, resolved,
        binary_cross_entropy(in.resolved, label(labels, "all_atom_mask", {n, kAtom37}),
                             feature(batch, "atom37_atom_exists", {n, kAtom37})));
  out.total = weighted_sum(sum);
  out.terms["total_loss"] = out.total.value();
  return out;
}

}  // namespace ff
