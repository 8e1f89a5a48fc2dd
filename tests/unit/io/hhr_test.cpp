// Template hits against AlphaFold's parsers (features_q73), and refusals.
#include "io/hhr.h"

#include <catch2/catch.hpp>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "core/base/error.h"

using namespace ff;
using Catch::Contains;

namespace {

const std::string kHit =
    "No 1\n"
    ">1ABC_B SOMETHING; {BOS TAURUS}\n"
    "Probab=52.77  E-value=0.8  Score=20.1  Aligned_cols=5  Identities=45%  Similarity=0.68  "
    "Sum_probs=3.5  Template_Neff=2.2\n"
    "\n"
    "Q ss_pred          cccccc\n"
    "Q query             2 KTA-YI    6 (10)\n"
    "Q Consensus         2 kta~yi    6 (10)\n"
    "                      ++++++\n"
    "T Consensus        10 ktaa~i   14 (30)\n"
    "T 1ABC_B           10 KTAA-I   14 (30)\n"
    "T ss_dssp          HHHHHH\n"
    "\n"
    "No 2\n"
    ">2ABC_C\n"
    "Probab=1.0  E-value=8  Score=2  Aligned_cols=2  Identities=50%  Similarity=0.1  "
    "Sum_probs=0.0\n"
    "Q query             3 TA    4 (10)\n"
    "T 2ABC_C            1 TA    2 (2)\n";

const std::string kSearch =
    "# STOCKHOLM 1.0\n"
    "#=GS 4pqx_A/3-6 DE [subseq from] mol:protein length:217  Text\n"
    "#=GS 1xyz_B/1-2 DE [subseq from] mol:na length:9\n"
    "#=GS 5g3r_C/1-4 DE [subseq from] mol:protein length:352\n"
    "\n"
    "4pqx_A/3-6   MK-.gT\n"
    "#=GR 4pqx_A/3-6 PP 99..8\n"
    "1xyz_B/1-2   MK--..\n"
    "5g3r_C/1-4   MKTA..\n"
    "//\n";

template <class Parse>
std::string refusal(Parse parse) {
  try {
    parse();
  } catch (const Error& e) {
    CHECK(e.code() == Exit::kInput);
    return e.what();
  }
  FAIL("accepted");
  return {};
}

}  // namespace

TEST_CASE("hhr hits equal what AlphaFold's parser made of them") {
  const char* shared = std::getenv("FASTFOLD_TEST_DATA");
  if (!shared) {
    std::cout << "SKIPPED: FASTFOLD_TEST_DATA is not set\n";
    return;
  }
  const auto hits =
      read_template_hits(std::string(shared) + "/fixtures/features_q73/input/pdb70_hits.hhr", "");
  const nlohmann::json want =
      nlohmann::json::parse(std::ifstream(TEST_DATA "/features_q73/expected_hhr_hits.json"));
  REQUIRE(hits.size() == want.size());
  for (size_t i = 0; i < hits.size(); ++i) {
    CHECK(hits[i].index == want[i]["index"]);
    CHECK(hits[i].name == want[i]["name"].get<std::string>());
    CHECK(hits[i].aligned_cols == want[i]["aligned_cols"]);
    CHECK(hits[i].sum_probs == Approx(want[i]["sum_probs"].get<double>()).margin(1e-5));
    CHECK(hits[i].query == want[i]["query"].get<std::string>());
    CHECK(hits[i].hit_sequence == want[i]["hit_sequence"].get<std::string>());
    CHECK(hits[i].indices_query == want[i]["indices_query"].get<std::vector<int>>());
    CHECK(hits[i].indices_hit == want[i]["indices_hit"].get<std::vector<int>>());
  }
}

TEST_CASE("hits of hmmsearch equal what AlphaFold's parser made of them") {
  const nlohmann::json want =
      nlohmann::json::parse(std::ifstream(TEST_DATA "/templates/hmmsearch.json"));
  const std::string query = want.at(0)["query"];
  const auto hits = read_template_hits(TEST_DATA "/templates/hmmsearch.sto", query);
  REQUIRE(hits.size() == want.size());
  for (size_t i = 0; i < hits.size(); ++i) {
    CHECK(hits[i].index == want[i]["index"]);
    CHECK(hits[i].name == want[i]["name"].get<std::string>());
    CHECK(hits[i].aligned_cols == want[i]["aligned_cols"]);
    CHECK_FALSE(hits[i].has_sum_probs);
    CHECK(hits[i].query == query);
    CHECK(hits[i].hit_sequence == want[i]["hit_sequence"].get<std::string>());
    CHECK(hits[i].indices_query == want[i]["indices_query"].get<std::vector<int>>());
    CHECK(hits[i].indices_hit == want[i]["indices_hit"].get<std::vector<int>>());
  }
}

TEST_CASE("an hhr paragraph") {
  const auto hits = parse_hhr(kHit, "x.hhr");
  REQUIRE(hits.size() == 2);
  CHECK(hits[0].name == "1ABC_B SOMETHING; {BOS TAURUS}");
  CHECK(hits[0].aligned_cols == 5);
  CHECK(hits[0].sum_probs == 3.5);
  CHECK(hits[0].query == "KTA-YI");
  CHECK(hits[0].hit_sequence == "KTAA-I");
  CHECK(hits[0].indices_query == std::vector<int>{1, 2, 3, -1, 4, 5});
  CHECK(hits[0].indices_hit == std::vector<int>{9, 10, 11, 12, -1, 13});
  CHECK(hits[1].indices_hit == std::vector<int>{0, 1});
  CHECK(parse_hhr("", "x.hhr").empty());
}

TEST_CASE("hhr files that are cut off or do not agree with themselves") {
  const auto parse = [](std::string text) { return [=] { parse_hhr(text, "x.hhr"); }; };
  const auto replaced = [](const std::string& from, const std::string& to) {
    std::string text = kHit;
    return text.replace(text.find(from), from.size(), to);
  };
  CHECK_THAT(refusal(parse("No 1\n")), Contains("x.hhr:2"));
  CHECK_THAT(refusal(parse("No one\n>a\n")), Contains("No one"));
  CHECK_THAT(refusal(parse("No 1\n>a\nProbab=3\n")), Contains("Aligned_cols="));
  CHECK_THAT(refusal(parse("No 1\n>a\n")), Contains("no summary"));
  CHECK_THAT(refusal(parse(replaced("KTA-YI    6", "KTA-YI    7"))), Contains("x.hhr:6"));
  CHECK_THAT(refusal(parse(replaced("KTAA-I", "KTAA-"))), Contains("5 letters"));
  CHECK_THAT(refusal(parse(replaced("(30)\nT ss", "(3\nT ss"))), Contains("x.hhr:10"));
  CHECK_THAT(refusal(parse(kHit.substr(0, kHit.find("T 1ABC_B")))), Contains("row of the query"));
  CHECK_THAT(refusal(parse(kHit.substr(0, kHit.find("Q query             3")))),
             Contains("hit 2, the last, has 0 columns of 2"));
  CHECK_THAT(refusal(parse(replaced("2 KTA-YI    6", "99999999999999999999 KTA-YI 6"))),
             Contains("x.hhr:6"));
}

TEST_CASE("hmmsearch's alignment") {
  const auto hits = parse_hmmsearch(kSearch, "MKTA", "hits.sto");
  REQUIRE(hits.size() == 2);
  CHECK(hits[0].index == 1);
  CHECK(hits[0].name == "4pqx_A");
  CHECK(hits[0].hit_sequence == "MK-GT");
  CHECK(hits[0].aligned_cols == 3);
  CHECK_FALSE(hits[0].has_sum_probs);
  CHECK(hits[0].indices_hit == std::vector<int>{2, 3, -1, 5});
  CHECK(hits[0].indices_query == std::vector<int>{0, 1, 2, 3});
  CHECK(hits[1].index == 3);
  CHECK(hits[1].name == "5g3r_C");

  const auto parse = [](std::string text, std::string sequence) {
    return [=] { parse_hmmsearch(text, sequence, "hits.sto"); };
  };
  CHECK_THAT(refusal(parse(kSearch, "MKTAY")), Contains("4 match columns") && Contains("5"));
  CHECK_THAT(refusal(parse(kSearch.substr(0, kSearch.size() - 3), "MKTA")), Contains("no end"));
  std::string odd = kSearch;
  CHECK_THAT(refusal(parse(odd.replace(odd.find("MKTA"), 1, "?"), "MKTA")), Contains("'?'"));
  CHECK_THAT(refusal(parse("# STOCKHOLM 1.0\n#=GS a DE mol:protein\na MKTA\n//\n", "MKTA")),
             Contains("ENTRY_CHAIN/FIRST-LAST"));
}
