// A3M and Stockholm against AlphaFold's parsers (tests/data/msa, from the q73 fixture), and
// refusals.
#include "io/msa.h"

#include <catch2/catch.hpp>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "io/npz.h"
#include "tests/unit/io/scratch.h"

using namespace ff;
using Catch::Contains;

namespace {

template <class Parse>
std::string refusal(Parse parse, const std::string& text) {
  try {
    parse(text, "bad.a3m");
  } catch (const Error& e) {
    CHECK(e.code() == Exit::kInput);
    CHECK_THAT(e.what(), Catch::StartsWith("bad.a3m:"));
    return e.what();
  }
  FAIL("accepted: " << text);
  return {};
}

std::string a3m_refusal(const std::string& text) { return refusal(parse_a3m, text); }
std::string stockholm_refusal(const std::string& text) {
  return refusal([](auto t, auto& name) { return parse_stockholm(t, name); }, text);
}

std::vector<std::string> aligned(const Msa& msa) {
  std::vector<std::string> rows;
  for (size_t s = 0; s < msa.size(); ++s) rows.push_back(msa.aligned(s));
  return rows;
}

std::vector<std::vector<int32_t>> deletions(const Msa& msa) {
  std::vector<std::vector<int32_t>> rows;
  for (size_t s = 0; s < msa.size(); ++s) rows.push_back(msa.deletions(s));
  return rows;
}

}  // namespace

TEST_CASE("alignments equal what AlphaFold's parsers made of them") {
  const char* shared = std::getenv("FASTFOLD_TEST_DATA");
  if (!shared) {
    std::cout << "SKIPPED: FASTFOLD_TEST_DATA is not set\n";
    return;
  }
  for (const char* file : {"bfd_uniclust_hits.a3m", "uniref90_hits.sto", "mgnify_hits.sto"}) {
    INFO(file);
    const Msa msa = read_msa(std::string(shared) + "/fixtures/features_q73/input/" + file);
    const std::string stem = std::string(TEST_DATA "/msa/expected_parsed_") + file;
    const auto expected = nlohmann::json::parse(std::ifstream(stem + ".json"));
    CHECK(aligned(msa) == expected["sequences"].get<std::vector<std::string>>());
    CHECK(msa.descriptions == expected["descriptions"].get<std::vector<std::string>>());
    const Arrays arrays = read_npz(stem + ".npz");
    const Tensor& deletions = arrays.at("deletion_matrix");
    const Tensor& hashes = arrays.at("sequence_fnv1a64_lo");
    REQUIRE(deletions.shape() == Dims{int64_t(msa.size()), int64_t(msa.columns)});
    for (size_t s = 0; s < msa.size(); ++s) {
      const int32_t* row = deletions.data<int32_t>() + s * msa.columns;
      REQUIRE(msa.deletions(s) == std::vector<int32_t>(row, row + msa.columns));
      uint64_t fnv = 0xcbf29ce484222325;
      for (unsigned char c : msa.aligned(s)) fnv = (fnv ^ c) * 0x100000001b3;
      REQUIRE(int32_t(fnv & 0x7fffffff) == hashes.data<int32_t>()[s]);
    }
  }
}

TEST_CASE("A3M: insertions, wrapped lines, comments, ColabFold's header and zero bytes") {
  const std::string body = ">query one\nMK\r\nT\n>hit\nabMc-defT\n>end\n-KTxyz\n";
  for (const std::string& text :
       {body, "#3\t1\n" + body, "# made by a tool\n\n" + body, std::string(1, '\0') + body,
        std::string("#3\t1\n") + body.substr(0, 17) + std::string(1, '\0') + body.substr(17) +
            std::string(1, '\0')}) {
    const Msa msa = parse_a3m(text, "x");
    CHECK(aligned(msa) == std::vector<std::string>{"MKT", "M-T", "-KT"});
    CHECK(msa.descriptions == std::vector<std::string>{"query one", "hit", "end"});
    CHECK(deletions(msa) == std::vector<std::vector<int32_t>>{{0, 0, 0}, {2, 1, 3}, {0, 0, 0}});
  }
}

TEST_CASE("A3M refusals name file, record, title and lengths") {
  CHECK_THAT(a3m_refusal(""), Contains("holds no record"));
  CHECK_THAT(a3m_refusal("#3\t1\n"), Contains("holds no record"));
  CHECK_THAT(a3m_refusal("MKT\n"), Contains("bad.a3m:1: found 'M' before the first record"));
  CHECK_THAT(a3m_refusal(">q\nMKT\n>h\nMKTA\n>i\nMKT\n"),
             Contains("record 2 'h' has 4 aligned columns, expected 3 as in record 1 'q'"));
  CHECK_THAT(a3m_refusal(">q\nMKT\n>h\nMKT\n>last one\nmkt\n"),
             Contains("record 3 'last one' has 0 aligned columns, expected 3"));
  CHECK_THAT(a3m_refusal(">q\nmkt\n"), Contains("record 1 'q' has no aligned residue"));
  CHECK_THAT(a3m_refusal(">q\nMKT\n>h\nM.T\n"), Contains("record 2 'h' has 2 aligned columns"));
  CHECK_THAT(a3m_refusal(">q\nM T\n"), Contains("found character code 32"));
  CHECK_THAT(a3m_refusal(">q\nMKT\n#x\n"), Contains("found '#'"));
  CHECK_THAT(a3m_refusal("#3,4\t1,1\n>q\nMKT\n"), Contains("the alignment of a complex"));
  CHECK_THAT(a3m_refusal("#3\t2\n>q\nMKT\n"), Contains("the alignment of a complex"));
  CHECK_THAT(a3m_refusal("#4\t1\n>q\nMKT\n"),
             Contains("promises a chain of 4 residues, found a query of 3"));
}

TEST_CASE("Stockholm: interleaved blocks, columns that the query lacks") {
  const Msa msa = parse_stockholm(
      "# STOCKHOLM 1.0\n#=GF ID x\n\nq/1-3  M-\nh  MA\n\nq/1-3 --KT\nh  C-K-\n//\n", "x");
  CHECK(msa.descriptions == std::vector<std::string>{"q/1-3", "h"});
  CHECK(aligned(msa) == std::vector<std::string>{"MKT", "MK-"});
  CHECK(deletions(msa) == std::vector<std::vector<int32_t>>{{0, 0, 0}, {0, 2, 0}});
  CHECK_THAT(stockholm_refusal("# STOCKHOLM 1.0\n//\n"), Contains("holds no sequence"));
  CHECK_THAT(stockholm_refusal("q MKT\nh MK\n//\n"),
             Contains("record 2 'h' has 2 columns, expected 3"));
  CHECK_THAT(stockholm_refusal("q MKT\nh\n//\n"), Contains("bad.a3m:2: 'h' has no sequence"));
  CHECK_THAT(stockholm_refusal("q MKT\nh M1T\n//\n"), Contains("record 2 'h', line 2: found '1'"));
  CHECK_THAT(stockholm_refusal("q ---\nh MKT\n//\n"), Contains("has no aligned residue"));
}

TEST_CASE("Stockholm: a file that was cut off anywhere is never taken for a whole one") {
  const std::string whole =
      "# STOCKHOLM 1.0\n#=GF ID x\n\nq/1-3  M-\nh  MA\n\nq/1-3 --KT\nh  C-K-\n#=GC RF xx\n//\n";
  CHECK(parse_stockholm(whole, "x").size() == 2);
  for (size_t n = 1; n + 2 < whole.size(); ++n) stockholm_refusal(whole.substr(0, n));
  CHECK_THAT(stockholm_refusal(whole.substr(0, whole.size() - 3)), Contains("is incomplete"));
}

TEST_CASE("Stockholm: points are gaps, lower case is upper case, the first rows of many") {
  const std::string text = "# STOCKHOLM 1.0\nq M.KT\nh mAk.\ni M-K-\nq A\nh a\ni A\n//\n";
  const Msa msa = parse_stockholm(text, "x");
  CHECK(aligned(msa) == std::vector<std::string>{"MKTA", "MK-A", "MK-A"});
  CHECK(deletions(msa) ==
        std::vector<std::vector<int32_t>>{{0, 0, 0, 0}, {0, 1, 0, 0}, {0, 0, 0, 0}});
  CHECK(msa.rows[1] == "MaK-A");
  CHECK(parse_stockholm(text, "x", 2).descriptions == std::vector<std::string>{"q", "h"});
}

TEST_CASE(
    "merging keeps the first of equal rows with its insertions, and A3M reads back the same") {
  const Msa first = parse_a3m(">q\nMKT\n>a b\nMcKT\n>c\nM-Txx\n", "1"),
            second = parse_a3m(">q2\nMKT\n>d\nM-T\n>e\nBKZ\n", "2");
  const Msa merged = merge_msas({first, second});
  CHECK(merged.rows == std::vector<std::string>{"MKT", "M-Txx", "BKZ"});
  CHECK(merged.descriptions == std::vector<std::string>{"q", "c", "e"});
  CHECK(to_a3m(merged) == ">q\nMKT\n>c\nM-Txx\n>e\nBKZ\n");
  const Msa again = parse_a3m(to_a3m(merged), "again");
  CHECK(again.rows == merged.rows);
  CHECK(again.descriptions == merged.descriptions);
}

TEST_CASE("species of UniProt's names, as AlphaFold's") {
  CHECK(species_of("sp|P69905|HBA_HUMAN/2-142 Hemoglobin") == "HUMAN");
  CHECK(species_of("tr|A0A146SKV9|A0A146SKV9_FUNHE") == "FUNHE");
  CHECK(species_of(" tr|A0A146SKV9_1|A0A146SKV9_FUNHE_12") == "FUNHE");
  for (const char* none :
       {"", " ", "UniRef90_A0A146SKV9/3-9", "tr|A0A|A0A_FUNHE", "tr|A0A146SKV9|A0A146SKV9",
        "tr|A0A146SKV9|A0A146SKV9_FUNHEX", "tr|A0A146SKV9|A0A146SKV9_FUNHE_",
        "tr|A0A146SKV9_12|A0A146SKV9_FUNHE", "xx|A0A146SKV9|A0A146SKV9_FUNHE", "tr|A0A146SKV9|_X"})
    CHECK(species_of(none).empty());

  const char* shared = std::getenv("FASTFOLD_TEST_DATA");
  if (!shared) return;
  const std::string folder = std::string(shared) + "/fixtures/features_q73/input/";
  const Msa merged = merge_msas({read_msa(folder + "uniref90_hits.sto"),
                                 read_msa(folder + "bfd_uniclust_hits.a3m"),
                                 read_msa(folder + "mgnify_hits.sto")});
  std::vector<std::string> species;
  for (const std::string& description : merged.descriptions)
    species.push_back(species_of(description));
  CHECK(species ==
        nlohmann::json::parse(std::ifstream(TEST_DATA "/features_q73/expected_species.json"))
            .get<std::vector<std::string>>());
}

TEST_CASE("alignments are told apart by their contents, packed or not") {
  const Scratch scratch;
  CHECK(read_msa(scratch.write("x.a3m.gz", gzip(">q\nMKT\n"))).rows[0] == "MKT");
  CHECK(read_msa(scratch.write("x.sto", "# STOCKHOLM 1.0\nq MKT\n//\n")).rows[0] == "MKT");
  CHECK_THROWS_WITH(read_msa(scratch.write("x.a3m", "")), Contains("x.a3m: is an empty file"));
  CHECK_THROWS_WITH(read_msa(scratch.write("y.a3m.gz", ">q\nMKT\n")),
                    Contains("named .gz but holds no gzip data"));
  const std::string packed = gzip(">q\nMKT\n");
  for (size_t n = 1; n < packed.size(); ++n)
    CHECK_THROWS_AS(read_msa(scratch.write("z.a3m.gz", packed.substr(0, n))), Error);
}

TEST_CASE("A2M is A3M with points at insertions") {
  CHECK(parse_a3m(">q\nM..KT\n>h\nMacKT\n>i\n-a.KT\n", "x").rows ==
        std::vector<std::string>{"MKT", "MacKT", "-aKT"});
}
