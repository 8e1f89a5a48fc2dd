// Scores of a structure against its reference.
#include "core/train/metrics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/geometry/atoms.h"
#include "core/geometry/residue_constants.h"

namespace ff {
namespace {

constexpr double kLddtRadius = 15;
constexpr double kLddtLimits[4] = {0.5, 1, 2, 4};

double squared(const Vec3& a) { return a[0] * a[0] + a[1] * a[1] + a[2] * a[2]; }
double distance(const Vec3& a, const Vec3& b) { return std::sqrt(squared(a - b)); }

/// The share of lDDT's four limits that hold.
double kept(double predicted, double reference) {
  const double off = std::abs(predicted - reference);
  double held = 0;
  for (const double limit : kLddtLimits) held += off < limit;
  return held / 4;
}

/// The best motion of the points that `index` names.
Rigid fit(Points moving, Points fixed, std::span<const int32_t> index) {
  Vec3 from{}, to{};
  for (const int32_t i : index)
    for (size_t k = 0; k < 3; ++k) {
      from[k] += moving[size_t(i)][k];
      to[k] += fixed[size_t(i)][k];
    }
  const auto n = double(index.size());
  for (size_t k = 0; k < 3; ++k) from[k] /= n, to[k] /= n;
  std::array<double, 9> s{};
  for (const int32_t i : index) {
    const Vec3 a = moving[size_t(i)] - from, b = fixed[size_t(i)] - to;
    for (size_t j = 0; j < 3; ++j)
      for (size_t k = 0; k < 3; ++k) s[3 * j + k] += b[j] * a[k];
  }
  // The rotation that agrees most with the covariance.
  Rigid motion{rotation(quaternion(s)), to};
  const Vec3 turned = to_global(Rigid{motion.rot, {}}, from);
  motion.trans = to - turned;
  return motion;
}

std::vector<int32_t> counted(size_t n) {
  std::vector<int32_t> index(n);
  std::iota(index.begin(), index.end(), 0);
  return index;
}

/// TMscore's search.
class FitSearch {
 public:
  FitSearch(Points predicted, Points reference, int64_t length)
      : predicted_(predicted),
        reference_(reference),
        length_(double(length)),
        distance_(predicted.size()) {
    if (length > 15) d0_ = 1.24 * std::cbrt(length_ - 15) - 1.8;
    d0_ = std::max(d0_, 0.5);
  }

  FitScores run() {
    const size_t n = predicted_.size(), shortest = std::min<size_t>(n, 4);
    const double near = std::clamp(d0_, 4.5, 8.0);
    constexpr int kLengths = 6, kExtensions = 20;
    std::vector<int32_t> chosen, before;
    for (int level = 0; level < kLengths; ++level) {
      size_t fragment = n >> level;
      if (fragment <= shortest || level == kLengths - 1) fragment = shortest, level = kLengths;
      for (size_t start = 0; start + fragment <= n; ++start) {
        before = counted(fragment);
        for (int32_t& i : before) i += int32_t(start);
        score(before, near - 1, chosen);
        for (int k = 0; k < kExtensions; ++k) {
          std::swap(before, chosen);
          score(before, near + 1, chosen);
          if (chosen == before) break;
        }
      }
    }
    const auto gdt = [&](int first) {
      double sum = 0;
      for (int k = first; k < first + 4; ++k) sum += double(most_[k]);
      return sum / 4 / length_;
    };
    return {tm_ / length_, gdt(1), gdt(0)};
  }

 private:
  /// Superposes the pairs of `index`, keeps what is better than before, and gives the pairs that
  /// come to lie closer than `cutoff`, which grows until they determine a superposition.
  void score(const std::vector<int32_t>& index, double cutoff, std::vector<int32_t>& close) {
    const Rigid motion = fit(predicted_, reference_, index);
    const size_t n = predicted_.size();
    double sum = 0;
    std::array<int64_t, 5> within{};
    std::array<double, 3> nearest;
    nearest.fill(std::numeric_limits<double>::infinity());
    for (size_t i = 0; i < n; ++i) {
      const double d = distance(to_global(motion, predicted_[i]), reference_[i]);
      distance_[i] = d;
      sum += 1 / (1 + d * d / (d0_ * d0_));
      for (size_t k = 0; k < 5; ++k) within[k] += d <= kGdt[k];
      if (d < nearest[2]) {
        nearest[2] = d;
        if (nearest[2] < nearest[1]) std::swap(nearest[1], nearest[2]);
        if (nearest[1] < nearest[0]) std::swap(nearest[0], nearest[1]);
      }
    }
    tm_ = std::max(tm_, sum);
    for (size_t k = 0; k < 5; ++k) most_[k] = std::max(most_[k], within[k]);
    if (n > 3 && nearest[2] >= cutoff)
      cutoff = std::max(cutoff + 0.5 * (std::floor((nearest[2] - cutoff) / 0.5) + 1),
                        std::nextafter(nearest[2], std::numeric_limits<double>::infinity()));
    close.clear();
    for (size_t i = 0; i < n; ++i)
      if (distance_[i] < cutoff) close.push_back(int32_t(i));
    // Nothing to extend from: fewer pairs than TMscore asks for in the whole.
    if (close.empty()) close = index;
  }

  static constexpr double kGdt[5] = {0.5, 1, 2, 4, 8};
  Points predicted_, reference_;
  double length_, d0_ = 0.5, tm_ = 0;
  std::array<int64_t, 5> most_{};
  std::vector<double> distance_;
};

struct Atoms {
  std::vector<Vec3> predicted, reference;
  std::vector<int32_t> residue;
  std::vector<uint8_t> known;
  std::vector<int> atom, twin;  // atom37 places; twin: of the atom that looks alike, or -1

  void add(const Vec3& p, const Vec3& r, int32_t of, bool is_known) {
    predicted.push_back(p);
    reference.push_back(r);
    residue.push_back(of);
    known.push_back(is_known);
  }
};

int twin_atom37(int32_t aatype, int atom) {
  if (aatype < 0 || aatype >= kRestypes) return -1;
  const ResidueConstants& constants = residue_constants();
  if (constants.atom37_mask[aatype][atom] == 0) return -1;
  const int here = constants.atom37_to_atom14[aatype][atom];
  const int other = alternative_atom14(aatype, here);
  return other == here ? -1 : constants.atom14_to_atom37[aatype][other];
}

/// Exchanges the predicted positions of atoms that look alike, residue by residue, where that keeps
/// more of their distances to atoms that have one name. The atoms are in the order of residues.
void choose_names(Atoms& atoms) {
  const size_t n = atoms.residue.size();
  std::vector<int32_t> order;  // along x, those of one name
  for (size_t i = 0; i < n; ++i)
    if (atoms.twin[i] < 0 && atoms.known[i]) order.push_back(int32_t(i));
  const auto x_of = [&](int32_t i) { return atoms.reference[size_t(i)][0]; };
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return x_of(a) < x_of(b); });
  for (size_t begin = 0, end; begin < n; begin = end) {
    std::vector<std::array<size_t, 2>> pairs;
    for (end = begin; end < n && atoms.residue[end] == atoms.residue[begin]; ++end)
      for (size_t i = begin; i < end; ++i)
        if (atoms.twin[end] == atoms.atom[i] && atoms.known[i] && atoms.known[end])
          pairs.push_back({i, end});
    double gain = 0;
    for (const auto& pair : pairs)
      for (size_t side = 0; side < 2; ++side) {
        const Vec3& place = atoms.reference[pair[side]];
        auto near = std::lower_bound(order.begin(), order.end(), place[0] - kLddtRadius,
                                     [&](int32_t a, double x) { return x_of(a) < x; });
        for (; near != order.end() && x_of(*near) < place[0] + kLddtRadius; ++near) {
          const auto k = size_t(*near);
          const double d = distance(place, atoms.reference[k]);
          if (d >= kLddtRadius || atoms.residue[k] == atoms.residue[begin]) continue;
          gain += kept(distance(atoms.predicted[pair[1 - side]], atoms.predicted[k]), d) -
                  kept(distance(atoms.predicted[pair[side]], atoms.predicted[k]), d);
        }
      }
    if (gain > 0)
      for (const auto& pair : pairs) std::swap(atoms.predicted[pair[0]], atoms.predicted[pair[1]]);
  }
}

}  // namespace

Superposition superpose(Points moving, Points fixed) {
  check(!moving.empty() && moving.size() == fixed.size(), "superposition of ", moving.size(),
        " points on ", fixed.size());
  Superposition out;
  out.motion = fit(moving, fixed, counted(moving.size()));
  double sum = 0;
  for (size_t i = 0; i < moving.size(); ++i)
    sum += squared(to_global(out.motion, moving[i]) - fixed[i]);
  out.rmsd = std::sqrt(sum / double(moving.size()));
  return out;
}

double drmsd(Points a, Points b) {
  check(a.size() == b.size(), "distances of ", a.size(), " points and of ", b.size());
  const auto n = double(a.size());
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i)
    for (size_t j = 0; j < i; ++j) {
      const double off = distance(a[i], a[j]) - distance(b[i], b[j]);
      sum += off * off;
    }
  return a.size() < 2 ? 0 : std::sqrt(sum / (n * (n - 1) / 2));
}

Lddt lddt(Points predicted, Points reference, std::span<const int32_t> residue,
          std::span<const uint8_t> known) {
  const size_t n = reference.size();
  check(predicted.size() == n && residue.size() == n && known.size() == n, "lDDT of ",
        predicted.size(), " points against ", n);
  const size_t residues = n ? size_t(residue.back()) + 1 : 0;
  std::vector<double> held(residues), all(residues);
  // Along x no pair within the radius is further apart than it.
  std::vector<int32_t> order = counted(n);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    const double xa = reference[size_t(a)][0], xb = reference[size_t(b)][0];
    return xa != xb ? xa < xb : a < b;
  });
  for (size_t first = 0; first < n; ++first)
    for (size_t second = first + 1; second < n; ++second) {
      const auto i = size_t(order[first]), j = size_t(order[second]);
      if (reference[j][0] - reference[i][0] >= kLddtRadius) break;
      if (residue[i] == residue[j]) continue;
      const double d2 = squared(reference[i] - reference[j]);
      if (d2 >= kLddtRadius * kLddtRadius) continue;
      const double share =
          known[i] && known[j] ? kept(distance(predicted[i], predicted[j]), std::sqrt(d2)) : 0;
      for (const size_t k : {i, j}) {
        held[size_t(residue[k])] += share;
        all[size_t(residue[k])] += 1;
      }
    }
  Lddt out;
  const auto part = [](double of, double whole) { return whole > 0 ? of / whole : 1; };
  for (size_t r = 0; r < residues; ++r) out.per_residue.push_back(part(held[r], all[r]));
  out.global = part(std::accumulate(held.begin(), held.end(), 0.0),
                    std::accumulate(all.begin(), all.end(), 0.0));
  return out;
}

FitScores best_fit(Points predicted, Points reference, int64_t length) {
  check(!predicted.empty() && predicted.size() == reference.size() && length > 0, "fit of ",
        predicted.size(), " points to ", reference.size(), ", length ", length);
  return FitSearch(predicted, reference, length).run();
}

ChainScores compare_chains(const Tensor& aatype, const Tensor& predicted,
                           const Tensor& predicted_mask, const Tensor& reference,
                           const Tensor& reference_mask) {
  const int64_t n = aatype.numel();
  const Dims atoms{n, kAtom37, 3}, flags{n, kAtom37};
  check_input(aatype.rank() == 1 && predicted.shape() == atoms && reference.shape() == atoms &&
                  predicted_mask.shape() == flags && reference_mask.shape() == flags,
              "comparison of chains: aatype ", aatype.shape().str(), ", positions ",
              predicted.shape().str(), " and ", reference.shape().str(),
              ", expected [n_res] and [n_res, 37, 3]");
  const Tensor types = aatype.contiguous(), p = predicted.contiguous(), r = reference.contiguous(),
               p_mask = predicted_mask.contiguous(), r_mask = reference_mask.contiguous();
  const auto at = [](const Tensor& x, int64_t i) {
    const float* v = x.data<float>() + 3 * i;
    return Vec3{v[0], v[1], v[2]};
  };
  Atoms ca, all;
  std::vector<Vec3> moving, fixed;
  std::vector<int64_t> row;  // of each C-alpha atom
  for (int64_t i = 0; i < n; ++i)
    for (int a = 0; a < kAtom37; ++a) {
      const int64_t k = i * kAtom37 + a;
      if (r_mask.data<float>()[k] == 0) continue;
      const bool known = p_mask.data<float>()[k] != 0;
      all.add(at(p, k), at(r, k), int32_t(i), known);
      all.twin.push_back(twin_atom37(types.data<int32_t>()[i], a));
      all.atom.push_back(a);
      if (a != kAtomCa) continue;
      ca.add(at(p, k), at(r, k), int32_t(row.size()), known);
      row.push_back(i);
      if (!known) continue;
      moving.push_back(at(p, k));
      fixed.push_back(at(r, k));
    }
  check_input(!moving.empty(), "no residue has a C-alpha atom in both structures");
  choose_names(all);

  ChainScores out;
  const Lddt by_ca = lddt(ca.predicted, ca.reference, ca.residue, ca.known);
  out.lddt_ca = by_ca.global;
  out.per_residue.assign(size_t(n), std::numeric_limits<double>::quiet_NaN());
  for (size_t i = 0; i < row.size(); ++i) out.per_residue[size_t(row[i])] = by_ca.per_residue[i];
  out.lddt = lddt(all.predicted, all.reference, all.residue, all.known).global;
  out.compared = int64_t(moving.size());
  out.reference = int64_t(row.size());
  const FitScores fitted = best_fit(moving, fixed, out.reference);
  out.tm = fitted.tm;
  out.gdt_ts = fitted.gdt_ts;
  out.gdt_ha = fitted.gdt_ha;
  out.rmsd = superpose(moving, fixed).rmsd;
  out.drmsd = drmsd(moving, fixed);
  return out;
}

}  // namespace ff
