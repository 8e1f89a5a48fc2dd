// Bond lengths and angles between residues, clashes between residues, and distances within them.
#include <algorithm>
#include <cmath>

#include "core/base/error.h"
#include "core/geometry/stereo_chemistry.h"
#include "core/loss/losses.h"
#include "core/loss/node.h"

namespace ff {
namespace {

constexpr int kCa = 1;  // in the atom14 layout

Tensor of(const std::vector<double>& x, const Dims& shape) {
  const Tensor t = Tensor::empty(shape);
  for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = float(x[size_t(i)]);
  return t;
}

double masked_mean(const std::vector<double>& mask, const std::vector<double>& x) {
  double sum = 0, count = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    sum += mask[i] * x[i];
    count += mask[i];
  }
  return sum / (count + 1e-10);
}

double extreme_ca_distances(const Tensor& atoms, const Tensor& exists, const Tensor& index) {
  const Tensor x = atoms.to(Dtype::f64).select(1, kCa).contiguous(),
               there = exists.select(1, kCa).contiguous();
  std::vector<double> mask, far;
  for (int64_t i = 0; i + 1 < there.numel(); ++i) {
    const double *a = x.data<double>() + 3 * i, *b = a + 3;
    double square = 0;
    for (int k = 0; k < 3; ++k) square += (a[k] - b[k]) * (a[k] - b[k]);
    far.push_back(std::sqrt(1e-6 + square) - 3.80209737096 > 1.5 ? 1 : 0);
    mask.push_back(index.data<double>()[i + 1] - index.data<double>()[i] == 1
                       ? there.data<double>()[i] * there.data<double>()[i + 1]
                       : 0);
  }
  return masked_mean(mask, far);
}

/// A feature in f64.
Tensor numbers(const Arrays& batch, const char* name, const Dims& shape) {
  const auto found = batch.find(name);
  check_input(found != batch.end() && found->second.numel() == shape.product(),
              "the batch has no feature '", name, "' of ", shape.product(), " elements");
  return found->second.to(Dtype::f64).contiguous().view(shape);
}

std::vector<double> doubles(const Tensor& t) {
  const Tensor x = t.to(Device{}).contiguous();
  return {x.data<double>(), x.data<double>() + x.numel()};
}

/// Of every atom of a residue: whether any is violated.
std::vector<double> any(const std::vector<double>& atoms) {
  std::vector<double> out(atoms.size() / kAtom14);
  for (size_t i = 0; i < atoms.size(); ++i) out[i / kAtom14] = std::max(out[i / kAtom14], atoms[i]);
  return out;
}

/// AlphaFold's terms of what was measured.
Arrays terms_of(const ViolationResults& measured, const Tensor& atoms, const Tensor& exists,
                const Tensor& index, const std::vector<double>& seq_mask) {
  const int64_t n = index.numel();
  const std::vector<double> connections = doubles(measured.connections),
                            means = doubles(measured.means),
                            clash_loss = doubles(measured.clashes.select(0, 0)),
                            clash_violated = doubles(measured.clashes.select(0, 1)),
                            inside_loss = doubles(measured.within.select(0, 0)),
                            inside_violated = doubles(measured.within.select(0, 1));
  std::vector<double> connection_loss(static_cast<size_t>(n)), broken(static_cast<size_t>(n));
  for (size_t i = 0; i + 1 < size_t(n); ++i) {
    const auto at = [&](int64_t part) { return connections[size_t(part * n) + i]; };
    const double loss = 0.5 * (at(0) + at(1) + at(2)), bad = std::max({at(3), at(4), at(5)});
    for (const size_t k : {i, i + 1}) {
      connection_loss[k] += loss;
      broken[k] = std::max(broken[k], bad);
    }
  }
  const std::vector<double> clashing = any(clash_violated), bent = any(inside_violated);
  std::vector<double> total = broken;
  for (size_t i = 0; i < total.size(); ++i) total[i] = std::max({total[i], clashing[i], bent[i]});

  Arrays terms;
  const auto number = [&](const std::string& name, double value) {
    terms[name] = Tensor::scalar(float(value));
  };
  const std::string pair = "violations/between_residues/", one = "violations/within_residues/";
  number(pair + "bonds_c_n_loss_mean", means[0]);
  number(pair + "angles_ca_c_n_loss_mean", means[1]);
  number(pair + "angles_c_n_ca_loss_mean", means[2]);
  number(pair + "clashes_mean_loss", means[3]);
  terms[pair + "connections_per_residue_loss_sum"] = of(connection_loss, {n});
  terms[pair + "connections_per_residue_violation_mask"] = of(broken, {n});
  terms[pair + "clashes_per_atom_loss_sum"] = of(clash_loss, {n, kAtom14});
  terms[pair + "clashes_per_atom_clash_mask"] = of(clash_violated, {n, kAtom14});
  terms[one + "per_atom_loss_sum"] = of(inside_loss, {n, kAtom14});
  terms[one + "per_atom_violations"] = of(inside_violated, {n, kAtom14});
  terms["violations/total_per_residue_violations_mask"] = of(total, {n});
  number("metrics/violations_extreme_ca_ca_distance", extreme_ca_distances(atoms, exists, index));
  number("metrics/violations_between_residue_bond", masked_mean(seq_mask, broken));
  number("metrics/violations_between_residue_clash", masked_mean(seq_mask, clashing));
  number("metrics/violations_within_residue", masked_mean(seq_mask, bent));
  number("metrics/violations_per_residue", masked_mean(seq_mask, total));
  return terms;
}

}  // namespace

Violations violations(const Var& atoms, const Arrays& batch, double tolerance_factor,
                      double overlap_tolerance, bool with_terms) {
  const int64_t n = atoms.size(0);
  check(atoms.shape() == Dims{n, kAtom14, 3}, "violations of ", atoms.shape());
  const Tensor exists = numbers(batch, "atom14_atom_exists", {n, kAtom14}),
               index = numbers(batch, "residue_index", {n}),
               names = numbers(batch, "residx_atom14_to_atom37", {n, kAtom14}),
               types = numbers(batch, "aatype", {n}).to(Dtype::i32),
               seq_mask = numbers(batch, "seq_mask", {n}),
               radius = Tensor::empty({n, kAtom14}, Dtype::f64);
  for (int64_t i = 0; i < n; ++i) {
    const int32_t type = types.data<int32_t>()[i];
    check_input(type >= 0 && type <= kUnknownRestype, "aatype holds ", type);
  }
  for (int64_t i = 0; i < names.numel(); ++i) {
    const double name = names.data<double>()[i];
    check_input(name >= 0 && name < kAtom37, "residx_atom14_to_atom37 holds ", name);
    radius.data<double>()[i] =
        exists.data<double>()[i] * double(van_der_waals_radius(kAtomNames[size_t(name)][0]));
  }
  const DistanceBounds bounds = distance_bounds(overlap_tolerance, tolerance_factor);
  const Dims table{21, kAtom14, kAtom14};
  const Device device = atoms.value().device();
  const auto there = [&](const Tensor& t) { return t.to(device); };
  const auto room = [&](const Dims& shape) { return Tensor::empty(shape, Dtype::f64, device); };
  const Tensor loss = room({1}), x = atoms.value().contiguous();
  const ViolationResults measured{room({2, 3, n}), room({2, n, kAtom14}), room({2, n, kAtom14}),
                                  room({4})};
  LossNode node("violation loss");
  const Tensor gradient = node.gradient(atoms);
  kernels(device).violations(
      {x, there(exists), there(radius), there(index), there(types),
       there(Tensor::of(table, &bounds.lower[0][0][0])),
       there(Tensor::of(table, &bounds.upper[0][0][0])), int32_t(restype_index('P'))},
      tolerance_factor, overlap_tolerance, loss, measured, gradient);
  Violations out;
  out.loss = node.done(loss, x.dtype());
  if (with_terms) out.terms = terms_of(measured, x.to(Device{}), exists, index, doubles(seq_mask));
  return out;
}

}  // namespace ff
