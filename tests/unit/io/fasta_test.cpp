// FASTA: what is accepted, how it is cleaned, and what every refusal names.
#include "io/fasta.h"

#include <catch2/catch.hpp>

#include "core/base/error.h"
#include "tests/unit/io/scratch.h"

using namespace ff;
using Catch::Contains;

namespace {

std::string refusal(const std::string& text) {
  try {
    parse_fasta(text, "bad.fasta");
  } catch (const Error& e) {
    CHECK(e.code() == Exit::kInput);
    return e.what();
  }
  FAIL("accepted: " << text);
  return {};
}

}  // namespace

TEST_CASE("FASTA records are cleaned") {
  const auto r = parse_fasta(
      "\n>sp|P1|ONE first protein \nMKtay\n\n iak q \n>two\r\nACDEFGHIKLMNPQRSTVWYXBZUOJ\r\nAC*\r\n"
      ">\nG\n",
      "x");
  REQUIRE(r.size() == 3);
  CHECK(r[0].title == "sp|P1|ONE first protein");
  CHECK(r[0].tag == "sp_P1_ONE");
  CHECK(r[0].sequence == "MKTAYIAKQ");
  CHECK(r[1].tag == "two");
  CHECK(r[1].sequence == "ACDEFGHIKLMNPQRSTVWYXBZUOJAC");
  CHECK(r[2].title.empty());
  CHECK(r[2].tag == "record_3");
  CHECK(parse_fasta(">a\rMK\rTA", "old Macintosh")[0].sequence == "MKTA");
  CHECK(parse_fasta("\xef\xbb\xbf>a\nMK\n", "byte order mark")[0].sequence == "MK");
}

TEST_CASE("tags are unique and safe as file names") {
  const auto r = parse_fasta(
      ">a\nM\n>a\nM\n>a_2\nM\n>a\nM\n>../../etc/passwd\nM\n>.hidden\nM\n>-rf "
      "x\nM\n>\xc3\xa9\nM\n>" +
          std::string(300, 'n') + "\nM\n",
      "x");
  std::vector<std::string> tags;
  for (const FastaRecord& record : r) tags.push_back(record.tag);
  CHECK(tags == std::vector<std::string>{"a", "a_2", "a_2_2", "a_3", "_._.._etc_passwd", "_hidden",
                                         "_rf", "__", std::string(100, 'n')});
}

TEST_CASE("FASTA refusals name file, line and character") {
  CHECK_THAT(refusal(""), Contains("bad.fasta: holds no record"));
  CHECK_THAT(refusal("\n \n"), Contains("bad.fasta: holds no record"));
  CHECK_THAT(refusal("MKT\n"), Contains("bad.fasta:1: found 'M' before the first record"));
  CHECK_THAT(refusal(">a\nMK\nM1T\n"),
             Contains("bad.fasta:3: record 'a' has '1', expected the letters"));
  CHECK_THAT(refusal(">a\nMK:MT\n"), Contains("has ':'") && Contains("its own record"));
  CHECK_THAT(refusal(">a\nMK-T\n"),
             Contains("has '-'") && Contains("a gap belongs to an alignment"));
  CHECK_THAT(refusal(">a\nMK\xe9T\n"), Contains("has character code 233"));
  CHECK_THAT(refusal(">a\nMK*T\n"), Contains("bad.fasta:2: record 'a' goes on after '*'"));
  CHECK_THAT(refusal(">a\nMK\n>b\n\n>c\nM\n"), Contains("bad.fasta:3: record 'b' has no sequence"));
  CHECK_THAT(refusal(">a\nMK\n>b\n*"), Contains("bad.fasta:3: record 'b' has no sequence"));
  CHECK_THAT(refusal(std::string(">a\nM\0K\n", 7)), Contains("binary file"));
  CHECK(parse_fasta(">a\n" + std::string(100'000, 'A'), "x")[0].sequence.size() == 100'000);
  CHECK_THAT(refusal(">a\n" + std::string(100'001, 'A')), Contains("more than 100000 residues"));
}

TEST_CASE("FASTA files may be gzip, and a missing one is named") {
  const Scratch scratch;
  CHECK(read_fasta(scratch.write("q.fasta.gz", gzip(">q\nMKT\n")))[0].sequence == "MKT");
  CHECK_THROWS_WITH(read_fasta(scratch / "none.fasta"), Contains("none.fasta: cannot open it"));
}
