// The PDB writer against a file of OpenFold's (AlphaFold's writer), byte for byte.
#include "io/structure_writer.h"

#include <catch2/catch.hpp>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <sstream>

#include "core/geometry/residue_constants.h"
#include "io/file.h"

using namespace ff;

namespace {

PredictedStructure one_glycine() {
  PredictedStructure s;
  const int32_t gly = kGly;
  s.aatype = Tensor::of<int32_t>({1}, &gly);
  s.positions = Tensor::zeros({1, kAtom37, 3});
  s.mask = Tensor::zeros({1, kAtom37});
  s.b_factors = Tensor::zeros({1});
  for (int a : {kAtomN, kAtomCa, kAtomC, kAtomO}) s.mask.data<float>()[a] = 1;
  s.positions.data<float>()[kAtomCa * 3] = -1.25f;
  s.b_factors.data<float>()[0] = 87.5f;
  return s;
}

}  // namespace

TEST_CASE("a PDB file has AlphaFold's columns") {
  const std::string text = to_pdb(one_glycine());
  std::istringstream lines(text);
  std::vector<std::string> all;
  for (std::string line; std::getline(lines, line);) {
    CHECK(line.size() == 80);
    all.push_back(line);
  }
  REQUIRE(all.size() == 8);
  CHECK(all[0].substr(0, 11) == "MODEL     1");
  CHECK(all[2] ==
        "ATOM      2  CA  GLY A   1      -1.250   0.000   0.000  1.00 87.50           C  ");
  CHECK(all[5].substr(0, 26) == "TER       5      GLY A   1");
  CHECK(all[6].substr(0, 6) == "ENDMDL");
  CHECK(all[7].substr(0, 4) == "END ");
}

TEST_CASE("what a PDB file cannot hold is refused") {
  PredictedStructure s = one_glycine();
  s.positions.data<float>()[0] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(to_pdb(s), Catch::Contains("atom N of residue 1"));
  s.positions.data<float>()[0] = -1000;
  CHECK_THROWS_WITH(to_pdb(s), Catch::Contains("cannot hold"));

  PredictedStructure large;
  large.aatype = Tensor::zeros({10000}, Dtype::i32);
  large.positions = Tensor::zeros({10000, kAtom37, 3});
  large.mask = Tensor::zeros({10000, kAtom37});
  large.b_factors = Tensor::zeros({10000});
  CHECK_THROWS_WITH(to_pdb(large), Catch::Contains("9999"));
}

TEST_CASE("OpenFold's published prediction is written back byte for byte") {
  const char* shared = std::getenv("FASTFOLD_TEST_DATA");
  if (!shared) {
    std::cout << "SKIPPED: FASTFOLD_TEST_DATA is not set\n";
    return;
  }
  const std::string path =
      std::string(shared) + "/data/predictions/6KWC_1_openfold_model_1_ptm_unrelaxed.pdb.gz";
  std::string expected = read_text_file(path, 1 << 24);
  expected = expected.substr(expected.find("MODEL"));
  constexpr int kLength = 191;
  PredictedStructure s;
  s.aatype = Tensor::zeros({kLength}, Dtype::i32);
  s.positions = Tensor::zeros({kLength, kAtom37, 3});
  s.mask = Tensor::zeros({kLength, kAtom37});
  s.b_factors = Tensor::zeros({kLength});
  std::istringstream lines(expected);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("ATOM", 0) != 0) continue;
    const int i = std::stoi(line.substr(22, 4)) - 1;
    REQUIRE(i < kLength);
    std::string name = line.substr(12, 4);
    name = std::string(trim(name));
    const int a = atom37_index(name);
    REQUIRE(a >= 0);
    s.aatype.data<int32_t>()[i] = restype_index(std::string_view(line).substr(17, 3));
    s.mask.data<float>()[i * kAtom37 + a] = 1;
    for (int k = 0; k < 3; ++k)
      s.positions.data<float>()[(i * kAtom37 + a) * 3 + k] = std::stof(line.substr(30 + 8 * k, 8));
    s.b_factors.data<float>()[i] = std::stof(line.substr(60, 6));
  }
  CHECK(to_pdb(s) == expected);
}
