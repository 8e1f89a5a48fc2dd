// Torsion angles and pseudo betas of real chains against AlphaFold's labels.
#include "core/geometry/atoms.h"

#include <catch2/catch.hpp>

#include "core/geometry/rigid.h"
#include "io/npz.h"
#include "tests/unit/compare.h"

using namespace ff;

namespace {

/// x [n, k, ...] with the rows of [n, k] whose mask is 0 set to zero.
Tensor under(const Tensor& mask, const Tensor& x) {
  const Tensor out = x.clone();
  const int64_t width = x.numel() / mask.numel();
  for (int64_t i = 0; i < x.numel(); ++i)
    if (mask.data<float>()[i / width] == 0) out.data<float>()[i] = 0;
  return out;
}

Tensor vector(double x, double y, double z) {
  const float v[3] = {float(x), float(y), float(z)};
  return Tensor::of({3}, v);
}

}  // namespace

TEST_CASE("torsion angles of real chains are AlphaFold's") {
  for (const char* chain : {"2q2k_A", "3u8v_A"}) {
    const Arrays want = read_npz(std::string(TEST_DATA) + "/labels/" + chain + ".npz");
    const Torsions got = atom37_to_torsions(want.at("aatype"), want.at("all_atom_positions"),
                                            want.at("all_atom_mask"));
    const Tensor& mask = want.at("torsion_angles_mask");
    test::compare("mask", got.mask, mask, 0);
    test::compare("angles", under(mask, got.sin_cos),
                  under(mask, want.at("torsion_angles_sin_cos")), test::Tolerance::kOutput);
    test::compare("alternative angles", under(mask, got.alt_sin_cos),
                  under(mask, want.at("alt_torsion_angles_sin_cos")), test::Tolerance::kOutput);
    double known = 0;
    for (int64_t i = 0; i < mask.numel(); ++i) known += mask.data<float>()[i];
    REQUIRE(known > 200);
    // The mask leaves glycines without CA and others without CB out.
    const Tensor& there = want.at("pseudo_beta_mask");
    test::compare("pseudo beta",
                  under(there, pseudo_beta(want.at("aatype"), want.at("all_atom_positions"))),
                  under(there, want.at("pseudo_beta")), 0);
  }
}

TEST_CASE("an unknown residue and a chain's start have no angles") {
  const int32_t type[2] = {20, 21};
  const Tensor ones = Tensor::empty({2, 37});
  for (int64_t i = 0; i < 74; ++i) ones.data<float>()[i] = 1;
  const Torsions t = atom37_to_torsions(Tensor::of({2}, type), Tensor::zeros({2, 37, 3}), ones);
  const float want[14] = {0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0};
  test::compare("mask", t.mask, Tensor::of({2, 7}, want), 0);
  test::compare("angles of coinciding atoms", t.sin_cos, Tensor::zeros({2, 7, 2}), 0);
}

TEST_CASE("torsion angles of other shapes or letters are refused") {
  const int32_t type[1] = {-1};
  const Tensor aatype = Tensor::of({1}, type);
  REQUIRE_THROWS_AS(atom37_to_torsions(aatype, Tensor::zeros({1, 14, 3}), Tensor::zeros({1, 37})),
                    Error);
  REQUIRE_THROWS_WITH(atom37_to_torsions(aatype, Tensor::zeros({1, 37, 3}), Tensor::zeros({1, 37})),
                      Catch::Contains("aatype holds -1"));
  REQUIRE_THROWS_AS(pseudo_beta(aatype, Tensor::zeros({2, 37, 3})), Error);
}

TEST_CASE("a frame from vectors is right-handed and reads points back") {
  const Rigid f = frame_from_vectors({0, 2, 0}, {-1, 5, 0}, {1, 2, 3}, 0);
  const auto& r = f.rot;
  // x along y, y along -x, z along z.
  const double want[9] = {0, -1, 0, 1, 0, 0, 0, 0, 1};
  for (int i = 0; i < 9; ++i) REQUIRE(r[size_t(i)] == Approx(want[i]).margin(1e-15));
  const Vec3 local = to_local(f, {1, 7, 4});
  test::compare("local", vector(local[0], local[1], local[2]), vector(5, 0, 1), 1e-7);
  REQUIRE(frame_from_vectors({}, {}, {}, 1e-8).rot == std::array<double, 9>{});
}
