// Bond lengths and angles between residues, clashes between residues, and distances within them, on
// the CPU.
#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "core/ops/plain_kernels.h"
#include "core/ops/real_type.h"

namespace ff::cpu {
namespace {

constexpr int kAtom14 = 14;
constexpr int kN = 0, kCa = 1, kC = 2, kSg = 5;  // atom14 places; SG is cysteine's

using Vec = std::array<double, 3>;

Vec minus(const Vec& a, const Vec& b) { return {a[0] - b[0], a[1] - b[1], a[2] - b[2]}; }
double dot(const Vec& a, const Vec& b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
void add(Vec& to, double factor, const Vec& x) {
  for (int k = 0; k < 3; ++k) to[size_t(k)] += factor * x[size_t(k)];
}

struct Protein {
  int64_t n;
  std::vector<Vec> atoms;  // [n, 14]
  const double *exists, *radius, *index;
  const int32_t* types;
  int32_t proline;
  const Vec& atom(int64_t i, int a) const { return atoms[size_t(i * kAtom14 + a)]; }
  double has(int64_t i, int a) const { return exists[i * kAtom14 + a]; }
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
  const auto no_gap = [&](int64_t i) { return p.index[i + 1] - p.index[i] == 1 ? 1.0 : 0.0; };
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
    const bool proline = p.types[i + 1] == p.proline;
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
      const double step = p.index[j] - p.index[i];
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
PerAtom within(const Protein& p, const float* lower, const float* upper, double factor,
               std::vector<Vec>& d) {
  PerAtom out;
  out.loss.assign(p.atoms.size(), 0);
  out.violated.assign(p.atoms.size(), 0);
  for (int64_t i = 0; i < p.n; ++i)
    for (int a = 0; a < kAtom14; ++a)
      for (int b = 0; b < kAtom14; ++b) {
        const size_t at = size_t(i * kAtom14 + a);
        if (a == b || p.has(i, a) == 0 || p.has(i, b) == 0) continue;
        const int64_t bound = (p.types[i] * kAtom14 + a) * kAtom14 + b;
        const double low = double(lower[bound]), high = double(upper[bound]);
        const Vec gap = minus(p.atom(i, a), p.atom(i, b));
        const double distance = std::sqrt(1e-10 + dot(gap, gap));
        if (distance >= low && distance <= high) continue;
        out.loss[at] += 2 * (distance < low ? low - distance : distance - high);
        out.violated[at] = 1;
        add(d[at], 4 * factor * (distance < low ? -1 : 1) / distance, gap);
      }
  return out;
}

}  // namespace

void violations(const ViolationTensors& in, double tolerance, double overlap, const Tensor& loss,
                const ViolationResults& results, const Tensor& datoms) {
  const int64_t n = in.index.numel();
  Protein p{n,
            {},
            in.exists.data<double>(),
            in.radius.data<double>(),
            in.index.data<double>(),
            in.types.data<int32_t>(),
            in.proline};
  const Tensor x = in.atoms.to(Dtype::f64);
  for (int64_t i = 0; i < n * kAtom14; ++i)
    p.atoms.push_back(
        {x.data<double>()[3 * i], x.data<double>()[3 * i + 1], x.data<double>()[3 * i + 2]});
  std::vector<Vec> d(p.atoms.size());
  double count = 1e-6;
  for (int64_t i = 0; i < n * kAtom14; ++i) count += p.exists[i];
  const Between between = connections(p, tolerance, d);
  const PerAtom clash = clashes(p, overlap, 1 / count, d);
  const PerAtom inside = within(p, in.lower.data<float>(), in.upper.data<float>(), 1 / count, d);
  if (datoms.defined())
    by_real_type(datoms, [&](auto zero) {
      using T = decltype(zero);
      for (int64_t i = 0; i < datoms.numel(); ++i)
        datoms.data<T>()[i] += T(d[size_t(i / 3)][size_t(i % 3)]);
    });
  double atom_losses = 0;
  for (size_t i = 0; i < p.atoms.size(); ++i) atom_losses += clash.loss[i] + inside.loss[i];
  *loss.data<double>() = between.bond.loss_mean + between.ca_c_n.loss_mean +
                         between.c_n_ca.loss_mean + atom_losses / count;

  const Measure* const measures[] = {&between.bond, &between.ca_c_n, &between.c_n_ca};
  double *connection = results.connections.data<double>(), *mean = results.means.data<double>();
  std::fill_n(connection, 6 * n, 0.0);
  for (int k = 0; k < 3; ++k) {
    std::copy(measures[k]->loss.begin(), measures[k]->loss.end(), connection + k * n);
    std::copy(measures[k]->violated.begin(), measures[k]->violated.end(), connection + (3 + k) * n);
    mean[k] = measures[k]->loss_mean;
  }
  mean[3] = clash.mean;
  for (const auto& [atoms, to] : {std::pair{&clash, results.clashes.data<double>()},
                                  std::pair{&inside, results.within.data<double>()}}) {
    std::copy(atoms->loss.begin(), atoms->loss.end(), to);
    std::copy(atoms->violated.begin(), atoms->violated.end(), to + n * kAtom14);
  }
}

}  // namespace ff::cpu
