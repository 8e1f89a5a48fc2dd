// Scores against programs that are not ours: TMscore (Debian's tm-align 20190822), biotite 1.6's
// lDDT and AlphaFold's (data/scores/programs.npz, data/scores.npz).
#include "core/train/metrics.h"

#include <catch2/catch.hpp>
#include <random>
#include <set>

#include "core/geometry/residue_constants.h"
#include "io/npz.h"
#include "tests/unit/compare.h"

using namespace ff;

namespace {

std::vector<Vec3> points(const Tensor& x) {
  std::vector<Vec3> out;
  for (int64_t i = 0; i < x.size(0); ++i) {
    const float* v = x.data<float>() + 3 * i;
    out.push_back({v[0], v[1], v[2]});
  }
  return out;
}

std::vector<int32_t> one_each(size_t n) {
  std::vector<int32_t> residue(n);
  for (size_t i = 0; i < n; ++i) residue[i] = int32_t(i);
  return residue;
}

Lddt lddt_ca(const std::vector<Vec3>& a, const std::vector<Vec3>& b) {
  return lddt(a, b, one_each(a.size()), std::vector<uint8_t>(a.size(), 1));
}

/// TMscore prints four decimals.
constexpr double kPrinted = 1e-4;

}  // namespace

TEST_CASE("TM-score, GDT and RMSD are TMscore's") {
  const Arrays data = read_npz(TEST_DATA "/scores/programs.npz");
  std::set<std::string> names;
  for (const auto& [key, value] : data) names.insert(key.substr(0, key.find('/')));
  REQUIRE(names.size() >= 8);
  for (const std::string& name : names) {
    INFO(name);
    const auto want = [&](const char* what) { return data.at(name + "/" + what).item(); };
    const auto predicted = points(data.at(name + "/predicted_ca")),
               reference = points(data.at(name + "/reference_ca"));
    const FitScores got = best_fit(predicted, reference, int64_t(want("length")));
    CHECK(got.tm == Approx(want("tm")).epsilon(0).margin(kPrinted));
    CHECK(got.gdt_ts == Approx(want("gdt_ts")).epsilon(0).margin(kPrinted));
    CHECK(got.gdt_ha == Approx(want("gdt_ha")).epsilon(0).margin(kPrinted));
    CHECK(superpose(predicted, reference).rmsd == Approx(want("rmsd")).epsilon(0).margin(6e-4));
    CHECK(drmsd(predicted, reference) == Approx(want("drmsd")).epsilon(0).margin(1e-5));
    if (want("length") == double(reference.size()))
      CHECK(lddt_ca(predicted, reference).global ==
            Approx(want("lddt_ca")).epsilon(0).margin(1e-6));
  }
}

TEST_CASE("lDDT of all atoms is biotite's") {
  const Arrays data = read_npz(TEST_DATA "/scores/programs.npz");
  for (const std::string name : {"small_moved", "middle_moved", "large_moved"}) {
    INFO(name);
    const Tensor& mask = data.at(name + "/mask");
    std::vector<Vec3> predicted, reference;
    std::vector<int32_t> residue;
    for (int64_t i = 0; i < mask.numel(); ++i) {
      if (mask.data<float>()[i] == 0) continue;
      const float *p = data.at(name + "/predicted").data<float>() + 3 * i,
                  *r = data.at(name + "/reference").data<float>() + 3 * i;
      predicted.push_back({p[0], p[1], p[2]});
      reference.push_back({r[0], r[1], r[2]});
      residue.push_back(int32_t(i / kAtom37));
    }
    const double want = data.at(name + "/lddt").item();
    CHECK(lddt(predicted, reference, residue, std::vector<uint8_t>(residue.size(), 1)).global ==
          Approx(want).epsilon(0).margin(1e-6));
    // Where the atoms that look alike are named for the better it can only be more.
    const ChainScores chain =
        compare_chains(data.at(name + "/aatype"), data.at(name + "/predicted"), mask,
                       data.at(name + "/reference"), mask);
    CHECK(chain.lddt >= want - 1e-6);
    CHECK(chain.lddt <= want + 0.01);
    CHECK(chain.tm == Approx(data.at(name + "/tm").item()).epsilon(0).margin(kPrinted));
  }
}

TEST_CASE("lDDT-CA and Kabsch's superposition are those of AlphaFold's code") {
  const Arrays data = read_npz(TEST_DATA "/scores.npz");
  for (const std::string name : {"a", "b", "c"}) {
    INFO(name);
    const Tensor& mask = data.at(name + "/mask");
    const auto all_predicted = points(data.at(name + "/pred_ca")),
               all_reference = points(data.at(name + "/true_ca"));
    std::vector<Vec3> predicted, reference;
    for (size_t i = 0; i < all_predicted.size(); ++i)
      if (mask.data<float>()[i] > 0) {
        predicted.push_back(all_predicted[i]);
        reference.push_back(all_reference[i]);
      }
    const Lddt got = lddt_ca(predicted, reference);
    CHECK(got.global == Approx(data.at(name + "/lddt_global").item()).epsilon(0).margin(1e-6));
    for (size_t i = 0, k = 0; i < all_predicted.size(); ++i)
      if (mask.data<float>()[i] > 0)
        CHECK(got.per_residue[k++] ==
              Approx(data.at(name + "/lddt_per_residue").data<float>()[i]).epsilon(0).margin(1e-6));
    const Superposition best = superpose(predicted, reference);
    CHECK(best.rmsd == Approx(data.at(name + "/kabsch_rmsd").item()).epsilon(1e-5));
    for (size_t k = 0; k < 9; ++k)
      CHECK(best.motion.rot[k] ==
            Approx(data.at(name + "/kabsch_rotation").data<float>()[k]).epsilon(0).margin(1e-5));
    for (size_t k = 0; k < 3; ++k)
      CHECK(best.motion.trans[k] ==
            Approx(data.at(name + "/kabsch_translation").data<float>()[k]).epsilon(0).margin(1e-4));
  }
}

TEST_CASE("atoms that look alike may have either name, and what is missing counts") {
  const Arrays data = read_npz(TEST_DATA "/scores/programs.npz");
  const std::string name = "middle_moved/";
  const Tensor &mask = data.at(name + "mask"), &reference = data.at(name + "reference"),
               &aatype = data.at(name + "aatype");
  const ChainScores same = compare_chains(aatype, reference, mask, reference, mask);
  CHECK(same.lddt == 1);
  CHECK(same.lddt_ca == 1);
  CHECK(same.gdt_ha == 1);
  CHECK(same.tm == Approx(1).epsilon(1e-12));
  CHECK(same.rmsd < 1e-6);
  CHECK(same.drmsd == 0);

  const Tensor renamed = reference.clone();
  int exchanged = 0;
  for (int64_t i = 0; i < aatype.numel(); ++i)
    for (const auto& [a, b, types] : {std::tuple{"OD1", "OD2", "D"},
                                      {"OE1", "OE2", "E"},
                                      {"CD1", "CD2", "FY"},
                                      {"CE1", "CE2", "FY"}})
      if (std::string_view(types).find(kRestypeLetters[size_t(aatype.data<int32_t>()[i])]) !=
          std::string_view::npos) {
        float* row = renamed.data<float>() + i * kAtom37 * 3;
        std::swap_ranges(row + 3 * atom37_index(a), row + 3 * atom37_index(a) + 3,
                         row + 3 * atom37_index(b));
        ++exchanged;
      }
  REQUIRE(exchanged > 10);
  CHECK(compare_chains(aatype, renamed, mask, reference, mask).lddt == 1);

  // Half of the prediction is missing: at most half of GDT and TM-score, all of the rest right.
  const Tensor half = mask.clone();
  const int64_t n = aatype.numel();
  std::fill_n(half.data<float>() + n / 2 * kAtom37, (n - n / 2) * kAtom37, 0.0f);
  const ChainScores part = compare_chains(aatype, reference, half, reference, mask);
  CHECK(part.compared == n / 2);
  CHECK(part.reference == n);
  CHECK(part.gdt_ts == Approx(double(n / 2) / double(n)));
  CHECK(part.rmsd < 1e-6);
  CHECK(part.lddt_ca < 0.6);
  CHECK(part.lddt_ca > 0.2);
}

TEST_CASE("degenerate structures have finite scores") {
  std::mt19937 random(1);
  std::uniform_real_distribution<double> uniform(-1, 1);
  for (const size_t n : {1u, 2u, 3u, 4u, 5u, 30u})
    for (const double scale : {0.0, 1.0, 1e30}) {
      INFO(n << " points of size " << scale);
      std::vector<Vec3> a(n), b(n);
      for (size_t i = 0; i < n; ++i) {
        a[i] = {scale * uniform(random), 0, 0};  // on a line
        b[i] = {scale * uniform(random), scale * uniform(random), scale * uniform(random)};
      }
      const FitScores fit = best_fit(a, b, int64_t(n));
      CHECK((fit.tm >= 0 && fit.tm <= 1 + 1e-12));
      CHECK((fit.gdt_ts >= 0 && fit.gdt_ts <= 1));
      CHECK(std::isfinite(superpose(a, b).rmsd));
      CHECK(std::isfinite(drmsd(a, b)));
      CHECK(std::isfinite(lddt_ca(a, b).global));
    }
}

TEST_CASE("chains without a residue in common are refused") {
  const int32_t type[1] = {0};
  const Tensor aatype = Tensor::of({1}, type), x = Tensor::zeros({1, 37, 3}),
               mask = Tensor::zeros({1, 37});
  REQUIRE_THROWS_WITH(compare_chains(aatype, x, mask, x, mask),
                      Catch::Contains("no residue has a C-alpha atom in both"));
  REQUIRE_THROWS_AS(compare_chains(aatype, x, mask, Tensor::zeros({2, 37, 3}), mask), Error);
}
