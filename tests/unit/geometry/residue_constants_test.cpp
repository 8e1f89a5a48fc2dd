// Residue constants against AlphaFold's arrays (fixtures' constants/residue_constants.npz).
#include "core/geometry/residue_constants.h"

#include <catch2/catch.hpp>

#include "io/npz.h"

using namespace ff;

namespace {

template <class T, size_t N, class U>
void require_equal(const Arrays& expected, const char* key, const U (&got)[N], double tolerance) {
  INFO(key);
  const Tensor& want = expected.at(key);
  const T* g = reinterpret_cast<const T*>(&got);
  REQUIRE(want.numel() == int64_t(sizeof(got) / sizeof(T)));
  for (int64_t i = 0; i < want.numel(); ++i) {
    INFO("element " << i);
    REQUIRE(double(g[i]) == Approx(double(want.data<T>()[i])).margin(tolerance).epsilon(0));
  }
}

}  // namespace

TEST_CASE("residue constants are AlphaFold's") {
  const Arrays a = read_npz(TEST_DATA "/constants/residue_constants.npz");
  const ResidueConstants& c = residue_constants();
  require_equal<float>(a, "restype_atom14_mask", c.atom14_mask, 0);
  require_equal<float>(a, "restype_atom37_mask", c.atom37_mask, 0);
  require_equal<int32_t>(a, "restype_atom14_to_rigid_group", c.atom14_to_rigid_group, 0);
  require_equal<float>(a, "restype_atom14_rigid_group_positions", c.atom14_rigid_group_positions,
                       0);
  require_equal<float>(a, "restype_rigid_group_default_frame", c.rigid_group_default_frame, 1e-7);
  require_equal<float>(a, "chi_angles_mask", c.chi_angles_mask, 0);
  require_equal<float>(a, "chi_pi_periodic", c.chi_pi_periodic, 0);
  require_equal<int32_t>(a, "chi_atom_indices", c.chi_atom_indices, 0);
  const Tensor& map = a.at("map_hhblits_aatype_to_our_aatype");
  for (int i = 0; i < 22; ++i) REQUIRE(hhblits_to_restype(i) == map.data<int32_t>()[i]);
}

TEST_CASE("the two atom layouts agree with each other") {
  const ResidueConstants& c = residue_constants();
  for (int r = 0; r < kRestypes; ++r) {
    INFO(kRestypeNames[r]);
    REQUIRE(restype_index(kRestypeNames[r]) == r);
    REQUIRE(restype_index(kRestypeLetters[r]) == r);
    for (int a = 0; a < kAtom14; ++a) {
      if (c.atom14_names[r][a].empty()) {
        REQUIRE(c.atom14_to_atom37[r][a] == 0);
        continue;
      }
      const int a37 = c.atom14_to_atom37[r][a];
      REQUIRE(kAtomNames[a37] == c.atom14_names[r][a]);
      REQUIRE(c.atom37_to_atom14[r][a37] == a);
    }
  }
  REQUIRE(restype_index("MSE") == kUnknownRestype);
  REQUIRE(restype_index('B') == kUnknownRestype);
  REQUIRE(restype_index('-') == kUnknownRestype);
}

TEST_CASE("letters of an alignment") {
  // names.json: hhblits_aa_to_id.
  const std::string_view letters = "-ABCDEFGHIJKLMNOPQRSTUVWXYZ";
  const int ids[] = {21, 0,  2,  1,  2,  3,  4,  5, 6,  7,  20, 8,  9, 10,
                     11, 20, 12, 13, 14, 15, 16, 1, 17, 18, 20, 19, 3};
  for (size_t i = 0; i < letters.size(); ++i) REQUIRE(hhblits_id(letters[i]) == ids[i]);
  REQUIRE(hhblits_id('a') == -1);
  REQUIRE(hhblits_id('.') == -1);
}
