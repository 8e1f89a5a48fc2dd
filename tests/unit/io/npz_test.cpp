// npz: files written by NumPy (tests/data/npz/README.md), damaged and hostile ones, and our own.
#include "io/npz.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <limits>

#include "io/file.h"
#include "tests/fuzz/zip.h"
#include "tests/unit/io/scratch.h"

using namespace ff;

namespace {

const std::string kFolder = TEST_DATA "/npz/";

template <class T>
std::vector<T> values(const Arrays& arrays, const std::string& name) {
  const Tensor& t = arrays.at(name);
  return {t.data<T>(), t.data<T>() + t.numel()};
}

/// The message with which an archive is refused; fails the test when it is not.
std::string refusal(const std::string& bytes) {
  try {
    parse_npz(bytes, "evil.npz");
  } catch (const Error& e) {
    CHECK(e.code() == Exit::kInput);
    CHECK_THAT(e.what(), Catch::StartsWith("evil.npz: "));
    return e.what();
  }
  FAIL("the archive was accepted");
  return {};
}

std::string refusal(const ZipMember& member, int copies = 1) {
  return refusal(make_zip(member, copies));
}

using Catch::Contains;

}  // namespace

TEST_CASE("arrays that NumPy wrote: all dtypes, stored, deflated, zip64") {
  using Floats = std::vector<float>;
  using Ints = std::vector<int32_t>;
  constexpr int32_t kLow = std::numeric_limits<int32_t>::min();
  for (const char* file : {"stored.npz", "deflated.npz", "zip64.npz"}) {
    INFO(file);
    const Arrays a = read_npz(kFolder + file);
    CHECK(a.size() == 17);
    CHECK(a.at("f2").shape() == Dims{3, 4});
    Floats f2;
    for (int i = -6; i < 6; ++i) f2.push_back(float(i) / 8);
    CHECK(values<float>(a, "f2") == f2);
    const Floats extremes = values<float>(a, "f2_extremes");
    CHECK(extremes[0] == 65504.f);
    CHECK(extremes[1] == 0x1p-24f);  // the smallest f2
    CHECK((extremes[2] == 0 && std::signbit(extremes[2])));
    CHECK(extremes[3] == INFINITY);
    CHECK(a.at("f4").shape() == Dims{2, 3, 4});
    CHECK(values<float>(a, "f4")[23] == 11.5f);
    CHECK(values<float>(a, "f8") == Floats{3.14159274f, -0.f, INFINITY});
    CHECK(values<int32_t>(a, "i1") == Ints{-128, 0, 127});
    CHECK(values<int32_t>(a, "i2") == Ints{-32768, 32767});
    CHECK(values<int32_t>(a, "i4") == Ints{kLow, std::numeric_limits<int32_t>::max()});
    CHECK(values<int32_t>(a, "i8") == Ints{-3, -2, -1, 0, 1, 2});
    CHECK(values<int32_t>(a, "u1") == Ints{0, 255});
    CHECK(values<int32_t>(a, "u2") == Ints{65535});
    CHECK(values<int32_t>(a, "u4") == Ints{7});
    CHECK(values<int32_t>(a, "u8") == Ints{9});
    CHECK(values<int32_t>(a, "b1") == Ints{1, 0, 1});
    CHECK(a.at("scalar").rank() == 0);
    CHECK(a.at("scalar").item() == 2.5);
    CHECK(a.at("empty").shape() == Dims{0, 3});
    CHECK(values<float>(a, "alphafold/a/b//weights") == Floats{1.5f});
    CHECK(a.at("fortran").shape() == Dims{2, 3, 4});
    Ints counted(24);
    for (int i = 0; i < 24; ++i) counted[size_t(i)] = i;
    CHECK(values<int32_t>(a, "fortran") == counted);
    CHECK(values<double>(read_npz(kFolder + file, true), "f8") ==
          std::vector<double>{3.141592653589793, -1e-300, 1e300});
  }
}

TEST_CASE("headers of versions 1 to 3, data descriptors, folders and a comment") {
  const Arrays a = read_npz(kFolder + "descriptors.npz");
  CHECK(a.size() == 3);
  CHECK(values<float>(a, "v3") == std::vector<float>{0, 1, 2, 3});
  CHECK(values<float>(a, "v2") == std::vector<float>{1, 2, 3, 4});
  CHECK(values<float>(a, "v1") == std::vector<float>{2, 3, 4, 5});
}

TEST_CASE("arrays that cannot be held are refused by name") {
  const std::pair<const char*, const char*> cases[] = {
      {"big_endian.npz", "big-endian"},
      {"object.npz", "pickled"},
      {"text.npz", "(text)"},
      {"structured.npz", "(structured)"},
      {"complex.npz", "(complex numbers)"},
      {"wide_integer.npz", "element 1 is 2147483648"},
      {"seven_axes.npz", "7 axes"}};
  for (const auto& [file, reason] : cases) {
    INFO(file);
    CHECK_THROWS_WITH(read_npz(kFolder + file), Contains(reason) && Contains("member 'x.npy'") &&
                                                    Contains(std::string(file) + ": "));
  }
  CHECK_THROWS_WITH(read_npz(kFolder + "none.npz"), Contains("No such file"));
  CHECK_THROWS_WITH(read_npz(kFolder), Contains("no ordinary file"));
  CHECK_THROWS_WITH(read_npz(kFolder + "README.md"), Contains("no zip directory"));
}

TEST_CASE("an archive cut at any byte, or with any byte changed, never gives wrong numbers") {
  const Scratch scratch;
  for (const char* file : {"stored.npz", "deflated.npz", "zip64.npz", "descriptors.npz"}) {
    INFO(file);
    const std::string whole = read_text_file(kFolder + file, 1 << 20);
    const Arrays right = parse_npz(whole, file);
    for (size_t n = 0; n < whole.size(); ++n) refusal(whole.substr(0, n));
    CHECK_THROWS_AS(read_npz(scratch.write("cut.npz", whole.substr(0, whole.size() / 2))), Error);
    for (size_t i = 0; i < whole.size(); ++i) {
      std::string changed = whole;
      changed[i] ^= 0x55;
      try {
        // Accepted: fields without meaning here (time stamps, versions) and names.
        for (const auto& [name, t] : parse_npz(changed, file)) {
          if (!right.count(name)) continue;
          const Tensor& expected = right.at(name);
          REQUIRE(t.shape() == expected.shape());
          REQUIRE(std::memcmp(t.raw(), expected.raw(), size_t(t.numel() * size_of(t.dtype()))) ==
                  0);
        }
      } catch (const Error& e) {
        REQUIRE(e.code() == Exit::kInput);
      }
    }
  }
}

TEST_CASE("hostile archives are refused before memory is taken") {
  const std::string f4 = "{'descr': '<f4', 'fortran_order': False, 'shape': ";
  const auto npy = [&](const std::string& shape, const std::string& data) {
    return ZipMember{"x.npy", make_npy(f4 + shape + ", }", data)};
  };
  reset_memory_peak();
  const int64_t before = memory_count().peak;
  CHECK_THAT(refusal(npy("(1152921504606846976,)", "1234")), Contains("impossible"));
  CHECK_THAT(refusal(npy("(1099511627776,)", "1234")),
             Contains("needs 4398046511104 bytes, found 4"));
  CHECK_THAT(refusal(npy("(4294967296, 4294967296, 0)", "")), Contains("impossible"));
  CHECK_THAT(refusal(npy("(-1,)", "1234")), Contains("cannot be understood"));
  CHECK_THAT(refusal(npy("(99999999999999999999,)", "1234")), Contains("cannot be understood"));
  CHECK_THAT(refusal(npy("(1,)", "12345678")), Contains("needs 4 bytes, found 8"));
  CHECK_THAT(refusal(npy("(2,)", "1234")), Contains("needs 8 bytes, found 4"));

  ZipMember bomb = npy("(4194304,)", std::string(16 << 20, '\0'));
  bomb.deflated = true;
  CHECK(parse_npz(make_zip(bomb), "large.npz").at("x").numel() == 4194304);
  reset_memory_peak();
  bomb.claimed_size = 4000000000u;
  CHECK_THAT(refusal(bomb), Contains("claims to hold 4000000000 bytes"));
  bomb.claimed_size = 1 << 20;  // the data go on after that
  CHECK_THAT(refusal(bomb), Contains("needs 16777216 bytes, found"));
  ZipMember longer = npy("(1,)", "1234" + std::string(100000, '\0'));
  longer.deflated = true;
  longer.claimed_size = uint32_t(longer.contents.size() - 100000);
  CHECK_THAT(refusal(longer), Contains("holds more data"));
  longer.claimed_size = 0;
  longer.claimed_packed = 3000000000u;
  CHECK_THAT(refusal(longer), Contains("claims 3000000000 bytes"));
  ZipMember shorter = npy("(100,)", std::string(396, '\0'));
  shorter.deflated = true;
  shorter.claimed_size = uint32_t(shorter.contents.size() + 4);
  CHECK_THAT(refusal(shorter), Contains("its data end after"));
  CHECK(memory_count().peak - before <= (16 << 20) + 1024);

  CHECK_THAT(refusal(npy("(1,)", "1234"), 2), Contains("overlaps"));
  ZipMember other = npy("(1,)", "1234");
  other.name = "x.txt";
  CHECK_THAT(refusal(other), Contains("'x.txt': is no .npy array"));
  CHECK_THAT(refusal(ZipMember{"x.npy", "not an array"}), Contains("does not begin"));
  CHECK_THAT(refusal(ZipMember{"x.npy", make_npy("{'descr': '<f4', 'shape': (1,)}", "1234")}),
             Contains("cannot be understood"));
  std::string damaged = make_zip(npy("(1,)", "1234"));
  damaged[damaged.find("1234")] = '2';
  CHECK_THAT(refusal(damaged), Contains("checksum"));
}

TEST_CASE("what is written is read again, with the same bytes every time") {
  const Scratch scratch;
  const float floats[] = {1.5f, -0.f, NAN, 3e38f, 1e-42f, 6};
  const int32_t ints[] = {1, -2, 3, 4};
  const double doubles[] = {0.1};
  Tensor half = Tensor::of<float>({2, 3}, floats).to(Dtype::bf16);
  const Arrays arrays = {{"a/b//weights", Tensor::of<float>({2, 3}, floats)},
                         {"transposed", Tensor::of<int32_t>({2, 2}, ints).transpose(0, 1)},
                         {"doubles", Tensor::of<double>({}, doubles)},
                         {"half", half},
                         {"empty", Tensor::zeros({0, 2})},
                         {"large", Tensor::zeros({300, 1000})}};
  for (const bool compress : {false, true}) {
    const std::string path = scratch / "a.npz";
    write_npz(path, arrays, compress);
    const std::string bytes = read_text_file(path, 1 << 22);
    CHECK((bytes.size() < 10000) == compress);
    write_npz(path, arrays, compress);
    CHECK(read_text_file(path, 1 << 22) == bytes);
    const Arrays back = read_npz(path, true);
    REQUIRE(back.size() == arrays.size());
    CHECK(std::memcmp(back.at("a/b//weights").raw(), floats, sizeof floats) == 0);
    CHECK(values<int32_t>(back, "transposed") == std::vector<int32_t>{1, 3, -2, 4});
    CHECK(values<double>(back, "doubles") == std::vector<double>{0.1});
    CHECK(back.at("half").dtype() == Dtype::f32);
    CHECK(values<float>(back, "half")[0] == 1.5f);
    CHECK(back.at("empty").shape() == Dims{0, 2});
    CHECK(back.at("large").shape() == Dims{300, 1000});
    CHECK(scratch.names() == std::vector<std::string>{"a.npz"});
  }
}

TEST_CASE("more members than a plain zip directory can count") {
  const Scratch scratch;
  Arrays arrays;
  for (int i = 0; i < 70000; ++i) arrays["a" + std::to_string(i)] = Tensor::scalar(float(i));
  write_npz(scratch / "many.npz", arrays, false);
  const Arrays back = read_npz(scratch / "many.npz");
  CHECK(back.size() == 70000);
  CHECK(back.at("a69999").item() == 69999);
}

TEST_CASE("writing where there is no room") {
  const Scratch scratch;
  const Arrays arrays = {{"x", Tensor::zeros({1000, 1000})}};
  CHECK_THROWS_WITH(write_npz(scratch / "no/x.npz", arrays),
                    Contains("no/x.npz: cannot write there"));
  const FileSizeLimit limit(1 << 16);
  CHECK_THROWS_WITH(write_npz(scratch / "x.npz", arrays, false),
                    Contains("x.npz: writing failed") && Contains("File too large"));
  CHECK(scratch.names().empty());
}

TEST_CASE("the fixtures' parameters, against the rule that made them") {
  const char* shared = std::getenv("FASTFOLD_TEST_DATA");
  if (!shared) {
    std::cout << "SKIPPED: FASTFOLD_TEST_DATA is not set\n";
    return;
  }
  const Arrays a = read_npz(std::string(shared) + "/fixtures/tiny/params.npz");
  // The pseudo-random rule of fixtures/README.md, evaluated here.
  constexpr uint64_t kGolden = 0x9E3779B97F4A7C15, kParamSeed = 1001;
  int64_t compared = 0;
  for (const auto& [name, t] : a) {
    if (!name.ends_with("//scale")) continue;
    uint64_t fnv = 0xcbf29ce484222325;
    for (unsigned char c : name) fnv = (fnv ^ c) * 0x100000001b3;
    for (int64_t i = 0; i < t.numel(); ++i, ++compared) {
      uint64_t z = fnv + kParamSeed * kGolden + uint64_t(i) + kGolden;
      z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
      z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
      z = z ^ (z >> 31);
      const double u = double(z >> 40) * 0x1p-24;
      REQUIRE(t.data<float>()[i] == float(1 + 0.1 * (2 * u - 1)));
    }
  }
  CHECK(compared > 100);
}
