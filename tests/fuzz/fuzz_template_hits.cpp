// Fuzzes the parsers of template searches: hhsearch's hhr and hmmsearch's Stockholm output.
#include "io/hhr.h"
#include "tests/fuzz/target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  ff::fuzz([&] {
    const bool is_hhr = !text.starts_with("# STOCKHOLM");
    const auto hits =
        is_hhr ? ff::parse_hhr(text, "input") : ff::parse_hmmsearch(text, "MKTA", "input");
    for (const ff::TemplateHit& hit : hits) {
      ff::fuzz_check(hit.indices_query.size() == hit.indices_hit.size(), "columns differ");
      ff::fuzz_check(hit.hit_sequence.size() <= size, "more letters than bytes");
      for (const char c : hit.hit_sequence)
        ff::fuzz_check((c >= 'A' && c <= 'Z') || c == '-', "not a letter");
      for (const int i : hit.indices_hit) ff::fuzz_check(i >= -1, "a negative index");
    }
  });
  return 0;
}

std::vector<std::string> ff::fuzz_seeds() {
  return {
      "No 1\n>1ABC_B X\nProbab=5  E-value=0.8  Score=2  Aligned_cols=5  Identities=45%  "
      "Similarity=0.6  Sum_probs=3.5  Template_Neff=2\n\nQ query             2 KTA-YI    6 "
      "(10)\nQ Consensus         2 kta~yi    6 (10)\nT 1ABC_B           10 KTAA-I   14 "
      "(30)\n\nNo 2\n>2ABC_C\nProbab=1 Aligned_cols=0 Sum_probs=0\n",
      "# STOCKHOLM 1.0\n#=GS 4pqx_A/3-6 DE [subseq from] mol:protein length:217\n\n4pqx_A/3-6 "
      "MK-.gT\n//\n"};
}

std::vector<std::string> ff::fuzz_words() {
  return {"No 1\n",
          "\n>",
          "Q query             2 KTA    4 (10)\n",
          "T a                 1 KTA    3 (10)\n",
          "Aligned_cols=",
          "Sum_probs=",
          "-1",
          "99999999999",
          "//\n",
          "#=GS a_b/1-4 DE mol:protein\n",
          "a_b/1-4 MKTA\n",
          ".",
          "-",
          "nan",
          "\n"};
}
