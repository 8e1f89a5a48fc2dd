// From the network's outputs and the labels to every loss and their weighted sum.
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

Tensor f64(const Tensor& t) { return t.to(Dtype::f64).contiguous(); }

/// The inner edges of bins of squared numbers.
Tensor squares(const Tensor& edges) {
  const Tensor out = f64(edges).clone();
  for (int64_t i = 0; i < out.numel(); ++i) out.data<double>()[i] *= out.data<double>()[i];
  return out;
}

/// Cross-entropy over all pairs of rows' residues, of which `logits` has the own ones. mask [n];
/// classify(mask, first row, classes, weights) fills in both, on the logits' device.
template <class F>
Var pair_cross_entropy(const Dap& dap, const Var& logits, const Tensor& mask, double epsilon,
                       F classify) {
  const int64_t n = mask.numel();
  const Range own = dap.mine(n);
  const Device device = logits.value().device();
  const Tensor classes = Tensor::empty({own.count, n}, Dtype::i32, device),
               weights = Tensor::empty({own.count, n}, Dtype::f64, device);
  classify(f64(mask).to(device), own.start, classes, weights);
  const double count = sum_of(doubles(mask));
  return reduce(dap, cross_entropy(logits, classes, weights, epsilon + count * count));
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
  const Device device = in.atoms.value().device();
  const Tensor mask = label(labels, "backbone_affine_mask", {n}).to(dtype).contiguous().to(device),
               origins = gt.value().narrow(1, 9, 3).contiguous().to(device);
  const FapeTarget backbone{gt.value().to(device), mask, origins, mask};
  const double clamped = number(labels, "use_clamped_fape", 1);
  std::vector<std::pair<double, Var>> sum;
  for (const Var& affine : in.affines) {
    const Var frames = affine_frames(affine);
    const Var error = fape(frames, narrow(frames, 1, 9, 3), backbone, config.fape_clamp_distance,
                           clamped, config.fape_loss_unit_distance);
    sum.emplace_back((1 - config.sidechain_weight_frac) / double(layers), error);
    add("fape", error.value());
  }

  const Kernels& k = kernels(device);
  const auto there = [&](const char* name, const Dims& shape, Dtype type = Dtype::f64) {
    return label(labels, name, shape).to(type).contiguous().to(device);
  };
  const Dims points{n, kAtom14, 3}, flags{n, kAtom14};
  const Tensor better = Tensor::empty({n}, Dtype::f32, device);
  k.alternative_is_better(in.atoms.value().contiguous(), there("atom14_gt_positions", points),
                          there("atom14_alt_gt_positions", points),
                          there("atom14_gt_exists", flags),
                          there("atom14_atom_is_ambiguous", flags), better);
  const auto renamed = [&](const char* name, const char* alternative, const Dims& shape) {
    const Tensor out = Tensor::empty(shape, Dtype::f32, device);
    k.choose_rows(better, there(name, shape, Dtype::f32), there(alternative, shape, Dtype::f32),
                  out);
    return out;
  };
  const Tensor positions = renamed("atom14_gt_positions", "atom14_alt_gt_positions", points),
               exists = renamed("atom14_gt_exists", "atom14_alt_gt_exists", flags),
               frames = renamed("rigidgroups_gt_frames", "rigidgroups_alt_gt_frames",
                                {n, kRigidGroups, 12});
  add("alt_naming_is_better", better);
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
                                    config.clash_overlap_tolerance, with_violations);
    for (const auto& [name, value] : v.terms) add(name, value);
    if (config.structural_violation_loss_weight != 0)
      sum.emplace_back(config.structural_violation_loss_weight, v.loss);
  }
  const Var total = weighted_sum(sum);
  add("loss", total.value());
  return total;
}

Var distogram_loss(const LossInputs& in, const Arrays& labels, int64_t n) {
  const Device device = in.distogram.value().device();
  const Tensor x = f64(label(labels, "pseudo_beta", {n, 3})).to(device),
               breaks = squares(in.distogram_edges).to(device);
  return pair_cross_entropy(
      in.dap, in.distogram, label(labels, "pseudo_beta_mask", {n}), 1e-6,
      [&](const Tensor& mask, int64_t first_row, const Tensor& classes, const Tensor& weights) {
        kernels(device).distance_classes(x, mask, breaks, first_row, classes, weights);
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
  const Tensor score =
      lddt_ca(in.atoms.value().select(1, 1),
              label(labels, "all_atom_positions", {n, kAtom37, 3}).select(1, kAtomCa), mask);
  const Tensor classes = Tensor::empty({n}, Dtype::i32, score.device());
  kernels(score.device()).score_classes(score, in.lddt.size(1), classes);
  return cross_entropy(in.lddt, classes, f64(mask), 1e-8 + sum_of(doubles(mask)));
}

/// Suppl. 1.9.7. A residue has no error in its own frame: the diagonal is exactly zero.
Var aligned_error_loss(const LossInputs& in, const Arrays& labels, int64_t n) {
  const Device device = in.aligned_error.value().device();
  const Tensor breaks = squares(in.aligned_error_breaks).to(device),
               frames = affine_frames(Var(in.affines.back().value())).value(),
               truth = affine_frames(Var(f64(label(labels, "backbone_affine_tensor", {n, 7}))))
                           .value()
                           .to(device);
  return pair_cross_entropy(
      in.dap, in.aligned_error, label(labels, "backbone_affine_mask", {n}), 1e-8,
      [&](const Tensor& mask, int64_t first_row, const Tensor& classes, const Tensor& weights) {
        kernels(device).aligned_error_classes(frames, truth, mask, breaks, first_row, classes,
                                              weights);
      });
}

}  // namespace

Tensor lddt_ca(const Tensor& prediction, const Tensor& truth, const Tensor& mask) {
  const Device device = prediction.device();
  const Tensor score = Tensor::empty({mask.numel()}, Dtype::f64, device);
  kernels(device).lddt(prediction.contiguous(), f64(truth).to(device), f64(mask).to(device), score);
  return score;
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
        keep != 0 ? loss.value() : Tensor::zeros({}, loss.value().dtype(), loss.value().device());
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
