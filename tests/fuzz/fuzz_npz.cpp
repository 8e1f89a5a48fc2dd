// Fuzzes the npz reader. The first byte chooses what the rest is: an archive, or a .npy file that
// is put, stored or deflated, into a correct archive, so that mutations get past the checksum.
#include "io/npz.h"
#include "tests/fuzz/target.h"
#include "tests/fuzz/zip.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] & 1) bytes = ff::make_zip({"x.npy", bytes, (data[0] & 2) != 0});
  ff::fuzz([&] {
    for (const auto& [name, t] : ff::parse_npz(bytes, "input", (data[0] & 4) != 0)) {
      // Every byte of the arrays was written: a memory checker would see.
      const auto* p = static_cast<const unsigned char*>(t.raw());
      int64_t nonzero = 0;
      for (int64_t i = 0; i < t.numel() * ff::size_of(t.dtype()); ++i) nonzero += p[i] != 0;
      ff::fuzz_check(nonzero <= t.numel() * 8 && t.is_contiguous(), "a strange tensor");
    }
  });
  return 0;
}

std::vector<std::string> ff::fuzz_seeds() {
  std::vector<std::string> seeds;
  const auto header = [](const std::string& descr, const std::string& order,
                         const std::string& shape) {
    return "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }";
  };
  const std::string data("\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\0\0\0\0", 16);
  const std::string npys[] = {
      make_npy(header("<f4", "False", "(2, 2)"), data),
      make_npy(header("<f2", "True", "(2, 4)"), data),
      make_npy(header("|b1", "False", "(16,)"), data),
      make_npy(header("<i8", "False", "()"), data.substr(8, 4) + std::string(4, '\0')),
      make_npy(header("<f8", "True", "(2, 1)"), data)};
  for (const std::string& npy : npys) {
    seeds.push_back('\x01' + npy);
    seeds.push_back('\x07' + npy);
    seeds.push_back('\x02' + make_zip({"a//b.npy", npy, false}));
    seeds.push_back('\x04' + make_zip({"a.npy", npy, true}));
  }
  return seeds;
}

std::vector<std::string> ff::fuzz_words() {
  return {"PK\x01\x02",
          "PK\x03\x04",
          "PK\x05\x06",
          "PK\x06\x06",
          "PK\x06\x07",
          "\xff\xff\xff\xff",
          std::string("\x01\x00\x10\x00", 4),
          "\x93NUMPY\x01",
          "'descr': '<f4'",
          "'fortran_order': True",
          "'shape': (",
          "(1,)",
          "(4294967296, 4294967296)",
          ", ",
          "}",
          "L",
          "'<i2'",
          "'|O'",
          "'>f4'",
          "[('a', '<f4')]",
          "18446744073709551615",
          "-1"};
}
