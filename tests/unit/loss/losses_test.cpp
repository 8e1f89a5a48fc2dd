// Each loss's gradient against finite differences, and the bounds that violations are measured by.
#include "core/loss/losses.h"
#include "core/geometry/stereo_chemistry.h"
#include "io/npz.h"
#include "tests/unit/gradcheck.h"

namespace ff::test {
namespace {

Tensor mask_with_zeros(const Dims& shape, int64_t every) {
  const Tensor t = Tensor::empty(shape, Dtype::f64);
  for (int64_t i = 0; i < t.numel(); ++i) t.data<double>()[i] = i % every == every - 1 ? 0 : 1;
  return t;
}

TEST_CASE("frame aligned point error, clamped, unclamped and mixed") {
  const FapeTarget target{random_f64({4, 12}, 1), mask_with_zeros({4}, 3), random_f64({6, 3}, 2),
                          mask_with_zeros({6}, 4)};
  for (const double clamped : {1.0, 0.0, 0.3})
    gradcheck([&](const Vars& v) { return fape(v[0], v[1], target, 3, clamped, 10); },
              {random_f64({4, 12}, 3), random_f64({6, 3}, 4)});
}

TEST_CASE("torsion losses") {
  const std::vector<int32_t> types{1, 3, 13, 20};  // Arg; Asp and Phe, whose ends turn; unknown
  const Tensor aatype = Tensor::of<int32_t>({4}, types.data());
  const Tensor chi = random_f64({4, 4}, 1), mask = mask_with_zeros({4, 4}, 5);
  gradcheck(
      [&](const Vars& v) {
        return chi_loss({v[0], v[1]}, chi, mask, aatype);
      },
      {random_f64({4, 7, 2}, 2), random_f64({4, 7, 2}, 3)});
  gradcheck(
      [&](const Vars& v) {
        return angle_norm_loss({v[0], v[1]}, mask_with_zeros({4}, 4));
      },
      {random_f64({4, 14}, 4), random_f64({4, 14}, 5)});
}

TEST_CASE("cross-entropies and weighted sums") {
  gradcheck(
      [](const Vars& v) {
        return cross_entropy(v[0], {0, 2, 1, 4, 3, 3}, {1, 0, 1, 0.5, 1, 1}, 4.5);
      },
      {random_f64({2, 3, 5}, 1)});
  gradcheck(
      [](const Vars& v) {
        return binary_cross_entropy(v[0], mask_with_zeros({3, 4}, 2), mask_with_zeros({3, 4}, 3));
      },
      {random_f64({3, 4}, 2, 5)});
  gradcheck(
      [](const Vars& v) {
        return weighted_sum(
            {{0.5, cross_entropy(v[0], {1}, {1}, 1)}, {-2, cross_entropy(v[1], {0}, {1}, 1)}});
      },
      {random_f64({1, 3}, 3), random_f64({1, 4}, 4)});
}

TEST_CASE("violations") {
  const ResidueConstants& c = residue_constants();
  const std::vector<int32_t> types{1, 14, 4, 4, 20, 7}, index{1, 2, 3, 4, 5, 9};
  const Tensor exists = Tensor::empty({6, kAtom14}),
               names = Tensor::empty({6, kAtom14}, Dtype::i32);
  for (int64_t i = 0; i < 6 * kAtom14; ++i) {
    const int type = types[size_t(i / kAtom14)];
    exists.data<float>()[i] = c.atom14_mask[type][i % kAtom14];
    names.data<int32_t>()[i] = c.atom14_to_atom37[type][i % kAtom14];
  }
  const Arrays batch{{"aatype", Tensor::of<int32_t>({6}, types.data())},
                     {"residue_index", Tensor::of<int32_t>({6}, index.data())},
                     {"seq_mask", mask_with_zeros({6}, 9)},
                     {"atom14_atom_exists", exists},
                     {"residx_atom14_to_atom37", names}};
  gradcheck([&](const Vars& v) { return violations(v[0], batch, 12, 1.5).loss; },
            {random_f64({6, kAtom14, 3}, 1, 2)});
}

TEST_CASE("distances within residues are bounded as AlphaFold bounds them") {
  const Arrays constants = read_npz(std::string(TEST_DATA) + "/constants/residue_constants.npz");
  const DistanceBounds bounds = distance_bounds(1.5, 12);
  const auto compare = [&](const char* name, const float* ours) {
    const Tensor want = constants.at(name).to(Dtype::f64).contiguous();
    REQUIRE(want.numel() == 21 * kAtom14 * kAtom14);
    for (int64_t i = 0; i < want.numel(); ++i)
      REQUIRE(double(ours[i]) == Approx(want.data<double>()[i]).epsilon(1e-6).margin(1e-6));
  };
  compare("atom14_dists_bounds/lower_bound", &bounds.lower[0][0][0]);
  compare("atom14_dists_bounds/upper_bound", &bounds.upper[0][0][0]);
}

}  // namespace
}  // namespace ff::test
