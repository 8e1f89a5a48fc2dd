// Fuzzes the parsers of FASTA and of ColabFold's tables.
#include <set>

#include "io/fasta.h"
#include "tests/fuzz/target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ff::fuzz([&] {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    const bool is_table = text.starts_with("id");
    const auto records = is_table ? ff::parse_csv(text, "input") : ff::parse_fasta(text, "input");
    ff::fuzz_check(!records.empty(), "no records");
    std::set<std::string> tags;
    for (const ff::FastaRecord& r : records) {
      ff::fuzz_check(tags.insert(r.tag).second, "a tag twice");
      ff::fuzz_check(!r.tag.empty() && r.tag[0] != '.' && r.tag.find('/') == std::string::npos,
                     "an unsafe tag");
      ff::fuzz_check(!r.sequence.empty(), "an empty sequence");
      for (char c : r.sequence) ff::fuzz_check(c >= 'A' && c <= 'Z', "not a letter");
    }
  });
  return 0;
}

std::vector<std::string> ff::fuzz_seeds() {
  return {">one\nMKTAYIAKQR\n", ">a b c\r\nmktayi\r\nakqr*\r\n>d|e\nACDEFGHIKLMNPQRSTVWY\n",
          "\xef\xbb\xbf>a\nM\n>a\nM\n>a_2\nM\n", "id,sequence\na,MKT\n\"b c\",\"mkta\"\n",
          "id\tx\tsequence\n/a\t\tMKT*\n"};
}

std::vector<std::string> ff::fuzz_words() {
  return {">",    "\n>",     "\r\n", "*",  "\n", " ",    ">../", std::string(1, '\0'),
          "\xff", ">a\nM\n", ",",    "\"", "\t", "a,M\n"};
}
