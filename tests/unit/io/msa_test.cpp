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
    CHECK(msa.sequences == expected["sequences"].get<std::vector<std::string>>());
    CHECK(msa.descriptions == expected["descriptions"].get<std::vector<std::string>>());
    const Arrays arrays = read_npz(stem + ".npz");
    const Tensor& deletions = arrays.at("deletion_matrix");
    const Tensor& hashes = arrays.at("sequence_fnv1a64_lo");
    REQUIRE(deletions.shape() ==
            Dims{int64_t(msa.sequences.size()), int64_t(msa.sequences[0].size())});
    for (size_t s = 0; s < msa.sequences.size(); ++s) {
      const int32_t* row = deletions.data<int32_t>() + s * msa.sequences[0].size();
      REQUIRE(msa.deletion_matrix[s] == std::vector<int>(row, row + msa.sequences[0].size()));
      uint64_t fnv = 0xcbf29ce484222325;
      for (unsigned char c : msa.sequences[s]) fnv = (fnv ^ c) * 0x100000001b3;
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
    CHECK(msa.sequences == std::vector<std::string>{"MKT", "M-T", "-KT"});
    CHECK(msa.descriptions == std::vector<std::string>{"query one", "hit", "end"});
    CHECK(msa.deletion_matrix == std::vector<std::vector<int>>{{0, 0, 0}, {2, 1, 3}, {0, 0, 0}});
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
  CHECK_THAT(a3m_refusal(">q\nMKT\n>h\nM.T\n"), Contains("record 2 'h', line 4: found '.'"));
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
  CHECK(msa.sequences == std::vector<std::string>{"MKT", "MK-"});
  CHECK(msa.deletion_matrix == std::vector<std::vector<int>>{{0, 0, 0}, {0, 2, 0}});
  CHECK_THAT(refusal(parse_stockholm, "# STOCKHOLM 1.0\n//\n"), Contains("holds no sequence"));
  CHECK_THAT(refusal(parse_stockholm, "q MKT\nh MK\n"),
             Contains("record 2 'h' has 2 columns, expected 3"));
  CHECK_THAT(refusal(parse_stockholm, "q MKT\nh\n"), Contains("bad.a3m:2: 'h' has no sequence"));
  CHECK_THAT(refusal(parse_stockholm, "q MKT\nh M1T\n"),
             Contains("record 2 'h', line 2: found '1'"));
  CHECK_THAT(refusal(parse_stockholm, "q ---\nh MKT\n"), Contains("has no aligned residue"));
}

TEST_CASE("alignments are told apart by their contents, packed or not") {
  const Scratch scratch;
  CHECK(read_msa(scratch.write("x.a3m.gz", gzip(">q\nMKT\n"))).sequences[0] == "MKT");
  CHECK(read_msa(scratch.write("x.sto", "# STOCKHOLM 1.0\nq MKT\n//\n")).sequences[0] == "MKT");
  CHECK_THROWS_WITH(read_msa(scratch.write("x.a3m", "")), Contains("x.a3m: holds no record"));
}
