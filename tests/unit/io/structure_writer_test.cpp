// The PDB writer against a file of OpenFold's (AlphaFold's writer), byte for byte; the mmCIF read
// back by gemmi; both read by TM-align.
#include "io/structure_writer.h"

#include <gemmi/cif.hpp>
#include <gemmi/mmcif.hpp>
#include <gemmi/pdb.hpp>
// After gemmi, whose headers undefine CHECK.
#include <catch2/catch.hpp>

#include <cstdlib>
#include <iostream>
#include <limits>
#include <sstream>

#include "core/base/rng.h"
#include "core/geometry/residue_constants.h"
#include "io/file.h"
#include "scratch.h"

using namespace ff;

namespace {

Prediction one_glycine() {
  Prediction s;
  const int32_t gly = kGly;
  s.aatype = Tensor::of<int32_t>({1}, &gly);
  s.positions = Tensor::zeros({1, kAtom37, 3});
  s.mask = Tensor::zeros({1, kAtom37});
  s.plddt = Tensor::zeros({1});
  for (int a : {kAtomN, kAtomCa, kAtomC, kAtomO}) s.mask.data<float>()[a] = 1;
  s.positions.data<float>()[kAtomCa * 3] = -1.25f;
  s.plddt.data<float>()[0] = 87.5f;
  return s;
}

/// OpenFold's published prediction of 6KWC_1: its PDB text from MODEL on.
std::string openfold_pdb() {
  const char* shared = std::getenv("FASTFOLD_TEST_DATA");
  if (!shared) {
    std::cout << "SKIPPED: FASTFOLD_TEST_DATA is not set\n";
    return "";
  }
  const std::string path =
      std::string(shared) + "/data/predictions/6KWC_1_openfold_model_1_ptm_unrelaxed.pdb.gz";
  const std::string text = read_text_file(path, 1 << 24);
  return text.substr(text.find("MODEL"));
}

Prediction parse(const std::string& pdb) {
  constexpr int kLength = 191;
  Prediction s;
  s.aatype = Tensor::zeros({kLength}, Dtype::i32);
  s.positions = Tensor::zeros({kLength, kAtom37, 3});
  s.mask = Tensor::zeros({kLength, kAtom37});
  s.plddt = Tensor::zeros({kLength});
  std::istringstream lines(pdb);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("ATOM", 0) != 0) continue;
    const int i = std::stoi(line.substr(22, 4)) - 1;
    REQUIRE(i < kLength);
    const int a = atom37_index(trim(line.substr(12, 4)));
    REQUIRE(a >= 0);
    s.aatype.data<int32_t>()[i] = restype_index(std::string_view(line).substr(17, 3));
    s.mask.data<float>()[i * kAtom37 + a] = 1;
    for (int k = 0; k < 3; ++k)
      s.positions.data<float>()[(i * kAtom37 + a) * 3 + k] = std::stof(line.substr(30 + 8 * k, 8));
    s.plddt.data<float>()[i] = std::stof(line.substr(60, 6));
  }
  return s;
}

/// n residues of all kinds, UNK too, at random places.
Prediction random_prediction(int64_t n) {
  const ResidueConstants& constants = residue_constants();
  Prediction p;
  p.model = "model_1_ptm";
  p.seed = 7;
  p.aatype = Tensor::empty({n}, Dtype::i32);
  p.positions = Tensor::empty({n, kAtom37, 3});
  p.mask = Tensor::empty({n, kAtom37});
  p.plddt = Tensor::empty({n});
  const Rng random(3, {1});
  uint64_t word = 0;
  const auto uniform = [&] { return unit_float(random.word(word++)); };
  for (int64_t i = 0; i < n; ++i) {
    const int type = int(i % 21);
    p.aatype.data<int32_t>()[i] = type;
    p.plddt.data<float>()[i] = 100 * uniform();
    for (int a = 0; a < kAtom37; ++a) {
      p.mask.data<float>()[i * kAtom37 + a] = constants.atom37_mask[type][a];
      for (int k = 0; k < 3; ++k)
        p.positions.data<float>()[(i * kAtom37 + a) * 3 + k] = 1000 * uniform() - 500;
    }
  }
  p.mean_plddt = 81.234;
  p.ptm = 0.87654;
  return p;
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
  Prediction s = one_glycine();
  s.positions.data<float>()[0] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(to_pdb(s), Catch::Contains("atom N of residue 1"));
  s.positions.data<float>()[0] = -1000;
  CHECK_THROWS_WITH(to_pdb(s), Catch::Contains("cannot hold"));
  CHECK_FALSE(fits_pdb(s));
  s.positions.data<float>()[0] = -999.9f;
  CHECK(fits_pdb(s));

  Prediction large;
  large.aatype = Tensor::zeros({10000}, Dtype::i32);
  large.positions = Tensor::zeros({10000, kAtom37, 3});
  large.mask = Tensor::zeros({10000, kAtom37});
  large.plddt = Tensor::zeros({10000});
  CHECK_THROWS_WITH(to_pdb(large), Catch::Contains("9999"));
  CHECK_FALSE(fits_pdb(large));
  CHECK(to_mmcif(large, {.entry = "large", .title = ""}).size() > 0);
}

TEST_CASE("OpenFold's published prediction is written back byte for byte") {
  const std::string expected = openfold_pdb();
  if (!expected.empty()) CHECK(to_pdb(parse(expected)) == expected);
}

TEST_CASE("gemmi reads back what the mmCIF says") {
  const int64_t n = 50;
  const Prediction p = random_prediction(n);
  const gemmi::cif::Document document = gemmi::cif::read_string(
      to_mmcif(p, {.entry = "my target", .title = "a title", .rank = 2, .templates = true}));
  REQUIRE(document.blocks.size() == 1);
  CHECK(document.blocks[0].name == "my_target");
  gemmi::cif::Block block = document.blocks[0];
  const gemmi::Structure structure = gemmi::make_structure_from_block(block);
  REQUIRE(structure.models.size() == 1);
  REQUIRE(structure.models[0].chains.size() == 1);
  const gemmi::Chain& chain = structure.models[0].chains[0];
  CHECK(chain.name == "A");

  size_t atoms = 0, expected_atoms = 0;
  double worst = 0;
  for (const gemmi::Residue& residue : chain.residues) {
    const int64_t i = *residue.seqid.num - 1;
    REQUIRE(i < n);
    CHECK(*residue.label_seq == i + 1);
    CHECK(residue.name == kRestypeNames[size_t(p.aatype.data<int32_t>()[i])]);
    for (const gemmi::Atom& atom : residue.atoms) {
      const int a = atom37_index(std::string_view(atom.name));
      REQUIRE(a >= 0);
      CHECK(atom.occ == 1);
      CHECK(atom.element.name() == atom.name.substr(0, 1));
      CHECK(std::abs(atom.b_iso - p.plddt.data<float>()[i]) <= 0.00501);
      const float* x = p.positions.data<float>() + (i * kAtom37 + a) * 3;
      worst = std::max({worst, std::abs(atom.pos.x - x[0]), std::abs(atom.pos.y - x[1]),
                        std::abs(atom.pos.z - x[2])});
      ++atoms;
    }
  }
  CHECK(worst < 1e-3);
  for (int64_t i = 0; i < p.mask.numel(); ++i) expected_atoms += p.mask.data<float>()[i] > 0.5f;
  CHECK(atoms == expected_atoms);

  REQUIRE(structure.entities.size() == 1);
  const gemmi::Entity& entity = structure.entities[0];
  CHECK(entity.polymer_type == gemmi::PolymerType::PeptideL);
  REQUIRE(entity.full_sequence.size() == size_t(n));
  for (int64_t i = 0; i < n; ++i)
    CHECK(entity.full_sequence[size_t(i)] == kRestypeNames[size_t(i % 21)]);

  std::string canonical =
      gemmi::cif::as_string(*block.find_value("_entity_poly.pdbx_seq_one_letter_code_can"));
  CHECK(canonical.substr(0, 22) == "ARNDCQEGHILKMFPSTWYVXA");
  gemmi::cif::Table global =
      block.find("_ma_qa_metric_global.", {"metric_id", "metric_value", "model_id"});
  REQUIRE(global.length() == 2);
  CHECK(global[0][1] == "81.23");
  CHECK(global[1][0] == "3");
  CHECK(global[1][1] == "0.8765");
  gemmi::cif::Table local =
      block.find("_ma_qa_metric_local.", {"label_seq_id", "label_comp_id", "metric_value"});
  REQUIRE(local.length() == size_t(n));
  for (int64_t i = 0; i < n; ++i)
    CHECK(std::abs(std::stod(local[size_t(i)][2]) - p.plddt.data<float>()[i]) <= 0.00501);
}

TEST_CASE("any title survives in an mmCIF file") {
  const Prediction p = random_prediction(3);
  const std::pair<std::string, std::string> kTitles[] = {
      {"plain", "plain"},
      {"", "t"},
      {"it's \"quoted\" 'both' ways", "it's \"quoted\" 'both' ways"},
      {";starts a text field\n;ends it\n_atom_site.id 1\nloop_",
       ";starts a text field ;ends it _atom_site.id 1 loop_"},
      {"data_evil", "data_evil"},
      {"#comment", "#comment"},
      {"prot\xc3\xa9ine \xf0\x9f\xa7\xac \xff", "prot?ine ? ?"},
      {std::string("nul\0and\ttab\r\n\x7f", 14), "nul and tab"},
      {"?", "?"},
      {".", "."},
      {std::string(100000, 'x'), std::string(1000, 'x')}};
  for (const auto& [title, expected] : kTitles) {
    gemmi::cif::Document document =
        gemmi::cif::read_string(to_mmcif(p, {.entry = "t", .title = title}));
    REQUIRE(document.blocks.size() == 1);
    CHECK(gemmi::cif::as_string(*document.blocks[0].find_value("_struct.title")) == expected);
    CHECK(gemmi::make_structure_from_block(document.blocks[0]).models[0].chains.size() == 1);
  }
  CHECK(to_mmcif(p, {.entry = "../x y\n", .title = ""}).substr(0, 12) == "data_.._x_y_");
}

TEST_CASE("3,000 residues have all their atoms") {
  const Prediction p = random_prediction(3000);
  const std::string text = to_mmcif(p, {.entry = "t", .title = ""});
  int64_t atoms = 0, there = 0;
  for (size_t at = text.find("\nATOM "); at != std::string::npos; at = text.find("\nATOM ", at + 1))
    ++atoms;
  for (int64_t i = 0; i < p.mask.numel(); ++i) there += p.mask.data<float>()[i] >= 0.5f;
  CHECK(atoms == there);
}

TEST_CASE("TM-align reads the PDB and the mmCIF as the same structure") {
  const std::string expected = openfold_pdb();
  if (expected.empty()) return;
  if (std::system("command -v TMalign > /dev/null") != 0) {
    std::cout << "SKIPPED: TMalign (Debian's tm-align) is not installed\n";
    return;
  }
  const Scratch scratch;
  const Prediction p = parse(expected);
  const std::string pdb = scratch.write("a.pdb", to_pdb(p));
  const std::string cif = scratch.write("b.cif", to_mmcif(p, {.entry = "6KWC_1", .title = ""}));
  REQUIRE(std::system(cat("TMalign ", pdb, " ", cif, " > ", scratch / "out.txt").c_str()) == 0);
  const std::string said = read_text_file(scratch / "out.txt", 1 << 20);
  INFO(said);
  for (const char* line :
       {"Length of Chain_1:  191 residues", "Length of Chain_2:  191 residues",
        "Aligned length=  191, RMSD=   0.00, Seq_ID=n_identical/n_aligned= 1.000",
        "TM-score= 1.00000 (if normalized by length of Chain_1)",
        "TM-score= 1.00000 (if normalized by length of Chain_2)"})
    CHECK(said.find(line) != std::string::npos);
}
