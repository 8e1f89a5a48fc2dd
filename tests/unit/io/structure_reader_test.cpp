// Structures against what AlphaFold's parser made of them (fixtures/labels), and refusals.
#include "io/structure_reader.h"

#include <catch2/catch.hpp>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/geometry/residue_constants.h"
#include "io/npz.h"
#include "tests/unit/compare.h"

using namespace ff;
using Catch::Contains;

namespace {

/// One CA a residue: (alternate location, name, chain, number, x, occupancy).
std::string atom(const char* record, char alt, const char* residue, int number, double x,
                 double occupancy, const char* name = " CA ") {
  char line[100];
  std::snprintf(line, sizeof line,
                "%-6s%5d %s%c%3s A%4d    %8.3f%8.3f%8.3f%6.2f%6.2f           C\n", record, number,
                name, alt, residue, number, x, 0.0, 0.0, occupancy, 10.0);
  return line;
}

std::string refusal(const std::string& text) {
  try {
    parse_structure(text, "x.cif");
  } catch (const Error& e) {
    CHECK(e.code() == Exit::kInput);
    return e.what();
  }
  FAIL("accepted");
  return {};
}

}  // namespace

TEST_CASE("atoms of mmCIF entries equal AlphaFold's") {
  const char* shared = std::getenv("FASTFOLD_TEST_DATA");
  if (!shared) {
    std::cout << "SKIPPED: FASTFOLD_TEST_DATA is not set\n";
    return;
  }
  const std::string labels = std::string(shared) + "/fixtures/labels/";
  for (const std::string id : {"2q2k", "4zey", "3u8v"}) {
    INFO(id);
    const StructureEntry entry = read_structure(labels + "input/" + id + ".cif.gz");
    const Arrays want = read_npz(labels + id + "_A.npz");
    const nlohmann::json info = nlohmann::json::parse(std::ifstream(labels + id + "_A.json"));
    CHECK(entry.release_date == info["header"]["release_date"]);
    CHECK(entry.method == info["header"]["structure_method"]);
    CHECK(entry.resolution == info["header"]["resolution"]);
    const auto chain = std::find_if(entry.chains.begin(), entry.chains.end(),
                                    [](const ChainStructure& c) { return c.name == "A"; });
    REQUIRE(chain != entry.chains.end());
    CHECK(chain->sequence == info["seqres"]);
    test::compare("positions", chain->positions, want.at("all_atom_positions"), 0);
    test::compare("mask", chain->mask, want.at("all_atom_mask").to(Dtype::f32), 0);
  }
}

TEST_CASE("a PDB file: SEQRES, alternate locations, MSE, arginine") {
  const std::string text =
      "SEQRES   1 A    5  GLY ALA MSE ARG SER\n" + atom("ATOM", 'A', "ALA", 2, 1, 0.4) +
      atom("ATOM", 'B', "ALA", 2, 2, 0.6) + atom("HETATM", ' ', "MSE", 3, 4.8, 1) +
      atom("HETATM", ' ', "MSE", 3, 5, 1, "SE  ") + atom("ATOM", ' ', "ARG", 4, 8.6, 1) +
      atom("ATOM", ' ', "ARG", 4, 9, 1, " CD ") + atom("ATOM", ' ', "ARG", 4, 12, 1, " NH1") +
      atom("ATOM", ' ', "ARG", 4, 11, 1, " NH2") + "TER\nEND\n";
  const StructureEntry entry = parse_structure(text, "x.pdb");
  REQUIRE(entry.chains.size() == 1);
  const ChainStructure& chain = entry.chains[0];
  CHECK(chain.name == "A");
  CHECK(chain.sequence == "GAMRS");
  const auto x = [&](int64_t i, const char* name) {
    return chain.positions.data<float>()[(i * kAtom37 + atom37_index(name)) * 3];
  };
  const auto seen = [&](int64_t i) {
    float sum = 0;
    for (int a = 0; a < kAtom37; ++a) sum += chain.mask.data<float>()[i * kAtom37 + a];
    return sum;
  };
  CHECK(seen(0) == 0);
  CHECK(seen(1) == 1);
  CHECK(x(1, "CA") == 2);
  CHECK(x(2, "SD") == 5);
  CHECK(seen(3) == 4);
  CHECK(x(3, "NH1") == 11);
  CHECK(x(3, "NH2") == 12);
  CHECK(seen(4) == 0);

  // Without SEQRES the residues seen are the sequence.
  const StructureEntry observed = parse_structure(text.substr(text.find('\n') + 1), "x.pdb");
  REQUIRE(observed.chains.size() == 1);
  CHECK(observed.chains[0].sequence == "AMR");
}

TEST_CASE("what is no structure is named") {
  CHECK_THAT(refusal(""), Contains("x.cif") && Contains("no protein chain"));
  CHECK_THAT(refusal("hello"), Contains("no protein chain"));
  CHECK_THAT(refusal("data_x\nloop_\n_a.b\n"), Contains("x.cif"));
  CHECK_THAT(refusal("data_x\n_a.b 'unclosed\n"), Contains("mmCIF"));
  CHECK_THAT(refusal("data_x\nloop_\n_atom_site.id\n_atom_site.type_symbol\n1 C\n"),
             Contains("x.cif"));
}
