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

/// mmCIF of one chain: "label_seq alt residue atom x occupancy model" an atom.
std::string mmcif(const std::string& monomers, const std::vector<std::string>& atoms,
                  const std::string& more = "") {
  std::string text = "data_x\n" + more;
  if (!monomers.empty())
    text +=
        "loop_\n_struct_asym.id\n_struct_asym.entity_id\nA 1\nloop_\n"
        "_entity_poly_seq.entity_id\n_entity_poly_seq.num\n_entity_poly_seq.mon_id\n" +
        monomers;
  text += "loop_\n";
  for (const char* item :
       {"label_seq_id", "label_alt_id", "label_comp_id", "label_atom_id", "Cartn_x", "occupancy",
        "pdbx_PDB_model_num", "label_asym_id", "auth_asym_id", "Cartn_y", "Cartn_z"})
    text += std::string("_atom_site.") + item + "\n";
  for (const std::string& a : atoms) text += a + " A B 0 0\n";
  return text;
}

float x_of(const ChainStructure& chain, int64_t i, const char* name) {
  const int64_t at = i * kAtom37 + atom37_index(name);
  return chain.mask.data<float>()[at] == 1 ? chain.positions.data<float>()[at * 3] : -1;
}

std::string fnv(const void* data, size_t bytes) {
  uint64_t value = 0xCBF29CE484222325;
  for (size_t i = 0; i < bytes; ++i)
    value = (value ^ static_cast<const uint8_t*>(data)[i]) * 0x100000001B3;
  char hex[17];
  std::snprintf(hex, sizeof hex, "%016llx", static_cast<unsigned long long>(value));
  return hex;
}

std::string fnv(const Tensor& t) {
  std::vector<float> values(t.data<float>(), t.data<float>() + t.numel());
  for (float& v : values) v += 0.0f;
  return fnv(values.data(), values.size() * sizeof(float));
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
    CHECK(entry.release_date == info["header"]["release_date"].get<std::string>());
    CHECK(entry.method == info["header"]["structure_method"].get<std::string>());
    CHECK(entry.resolution == info["header"]["resolution"]);
    const auto chain = std::find_if(entry.chains.begin(), entry.chains.end(),
                                    [](const ChainStructure& c) { return c.name == "A"; });
    REQUIRE(chain != entry.chains.end());
    CHECK(chain->sequence == info["seqres"].get<std::string>());
    test::compare("positions", chain->positions, want.at("all_atom_positions"), 0);
    test::compare("mask", chain->mask, want.at("all_atom_mask").to(Dtype::f32), 0);
  }
}

TEST_CASE("chains of whole entries equal AlphaFold's") {
  const char* shared = std::getenv("FASTFOLD_TEST_DATA");
  if (!shared) {
    std::cout << "SKIPPED: FASTFOLD_TEST_DATA is not set\n";
    return;
  }
  const nlohmann::json want =
      nlohmann::json::parse(std::ifstream(TEST_DATA "/templates/entries.json"));
  REQUIRE(want.size() > 20);
  for (const auto& [name, info] : want.items()) {
    INFO(name);
    const StructureEntry entry = read_structure(std::string(shared) + "/data/entries/" + name);
    CHECK(entry.release_date == info.value("release_date", ""));
    CHECK(entry.method == info["structure_method"].get<std::string>());
    CHECK(entry.resolution == info["resolution"]);
    REQUIRE(entry.chains.size() == info["chains"].size());
    for (const ChainStructure& chain : entry.chains) {
      INFO(chain.name);
      const auto c = info["chains"].at(chain.name).get<std::vector<std::string>>();
      CHECK(fnv(chain.sequence.data(), chain.sequence.size()) == c[0]);
      CHECK(fnv(chain.positions) == c[1]);
      CHECK(fnv(chain.mask) == c[2]);
    }
  }
}

TEST_CASE("an entry in PDB format equals that in mmCIF") {
  const char* shared = std::getenv("FASTFOLD_TEST_DATA");
  if (!shared) {
    std::cout << "SKIPPED: FASTFOLD_TEST_DATA is not set\n";
    return;
  }
  for (const std::string id : {"1A8O", "2XHE"}) {
    INFO(id);
    const std::string path = std::string(shared) + "/data/entries/bp_" + id;
    const StructureEntry a = read_structure(path + ".pdb.gz"), b = read_structure(path + ".cif.gz");
    REQUIRE(a.chains.size() == b.chains.size());
    for (size_t c = 0; c < a.chains.size(); ++c) {
      CHECK(a.chains[c].name == b.chains[c].name);
      CHECK(a.chains[c].sequence == b.chains[c].sequence);
      test::compare("positions", a.chains[c].positions, b.chains[c].positions, 0);
      test::compare("mask", a.chains[c].mask, b.chains[c].mask, 0);
    }
  }
}

TEST_CASE("mmCIF: places by label_seq_id, alternate locations and residues, the first model") {
  const StructureEntry entry = parse_structure(
      mmcif("1 5 GLY\n1 6 SER\n1 6 THR\n1 7 ZZZ\n1 8 SEC\n",
            {"5 A GLY CA 1 0.5 1", "5 B GLY CA 2 0.5 1", "6 A SER CA 3 0.9 1", "6 B THR CA 4 0.1 1",
             "6 A SER CB 5 0.9 1", "6 B THR CB 6 0.1 1", "8 . SEC CA 7 ? 1", "9 . GLY CA 8 1 1",
             ". . HOH O 9 1 1", "5 . GLY N 10 1 2"},
            "_entity_poly.entity_id 1\n_entity_poly.pdbx_seq_one_letter_code_can\n;GS\nKU\n;\n"),
      "x.cif");
  REQUIRE(entry.chains.size() == 1);
  const ChainStructure& chain = entry.chains[0];
  CHECK(chain.name == "B");
  // The parent of a modified residue that only the file knows; AlphaFold's letter of SEC.
  CHECK(chain.sequence == "GSKA");
  CHECK(x_of(chain, 0, "CA") == 1);  // of equal ones the first
  CHECK(x_of(chain, 0, "N") == -1);
  CHECK(x_of(chain, 1, "CA") == 4);  // of two residues the last
  CHECK(x_of(chain, 1, "CB") == 6);
  CHECK(x_of(chain, 2, "CA") == -1);
  CHECK(x_of(chain, 3, "CA") == 7);

  // Without SEQRES, as some programs write it: the residues seen.
  const StructureEntry seen =
      parse_structure(mmcif("", {"7 . GLY CA 1 1 1", "7 . GLY N 2 1 1", "9 . ALA CA 3 1 1",
                                 ". . HOH O 4 1 1", "12 . MSE SE 5 1 1"}),
                      "x.cif");
  REQUIRE(seen.chains.size() == 1);
  CHECK(seen.chains[0].sequence == "GAM");
  CHECK(x_of(seen.chains[0], 1, "CA") == 3);
  CHECK(x_of(seen.chains[0], 2, "SD") == 5);
}

TEST_CASE("structures made to take long are refused or read in time") {
  CHECK_THAT(refusal(mmcif("1 1 GLY\n1 3 GLY\n", {})), Contains("num '3'"));
  CHECK_THAT(refusal(mmcif("1 x GLY\n", {})), Contains("'x'"));
  // A long entity in many chains.
  std::string bomb =
      "data_x\nloop_\n_entity_poly_seq.entity_id\n_entity_poly_seq.num\n"
      "_entity_poly_seq.mon_id\n";
  for (int i = 1; i <= 20'000; ++i) bomb += "1 " + std::to_string(i) + " ALA\n";
  bomb += "loop_\n_struct_asym.id\n_struct_asym.entity_id\n";
  for (int i = 0; i < 51; ++i) bomb += std::to_string(i) + " 1\n";
  bomb +=
      "loop_\n_atom_site.label_asym_id\n_atom_site.label_comp_id\n_atom_site.label_atom_id\n"
      "_atom_site.label_seq_id\n_atom_site.Cartn_x\n_atom_site.Cartn_y\n_atom_site.Cartn_z\n";
  for (int i = 0; i < 51; ++i) bomb += std::to_string(i) + " ALA CA 1 0 0 0\n";
  CHECK_THAT(refusal(bomb), Contains("more than 1000000 residues"));
  // Chains that alternate.
  std::string two = atom("ATOM", ' ', "ALA", 1, 0, 1) + atom("ATOM", ' ', "ALA", 1, 0, 1);
  two[21] = 'B';
  std::string many;
  for (int i = 0; i < 6000; ++i) many += two;
  CHECK_THAT(refusal(many), Contains("change more than"));
  // 100,000 residues in one chain.
  std::vector<std::string> atoms;
  for (int i = 0; i < 100'000; ++i) atoms.push_back(std::to_string(i) + " . ALA CA 1 1 1");
  CHECK(parse_structure(mmcif("", atoms), "x.cif").chains.at(0).sequence.size() == 100'000);
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
