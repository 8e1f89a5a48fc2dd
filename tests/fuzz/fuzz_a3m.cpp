// Fuzzes the A3M and Stockholm parsers, told apart as in files.
#include "io/msa.h"
#include "tests/fuzz/target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  ff::fuzz([&] {
    const bool is_a3m = !text.starts_with("# STOCKHOLM");
    const ff::Msa msa = is_a3m ? ff::parse_a3m(text, "input") : ff::parse_stockholm(text, "input");
    const size_t rows = msa.size();
    ff::fuzz_check(rows > 0 && msa.descriptions.size() == rows, "numbers of rows differ");
    size_t letters = 0;
    for (size_t s = 0; s < rows; ++s) {
      const std::string aligned = msa.aligned(s);
      const std::vector<int32_t> deletions = msa.deletions(s);
      ff::fuzz_check(aligned.size() == msa.columns && deletions.size() == msa.columns,
                     "numbers of columns differ");
      for (char c : aligned) ff::fuzz_check((c >= 'A' && c <= 'Z') || c == '-', "not a letter");
      for (int32_t n : deletions) letters += size_t(n);
      letters += aligned.size();
    }
    ff::fuzz_check(letters <= size, "more letters than bytes");
    const ff::Msa again = ff::parse_a3m(ff::to_a3m(msa), "again");
    ff::fuzz_check(again.rows == msa.rows, "changed by writing and reading");
  });
  return 0;
}

std::vector<std::string> ff::fuzz_seeds() {
  return {">query\nMKTAYIAK\n>hit one\nMK-aaAYI-Kcc\n>two\n--TAYIAK\n",
          "#4\t1\n>101\nMKTA\n>UniRef100_X\t12\t0.5\nMKTA\n",
          "# STOCKHOLM 1.0\n#=GF ID q\nq/1-4 MK-TA\nh/7-9 -KWTA\n\nq/1-4 AA\nh/7-9 A-\n//\n"};
}

std::vector<std::string> ff::fuzz_words() {
  return {">",
          "\n>",
          "-",
          "a",
          "A",
          "\n",
          "\r\n",
          "# STOCKHOLM 1.0\n",
          "//\n",
          "#4\t1\n",
          "q MKTA\n",
          "#4,4\t1,1\n",
          std::string(1, '\0'),
          ".",
          " "};
}
