// Bond lengths and angles between residues, clashes between residues, and distances within them.
#include <array>
#include <cmath>

#include "core/base/error.h"
#include "core/geometry/stereo_chemistry.h"
#include "core/loss/losses.h"
#include "core/loss/node.h"

namespace ff {
namespace {

constexpr int kN = 0, kCa = 1, kC = 2, kSg = 5;  // atom14 places; SG is cysteine's

using Vec = std::array<double, 3>;

Vec minus(const Vec& a, const Vec& b) { return {a[0] - b[0], a[1] - b[1], a[2] - b[2]}; }
double dot(const Vec& a, const Vec& b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
void add(Vec& to, double factor, const Vec& x) {
  for (int k = 0; k < 3; ++k) to[size_t(k)] += factor * x[size_t(k)];
}

Tensor of(const std::vector<double>& x, const Dims& shape) {
  const Tensor t = Tensor::empty(shape);
  for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = float(x[size_t(i)]);
  return t;
}

struct Protein {
  int64_t n;
  std::vector<Vec> atoms;  // [n, 14]
  std::vector<double> exists, radius, index, seq_mask;
  std::vector<int> types;
  const Vec& atom(int64_t i, int a) const { return atoms[size_t(i * kAtom14 + a)]; }
  double has(int64_t i, int a) const { return exists[size_t(i * kAtom14 + a)]; }
};

/// What is measured of one kind of bond or angle at every pair of successive residues.
struct Measure {
  double loss_mean = 0;
  std::vector<double> loss, violated, slope;  // of each pair; d loss_mean / d metric
};

struct Metric {
  double value, mean, deviation, mask;
};

template <class F>
Measure measure(int64_t pairs, double tolerance, F metric) {
  Measure m;
  double count = 0;
  for (int64_t i = 0; i < pairs; ++i) {
    const Metric x = metric(i);
    const double gap = x.value - x.mean, error = std::sqrt(1e-6 + gap * gap);
    const double loss = std::max(0.0, error - tolerance * x.deviation);
    m.loss.push_back(loss);
    m.violated.push_back(error > tolerance * x.deviation ? x.mask : 0);
    m.slope.push_back(loss > 0 ? x.mask * gap / error : 0);
    m.loss_mean += x.mask * loss;
    count += x.mask;
  }
  m.loss_mean /= count + 1e-6;
  for (double& s : m.slope) s /= count + 1e-6;
  return m;
}

struct Between {
  Measure bond, ca_c_n, c_n_ca;
};

/// Suppl. eq. 44, 45. Adds the gradient of the three means' sum to d [n, 14].
Between connections(const Protein& p, double tolerance, std::vector<Vec>& d) {
  const auto length = [](const Vec& a) { return std::sqrt(1e-6 + dot(a, a)); };
  const auto no_gap = [&](int64_t i) {
    return p.index[size_t(i + 1)] - p.index[size_t(i)] == 1 ? 1.0 : 0.0;
  };
  const auto grad = [&](int64_t i, int a) -> Vec& { return d[size_t(i * kAtom14 + a)]; };
  // The cosine between b - a and c - a, each over its length, and its gradient.
  const auto cosine = [&](const Vec& u, const Vec& v) { return dot(u, v) / length(u) / length(v); };
  const auto cosine_gradient = [&](const Vec& u, const Vec& v, double slope, Vec& du, Vec& dv) {
    const double p = length(u), q = length(v), c = cosine(u, v);
    du = dv = {};
    add(du, slope / (p * q), v);
    add(du, -slope * c / (p * p), u);
    add(dv, slope / (p * q), u);
    add(dv, -slope * c / (q * q), v);
  };
  const int64_t pairs = std::max<int64_t>(0, p.n - 1);
  Between b;
  b.bond = measure(pairs, tolerance, [&](int64_t i) {
    const bool proline = p.types[size_t(i + 1)] == restype_index('P');
    return Metric{length(minus(p.atom(i, kC), p.atom(i + 1, kN))), proline ? 1.341 : 1.329,
                  proline ? 0.016 : 0.014, p.has(i, kC) * p.has(i + 1, kN) * no_gap(i)};
  });
  b.ca_c_n = measure(pairs, tolerance, [&](int64_t i) {
    const Vec& c = p.atom(i, kC);
    return Metric{cosine(minus(p.atom(i, kCa), c), minus(p.atom(i + 1, kN), c)), -0.4473, 0.0311,
                  p.has(i, kCa) * p.has(i, kC) * p.has(i + 1, kN) * no_gap(i)};
  });
  b.c_n_ca = measure(pairs, tolerance, [&](int64_t i) {
    const Vec& n = p.atom(i + 1, kN);
    return Metric{cosine(minus(p.atom(i, kC), n), minus(p.atom(i + 1, kCa), n)), -0.5203, 0.0353,
                  p.has(i, kC) * p.has(i + 1, kN) * p.has(i + 1, kCa) * no_gap(i)};
  });
  for (int64_t i = 0; i < pairs; ++i) {
    const Vec c_n = minus(p.atom(i, kC), p.atom(i + 1, kN));
    const double slope = b.bond.slope[size_t(i)] / length(c_n);
    add(grad(i, kC), slope, c_n);
    add(grad(i + 1, kN), -slope, c_n);
    Vec du, dv;
    cosine_gradient(minus(p.atom(i, kCa), p.atom(i, kC)), minus(p.atom(i + 1, kN), p.atom(i, kC)),
                    b.ca_c_n.slope[size_t(i)], du, dv);
    add(grad(i, kCa), 1, du);
    add(grad(i + 1, kN), 1, dv);
    add(grad(i, kC), -1, du);
    add(grad(i, kC), -1, dv);
    cosine_gradient(c_n, minus(p.atom(i + 1, kCa), p.atom(i + 1, kN)), b.c_n_ca.slope[size_t(i)],
                    du, dv);
    add(grad(i, kC), 1, du);
    add(grad(i + 1, kCa), 1, dv);
    add(grad(i + 1, kN), -1, du);
    add(grad(i + 1, kN), -1, dv);
  }
  return b;
}

struct PerAtom {
  std::vector<double> loss, violated;  // [n, 14]
  double mean = 0;                     // over pairs
};

/// Suppl. eq. 46 between residues. Adds `factor` times the gradient of the per-atom losses' sum.
PerAtom clashes(const Protein& p, double tolerance, double factor, std::vector<Vec>& d) {
  PerAtom out;
  out.loss.assign(p.atoms.size(), 0);
  out.violated.assign(p.atoms.size(), 0);
  std::vector<double> pairs(static_cast<size_t>(p.n));
#pragma omp parallel for schedule(dynamic, 4)
  for (int64_t i = 0; i < p.n; ++i)
    for (int64_t j = 0; j < p.n; ++j) {
      const double step = p.index[size_t(j)] - p.index[size_t(i)];
      if (step == 0) continue;
      for (int a = 0; a < kAtom14; ++a) {
        const size_t at = size_t(i * kAtom14 + a);
        if (p.exists[at] == 0) continue;
        for (int b = 0; b < kAtom14; ++b) {
          const size_t other = size_t(j * kAtom14 + b);
          const bool bond = (step == 1 && a == kC && b == kN) || (step == -1 && a == kN && b == kC);
          if (p.exists[other] == 0 || bond || (a == kSg && b == kSg)) continue;
          pairs[size_t(i)] += 0.5;
          const double bound = p.radius[at] + p.radius[other] - tolerance;
          const Vec gap = minus(p.atoms[at], p.atoms[other]);
          const double square = 1e-10 + dot(gap, gap);
          if (bound <= 0 || square >= bound * bound) continue;
          const double distance = std::sqrt(square);
          out.loss[at] += bound - distance;
          out.violated[at] = 1;
          add(d[at], -2 * factor / distance, gap);
        }
      }
    }
  double sum = 0, count = 0;
  for (const double x : out.loss) sum += 0.5 * x;
  for (const double x : pairs) count += x;
  out.mean = sum / (1e-6 + count);
  return out;
}

/// Suppl. eq. 46 within residues, where AlphaFold sums every pair four times.
PerAtom within(const Protein& p, const DistanceBounds& bounds, double factor, std::vector<Vec>& d) {
  PerAtom out;
  out.loss.assign(p.atoms.size(), 0);
  out.violated.assign(p.atoms.size(), 0);
  for (int64_t i = 0; i < p.n; ++i)
    for (int a = 0; a < kAtom14; ++a)
      for (int b = 0; b < kAtom14; ++b) {
        const size_t at = size_t(i * kAtom14 + a);
        if (a == b || p.has(i, a) == 0 || p.has(i, b) == 0) continue;
        const int type = p.types[size_t(i)];
        const double low = double(bounds.lower[type][a][b]),
                     high = double(bounds.upper[type][a][b]);
        const Vec gap = minus(p.atom(i, a), p.atom(i, b));
        const double distance = std::sqrt(1e-10 + dot(gap, gap));
        if (distance >= low && distance <= high) continue;
        out.loss[at] += 2 * (distance < low ? low - distance : distance - high);
        out.violated[at] = 1;
        add(d[at], 4 * factor * (distance < low ? -1 : 1) / distance, gap);
      }
  return out;
}

double masked_mean(const std::vector<double>& mask, const std::vector<double>& x) {
  double sum = 0, count = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    sum += mask[i] * x[i];
    count += mask[i];
  }
  return sum / (count + 1e-10);
}

double extreme_ca_distances(const Protein& p) {
  std::vector<double> mask, far;
  for (int64_t i = 0; i + 1 < p.n; ++i) {
    const Vec gap = minus(p.atom(i, kCa), p.atom(i + 1, kCa));
    far.push_back(std::sqrt(1e-6 + dot(gap, gap)) - 3.80209737096 > 1.5 ? 1 : 0);
    mask.push_back(
        p.index[size_t(i + 1)] - p.index[size_t(i)] == 1 ? p.has(i, kCa) * p.has(i + 1, kCa) : 0);
  }
  return masked_mean(mask, far);
}

std::vector<double> numbers(const Arrays& batch, const char* name, int64_t count) {
  const auto found = batch.find(name);
  check_input(found != batch.end() && found->second.numel() == count, "the batch has no feature '",
              name, "' of ", count, " elements");
  const Tensor t = found->second.to(Dtype::f64).contiguous();
  return {t.data<double>(), t.data<double>() + count};
}

/// Of every atom of a residue: whether any is violated.
std::vector<double> any(const std::vector<double>& atoms) {
  std::vector<double> out(atoms.size() / kAtom14);
  for (size_t i = 0; i < atoms.size(); ++i) out[i / kAtom14] = std::max(out[i / kAtom14], atoms[i]);
  return out;
}

}  // namespace

Violations violations(const Var& atoms, const Arrays& batch, double tolerance_factor,
                      double overlap_tolerance) {
  const int64_t n = atoms.size(0);
  check(atoms.shape() == Dims{n, kAtom14, 3}, "violations of ", atoms.shape());
  Protein p;
  p.n = n;
  p.exists = numbers(batch, "atom14_atom_exists", n * kAtom14);
  p.index = numbers(batch, "residue_index", n);
  p.seq_mask = numbers(batch, "seq_mask", n);
  for (const double type : numbers(batch, "aatype", n)) {
    check_input(type >= 0 && type <= kUnknownRestype, "aatype holds ", type);
    p.types.push_back(int(type));
  }
  const std::vector<double> names = numbers(batch, "residx_atom14_to_atom37", n * kAtom14);
  for (size_t i = 0; i < names.size(); ++i) {
    check_input(names[i] >= 0 && names[i] < kAtom37, "residx_atom14_to_atom37 holds ", names[i]);
    p.radius.push_back(p.exists[i] * double(van_der_waals_radius(kAtomNames[size_t(names[i])][0])));
  }
  const Tensor x = atoms.value().to(Dtype::f64).contiguous();
  for (int64_t i = 0; i < n * kAtom14; ++i)
    p.atoms.push_back(
        {x.data<double>()[3 * i], x.data<double>()[3 * i + 1], x.data<double>()[3 * i + 2]});

  LossNode node("violation loss");
  const Tensor grad = node.gradient(atoms);
  std::vector<Vec> d(p.atoms.size());
  double count = 1e-6;
  for (const double e : p.exists) count += e;
  const Between between = connections(p, tolerance_factor, d);
  const PerAtom clash = clashes(p, overlap_tolerance, 1 / count, d);
  const PerAtom inside =
      within(p, distance_bounds(overlap_tolerance, tolerance_factor), 1 / count, d);
  if (grad.defined())
    by_real_type(grad, [&](auto zero) {
      using T = decltype(zero);
      for (int64_t i = 0; i < grad.numel(); ++i)
        grad.data<T>()[i] = T(d[size_t(i / 3)][size_t(i % 3)]);
      return 0;
    });
  double atom_losses = 0;
  for (size_t i = 0; i < p.atoms.size(); ++i) atom_losses += clash.loss[i] + inside.loss[i];

  Violations out;
  out.loss = node.done(between.bond.loss_mean + between.ca_c_n.loss_mean +
                           between.c_n_ca.loss_mean + atom_losses / count,
                       atoms.value().dtype());
  std::vector<double> connection_loss(static_cast<size_t>(n)), broken(static_cast<size_t>(n));
  for (size_t i = 0; i + 1 < size_t(n); ++i) {
    const double loss =
        0.5 * (between.bond.loss[i] + between.ca_c_n.loss[i] + between.c_n_ca.loss[i]);
    const double bad = std::max(
        {between.bond.violated[i], between.ca_c_n.violated[i], between.c_n_ca.violated[i]});
    for (const size_t k : {i, i + 1}) {
      connection_loss[k] += loss;
      broken[k] = std::max(broken[k], bad);
    }
  }
  const std::vector<double> clashing = any(clash.violated), bent = any(inside.violated);
  std::vector<double> total = broken;
  for (size_t i = 0; i < total.size(); ++i) total[i] = std::max({total[i], clashing[i], bent[i]});

  const auto number = [&](const std::string& name, double value) {
    out.terms[name] = Tensor::scalar(float(value));
  };
  const std::string pair = "violations/between_residues/", one = "violations/within_residues/";
  number(pair + "bonds_c_n_loss_mean", between.bond.loss_mean);
  number(pair + "angles_ca_c_n_loss_mean", between.ca_c_n.loss_mean);
  number(pair + "angles_c_n_ca_loss_mean", between.c_n_ca.loss_mean);
  number(pair + "clashes_mean_loss", clash.mean);
  out.terms[pair + "connections_per_residue_loss_sum"] = of(connection_loss, {n});
  out.terms[pair + "connections_per_residue_violation_mask"] = of(broken, {n});
  out.terms[pair + "clashes_per_atom_loss_sum"] = of(clash.loss, {n, kAtom14});
  out.terms[pair + "clashes_per_atom_clash_mask"] = of(clash.violated, {n, kAtom14});
  out.terms[one + "per_atom_loss_sum"] = of(inside.loss, {n, kAtom14});
  out.terms[one + "per_atom_violations"] = of(inside.violated, {n, kAtom14});
  out.terms["violations/total_per_residue_violations_mask"] = of(total, {n});
  number("metrics/violations_extreme_ca_ca_distance", extreme_ca_distances(p));
  number("metrics/violations_between_residue_bond", masked_mean(p.seq_mask, broken));
  number("metrics/violations_between_residue_clash", masked_mean(p.seq_mask, clashing));
  number("metrics/violations_within_residue", masked_mean(p.seq_mask, bent));
  number("metrics/violations_per_residue", masked_mean(p.seq_mask, total));
  return out;
}

}  // namespace ff
