// Labels of real chains against AlphaFold's, value by value.
#include "io/labels.h"

#include <catch2/catch.hpp>
#include <cstdlib>
#include <iostream>

#include "core/geometry/residue_constants.h"
#include "io/npz.h"
#include "tests/unit/compare.h"

using namespace ff;

namespace {

/// The mask under which a label has a meaning; "" where every value has one.
std::string mask_of(const std::string& label) {
  if (label == "rigidgroups_gt_frames" || label == "rigidgroups_alt_gt_frames")
    return "rigidgroups_gt_exists";
  if (label == "torsion_angles_sin_cos" || label == "alt_torsion_angles_sin_cos")
    return "torsion_angles_mask";
  return label == "backbone_affine_tensor" ? "backbone_affine_mask" : "";
}

/// Integers, masks and copied coordinates exactly, the rest to 1e-5.
void compare_labels(const Arrays& got, const Arrays& want) {
  CHECK(got.size() == want.size());
  for (const auto& [name, expected] : want) {
    INFO(name);
    REQUIRE(got.count(name));
    const Tensor& value = got.at(name);
    REQUIRE(value.shape() == expected.shape());
    const std::string mask = mask_of(name);
    const bool computed = !mask.empty() || name == "chi_angles" || name == "alt_chi_angles";
    const Tensor a = value.to(Dtype::f64).contiguous(), b = expected.to(Dtype::f64).contiguous();
    const int64_t width = mask.empty() ? 1 : a.numel() / want.at(mask).numel();
    int64_t compared = 0;
    for (int64_t i = 0; i < a.numel(); ++i) {
      if (!mask.empty() && want.at(mask).data<float>()[i / width] == 0) continue;
      ++compared;
      double off = std::abs(a.data<double>()[i] - b.data<double>()[i]);
      // pi and -pi are one angle.
      if (name.ends_with("chi_angles")) off = std::abs(std::remainder(off, 2 * M_PI));
      INFO("element " << i << ": " << a.data<double>()[i] << ", expected " << b.data<double>()[i]);
      REQUIRE(off <= (computed ? 1e-5 * std::max(1.0, std::abs(b.data<double>()[i])) : 0));
    }
    CHECK(compared > 0);
  }
}

ChainStructure chain_of(const Arrays& labels) {
  ChainStructure chain;
  for (int64_t i = 0; i < labels.at("aatype").numel(); ++i)
    chain.sequence += kRestypeLetters[size_t(labels.at("aatype").data<int32_t>()[i])];
  chain.positions = labels.at("all_atom_positions");
  chain.mask = labels.at("all_atom_mask");
  return chain;
}

}  // namespace

TEST_CASE("labels of atoms are AlphaFold's") {
  for (const std::string id : {"2q2k_A", "3u8v_A"}) {
    INFO(id);
    const Arrays want = read_npz(TEST_DATA "/labels/" + id + ".npz");
    compare_labels(make_labels(chain_of(want), want.at("resolution").item()), want);
  }
}

TEST_CASE("labels of mmCIF entries are AlphaFold's") {
  const char* shared = std::getenv("FASTFOLD_TEST_DATA");
  if (!shared) {
    std::cout << "SKIPPED: FASTFOLD_TEST_DATA is not set\n";
    return;
  }
  const std::string folder = std::string(shared) + "/fixtures/labels/";
  for (const std::string id : {"2q2k", "4zey", "3u8v"}) {
    INFO(id);
    const StructureEntry entry = read_structure(folder + "input/" + id + ".cif.gz");
    for (const ChainStructure& chain : entry.chains)
      if (chain.name == "A")
        compare_labels(make_labels(chain, entry.resolution), read_npz(folder + id + "_A.npz"));
  }
}

TEST_CASE("labels of a chain without atoms are all masked and finite") {
  ChainStructure chain;
  chain.sequence = "MXDEFYG";
  chain.positions = Tensor::zeros({7, 37, 3});
  chain.mask = Tensor::zeros({7, 37});
  for (const auto& [name, value] : make_labels(chain, 0)) {
    INFO(name);
    const Tensor x = value.to(Dtype::f64).contiguous();
    double sum = 0;
    for (int64_t i = 0; i < x.numel(); ++i) sum += x.data<double>()[i];
    CHECK(std::isfinite(sum));
    if (name.ends_with("gt_exists") || (name.ends_with("_mask") && name != "atom14_mask"))
      CHECK(sum == 0);
  }
}
