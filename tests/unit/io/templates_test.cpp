// Template features against AlphaFold's (features_q73), the choice of templates, and what is wrong
// with those that are not used.
#include "io/templates.h"

#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "core/geometry/residue_constants.h"
#include "io/fasta.h"
#include "io/npz.h"
#include "io/structure_reader.h"
#include "tests/unit/compare.h"
#include "tests/unit/io/scratch.h"

using namespace ff;
using Catch::Contains;

namespace {

constexpr const char* kExample = TEST_DATA "/../../examples/ubiquitin.pdb";

std::string letters_of(const TemplateFeatures& t, int64_t row) {
  std::string letters;
  for (int64_t i = 0; i < t.aatype.size(1); ++i)
    for (int k = 0; k < kMsaLetters; ++k)
      if (t.aatype.data<float>()[(row * t.aatype.size(1) + i) * kMsaLetters + k] == 1)
        letters += kHhblitsLetters[k];
  return letters;
}

/// A hit that says that the whole of `sequence` is residues 1.. of the entry's chain.
TemplateHit hit_of(const std::string& name, const std::string& sequence) {
  TemplateHit hit;
  hit.index = 1;
  hit.name = name;
  hit.aligned_cols = int(sequence.size());
  hit.sum_probs = 10;
  hit.query = hit.hit_sequence = sequence;
  for (size_t i = 0; i < sequence.size(); ++i) {
    hit.indices_query.push_back(int(i));
    hit.indices_hit.push_back(int(i));
  }
  return hit;
}

/// mmCIF of a chain with one CA a residue.
std::string entry_text(const std::string& sequence, const std::string& date = "2000-01-01") {
  std::string text = "data_x\n_pdbx_audit_revision_history.revision_date " + date +
                     "\nloop_\n_entity.id\n_entity.type\n1 polymer\nloop_\n_entity_poly.entity_id\n"
                     "_entity_poly.type\n1 'polypeptide(L)'\nloop_\n_struct_asym.id\n"
                     "_struct_asym.entity_id\nA 1\nloop_\n_entity_poly_seq.entity_id\n"
                     "_entity_poly_seq.num\n_entity_poly_seq.mon_id\n";
  for (size_t i = 0; i < sequence.size(); ++i)
    text += cat("1 ", i + 1, " ", kRestypeNames[size_t(restype_index(sequence[i]))], "\n");
  text += "loop_\n";
  for (const char* item : {"group_PDB",      "id",
                           "type_symbol",    "label_atom_id",
                           "label_alt_id",   "label_comp_id",
                           "label_asym_id",  "label_entity_id",
                           "label_seq_id",   "pdbx_PDB_ins_code",
                           "Cartn_x",        "Cartn_y",
                           "Cartn_z",        "occupancy",
                           "B_iso_or_equiv", "auth_seq_id",
                           "auth_comp_id",   "auth_asym_id",
                           "auth_atom_id",   "pdbx_PDB_model_num"})
    text += cat("_atom_site.", item, "\n");
  for (size_t i = 0; i < sequence.size(); ++i) {
    const auto name = kRestypeNames[size_t(restype_index(sequence[i]))];
    text += cat("ATOM ", i + 1, " C CA . ", name, " A 1 ", i + 1, " ? ", 3.8 * double(i + 1),
                " 0 0 1 1 ", i + 1, " ", name, " A CA 1\n");
  }
  return text;
}

std::string joined(const Templates& t) {
  std::string text;
  for (const std::string& w : t.warnings) text += w + "\n";
  return text;
}

}  // namespace

TEST_CASE("template features equal AlphaFold's") {
  const char* shared = std::getenv("FASTFOLD_TEST_DATA");
  if (!shared) {
    std::cout << "SKIPPED: FASTFOLD_TEST_DATA is not set\n";
    return;
  }
  const std::string input = std::string(shared) + "/fixtures/features_q73/input/";
  const std::string sequence = read_fasta(input + "query.fasta").front().sequence;
  const auto hits = read_template_hits(input + "pdb70_hits.hhr", sequence);
  const Templates got = templates_of_hits(
      sequence, hits,
      {.mmcif_dir = input + "mmcif", .max_date = "2022-01-01", .obsolete_file = ""});

  const nlohmann::json want =
      nlohmann::json::parse(std::ifstream(TEST_DATA "/features_q73/expected_templates.json"));
  REQUIRE(got.used.size() == want["template_domain_names"].size());
  for (size_t t = 0; t < got.used.size(); ++t) {
    CHECK(got.used[t].name == want["template_domain_names"][t].get<std::string>());
    CHECK(letters_of(got.features, int64_t(t)) == want["template_sequence"][t].get<std::string>());
  }
  const Arrays raw = read_npz(TEST_DATA "/features_q73/expected_raw_features.npz");
  test::compare("aatype", got.features.aatype, raw.at("template_aatype"), 0);
  test::compare("masks", got.features.all_atom_masks, raw.at("template_all_atom_masks"), 0);
  test::compare("positions", got.features.all_atom_positions, raw.at("template_all_atom_positions"),
                0);
  test::compare("sum_probs", got.features.sum_probs, raw.at("template_sum_probs"), 1e-5);

  // 1HF9 is not in the folder; two chains of 5KC1 have no atom at the aligned residues.
  CHECK(got.warnings.size() == 3);
  CHECK_THAT(joined(got), Contains("1HF9_B") && Contains("1hf9.cif") && Contains("5KC1_F") &&
                              Contains("5KC1_J") && Contains("was seen"));
}

TEST_CASE("hits that are left out, and why") {
  const std::string sequence = "MKTAYIAKQRQISFVKSHFSRQ", part = sequence.substr(2, 15);
  const Scratch folder;
  folder.write("1abc.cif", entry_text("GG" + part + "W"));
  folder.write("2abc.cif", entry_text(part, "2020-05-05"));
  folder.write("3abc.cif", "rubbish");
  const auto of = [&](std::vector<TemplateHit> hits, TemplateOptions options = {}) {
    options.mmcif_dir = folder.path();
    return templates_of_hits(sequence, hits, options);
  };
  const Templates good = of({hit_of("1ABC_A x", part)});
  REQUIRE(good.used.size() == 1);
  CHECK(good.used[0].name == "1abc_A");
  CHECK(good.used[0].aligned == 15);
  CHECK(good.used[0].identity == 1);
  CHECK(letters_of(good.features, 0) == "--" + part + "-----");
  // Query residue 3 (from 1) is the chain's residue 3, whose CA is at 3 * 3.8.
  const auto ca_x = [&](const Templates& t, int64_t i) {
    return t.features.all_atom_positions.data<float>()[(i * kAtom37 + kAtomCa) * 3];
  };
  CHECK(ca_x(good, 2) == Approx(3 * 3.8));
  CHECK(ca_x(good, 1) == 0);

  CHECK_THAT(joined(of({hit_of("9XYZ_A", part)})), Contains("9xyz.cif"));
  CHECK_THAT(joined(of({hit_of("nonsense", part)})), Contains("ENTRY_CHAIN"));
  CHECK_THAT(joined(of({hit_of("3ABC_A", part)})), Contains("3abc.cif") && Contains("no protein"));
  CHECK_THAT(joined(of({hit_of("1ABC_A", sequence)})), Contains("the query itself"));
  CHECK_THAT(joined(of({hit_of("1ABC_A", part.substr(0, 9))})), Contains("too short"));
  CHECK_THAT(joined(of({hit_of("1ABC_A", "WWWWWWWWWWWWWWW")})), Contains("not part of the target"));
  CHECK_THAT(joined(of({hit_of("2ABC_A", part)},
                       {.mmcif_dir = "", .max_date = "2019-12-31", .obsolete_file = ""})),
             Contains("released after 2019-12-31"));
  CHECK(
      of({hit_of("2ABC_A", part)}, {.mmcif_dir = "", .max_date = "2020-05-05", .obsolete_file = ""})
          .used.size() == 1);

  // Folders by the entry's middle letters; a hit's own chain is found by its sequence.
  std::filesystem::create_directory(folder / "xy");
  folder.write("xy/4xyz.cif", entry_text(part));
  CHECK(of({hit_of("4XYZ_Q", part)}).used.at(0).name == "4xyz_A");
  TemplateHit masked = hit_of("4XYZ_A", part);
  masked.hit_sequence[4] = 'X';
  CHECK(of({masked}).used.at(0).aligned == 15);

  // Withdrawn entries.
  const std::string obsolete = folder.write("obsolete.dat",
                                            " LIST OF OBSOLETE COORDINATE ENTRIES AND SUCCESSORS\n"
                                            "OBSLTE    31-JUL-94 9ABC     1ABC\n"
                                            "OBSLTE    06-NOV-19 8ABC\n");
  const TemplateOptions with_obsolete{.mmcif_dir = "", .max_date = "", .obsolete_file = obsolete};
  CHECK(of({hit_of("9ABC_A", part)}, with_obsolete).used.size() == 1);
  CHECK_THAT(joined(of({hit_of("8ABC_A", part)}, with_obsolete)), Contains("obsolete"));

  // hmmsearch's copies count once, and only so many templates are taken.
  TemplateHit copy = hit_of("1ABC_A", part);
  copy.has_sum_probs = false;
  copy.sum_probs = 0;
  CHECK(of({copy, copy}).used.size() == 1);
  CHECK(of({hit_of("1ABC_A", part), hit_of("1ABC_A", part)}).used.size() == 2);
  TemplateOptions one;
  one.max_hits = 1;
  CHECK(of({hit_of("1ABC_A", part), hit_of("1ABC_A", part)}, one).used.size() == 1);

  std::vector<TemplateHit> many(1000, hit_of("9XYZ_A", part));
  CHECK(of(many).warnings.size() == 21);
}

TEST_CASE("a hit whose sequence is an older version of the entry's") {
  const std::string query = "MKTAYIAKQRQISFVKSHFSRQ", old = query.substr(0, 20);
  // One residue inserted after the fifth, so that the hit's text is not in the file.
  const std::string now = old.substr(0, 5) + "W" + old.substr(5);
  const Scratch folder;
  folder.write("1abc.cif", entry_text(now));
  const Templates moved =
      templates_of_hits(query, std::vector{hit_of("1ABC_A", old)},
                        {.mmcif_dir = folder.path(), .max_date = "", .obsolete_file = ""});
  REQUIRE(moved.used.size() == 1);
  CHECK(letters_of(moved.features, 0) == old + "--");
  const auto x = [&](int64_t i) {
    return moved.features.all_atom_positions.data<float>()[(i * kAtom37 + kAtomCa) * 3];
  };
  CHECK(x(4) == Approx(5 * 3.8));
  CHECK(x(5) == Approx(7 * 3.8));

  folder.write("1abc.cif", entry_text("WWWWWWWWWW" + old.substr(0, 10)));
  const Templates other =
      templates_of_hits(query, std::vector{hit_of("1ABC_A", old)},
                        {.mmcif_dir = folder.path(), .max_date = "", .obsolete_file = ""});
  CHECK(other.used.empty());
  CHECK_THAT(joined(other), Contains("% identical"));
}

TEST_CASE("a structure of one's own: residues find their places atom by atom") {
  const StructureEntry entry = read_structure(kExample);
  const ChainStructure& chain = entry.chains.at(0);
  const std::string& own = chain.sequence;
  // The target has five residues more at its start, lacks residues 21 to 30 and has three others
  // inserted after residue 50.
  const std::string target =
      "GSHMA" + own.substr(0, 20) + own.substr(30, 20) + "WWW" + own.substr(50);
  const std::vector<std::string> files{kExample};
  const Templates got = templates_of_files(target, files);
  REQUIRE(got.warnings.empty());
  REQUIRE(got.used.size() == 1);
  const auto compare_residue = [&](size_t query, size_t source) {
    for (int k = 0; k < kAtom37 * 3; ++k)
      if (got.features.all_atom_positions.data<float>()[query * kAtom37 * 3 + size_t(k)] !=
          chain.positions.data<float>()[source * kAtom37 * 3 + size_t(k)])
        return false;
    return true;
  };
  // Away from the seams, where an alignment may slide by a residue that is alike.
  for (size_t i = 0; i < 18; ++i) CHECK(compare_residue(5 + i, i));
  for (size_t i = 32; i < 48; ++i) CHECK(compare_residue(5 + i - 10, i));
  for (size_t i = 52; i < own.size(); ++i) CHECK(compare_residue(5 + i - 10 + 3, i));
  const std::string letters = letters_of(got.features, 0);
  CHECK(letters.substr(0, 5) == "-----");
  CHECK(letters.substr(45, 3) == "---");

  // A part of the chain stands where it is in it, its first residue too, though a like one begins
  // the chain.
  const std::string inner = "M" + own.substr(30, 30);
  REQUIRE(own.starts_with("M"));
  const Templates part = templates_of_files(inner, files);
  REQUIRE(part.used.size() == 1);
  CHECK(letters_of(part.features, 0) == own.substr(29, 31));
  CHECK(part.used[0].aligned == 31);
  CHECK(part.used[0].sum_probs == 1);
  // And the chain where it is in a longer target.
  const Templates outer = templates_of_files("M" + std::string(40, 'G') + own.substr(1), files);
  CHECK(letters_of(outer.features, 0) == std::string(40, '-') + own);

  // A backbone of the target's length serves whatever its sequence.
  const Templates backbone = templates_of_files(std::string(own.size(), 'W'), files);
  REQUIRE(backbone.used.size() == 1);
  CHECK(letters_of(backbone.features, 0) == own);
  CHECK_THAT(joined(backbone), Contains("residue by residue"));

  const auto warning = [](const std::string& sequence, const std::string& file) {
    return joined(templates_of_files(sequence, std::vector{file}));
  };
  CHECK_THAT(warning(target, cat(kExample, ":Q")), Contains("no protein chain Q") && Contains("A"));
  CHECK_THAT(warning("WWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWW", kExample),
             Contains("not related"));
  CHECK_THAT(warning(target, "/no/such.cif"), Contains("/no/such.cif"));
  CHECK_THAT(warning(std::string(200'000, 'A'), kExample),
             Contains("not related") || Contains("too long"));
}
