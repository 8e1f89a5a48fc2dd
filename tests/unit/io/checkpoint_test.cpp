// Checkpoints: what is written comes back bit for bit, anything else is refused.
#include "io/checkpoint.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>

#include "io/file.h"
#include "io/hdf5.h"
#include "io/npz.h"
#include "tests/unit/io/scratch.h"

using namespace ff;
using Catch::Contains;

namespace {

std::string refusal(const std::string& path) {
  try {
    read_checkpoint(path);
  } catch (const Error& e) {
    CHECK(e.code() == Exit::kInput);
    CHECK_THAT(e.what(), Catch::StartsWith(path + ": "));
    return e.what();
  }
  FAIL("the checkpoint was accepted");
  return {};
}

/// Puts a fitting user block before changed contents, so that HDF5 gets to see them.
void seal(std::string& bytes) {
  const std::string_view rest = std::string_view(bytes).substr(512);
  const uLong crc = crc32(0, reinterpret_cast<const Bytef*>(rest.data()), uInt(rest.size()));
  char text[512] = {};
  std::snprintf(text, sizeof text, "fastfold checkpoint\ncrc32 %08lx of %zu bytes\n", crc,
                rest.size());
  bytes.replace(0, 512, text, 512);
}

Arrays some_arrays() {
  const float floats[] = {1.5f, -0.f, NAN, 3e38f, 1e-42f, 6};
  const int32_t ints[] = {1, -2, 3, 4};
  const double doubles[] = {0.1};
  return {{"alphafold/alphafold_iteration/evoformer//weights", Tensor::of<float>({2, 3}, floats)},
          {"alphafold/alphafold_iteration/evoformer/weights", Tensor::of<float>({3, 2}, floats)},
          {"alphafold/alphafold_iteration/evoformer", Tensor::scalar(1)},
          {"adam/m/x//y", Tensor::of<float>({2, 3}, floats).to(Dtype::bf16)},
          {"ints", Tensor::of<int32_t>({2, 2}, ints).transpose(0, 1)},
          {"f64", Tensor::of<double>({}, doubles)},
          {"empty", Tensor::zeros({0, 2})},
          {"6", Tensor::zeros({1, 1, 2, 1, 1, 1}, Dtype::i32)}};
}

}  // namespace

TEST_CASE("a checkpoint comes back bit for bit and is the same file every time") {
  const Scratch scratch;
  const std::string path = scratch / "step_1.h5";
  const Arrays arrays = some_arrays();
  const Attributes attributes = {{"config", std::string(200'000, 'c')},
                                 {"empty", ""},
                                 {"run/step", "17"},
                                 {"run", "\xc3\xa9"}};
  write_checkpoint(path, arrays, attributes);
  CHECK(scratch.names() == std::vector<std::string>{"step_1.h5"});
  Attributes texts = {{"left over", "x"}};
  const Arrays back = read_checkpoint(path, &texts);
  CHECK(texts == attributes);
  REQUIRE(back.size() == arrays.size());
  for (const auto& [name, t] : arrays) {
    INFO(name);
    REQUIRE(back.count(name));
    const Tensor whole = t.contiguous(), &b = back.at(name);
    REQUIRE(b.dtype() == t.dtype());
    REQUIRE(b.shape() == t.shape());
    CHECK(std::memcmp(b.raw(), whole.raw(), size_t(t.numel() * size_of(t.dtype()))) == 0);
  }
  const std::string bytes = read_text_file(path, 1 << 22);
  write_checkpoint(path, arrays, attributes);
  CHECK(read_text_file(path, 1 << 22) == bytes);
}

TEST_CASE("any name survives, also names that HDF5 lacks") {
  const Scratch scratch;
  Arrays arrays;
  const std::vector<std::string> names = {
      "",      "/",   "//",   "a",        "a/",  "a//", "/a",   "a/b",   "a//b", "a///b", "a/./b",
      ".",     "..",  "./..", "%",        "a%",  "a/%", "%2E",  "%25",   "a%/",  "%/%",   "%%",
      "a/%/b", "a%%", " ",    "\xc3\xa9", "a b", "a/.", "a/b/", "a/b//", "a/b%"};
  for (size_t i = 0; i < names.size(); ++i) arrays[names[i]] = Tensor::scalar(float(i));
  write_checkpoint(scratch / "names.h5", arrays);
  const Arrays back = read_checkpoint(scratch / "names.h5");
  CHECK(back.size() == names.size());
  for (size_t i = 0; i < names.size(); ++i) {
    INFO("name '" << names[i] << "'");
    REQUIRE(back.count(names[i]));
    CHECK(back.at(names[i]).item() == double(i));
  }
}

TEST_CASE("other files and damaged checkpoints are refused") {
  const Scratch scratch;
  const std::string path = scratch / "good.h5", bad = scratch / "bad.h5";
  write_checkpoint(path, {{"a//b", Tensor::zeros({3})}}, {{"step", "1"}});
  const std::string bytes = read_text_file(path, 1 << 22);
  for (size_t n = 0; n < bytes.size(); n += n < 600 ? 1 : 97) {
    scratch.write("bad.h5", bytes.substr(0, n));
    refusal(bad);
  }
  for (size_t i = 0; i < bytes.size(); i += 13) {
    std::string changed = bytes;
    changed[i] ^= 0x10;
    scratch.write("bad.h5", changed);
    refusal(bad);
  }
  CHECK_THAT(refusal(scratch / "none.h5"), Contains("cannot open it"));
  CHECK_THAT(refusal(scratch.path()), Contains("is no checkpoint"));
  scratch.write("bad.h5", bytes.substr(512));
  CHECK_THAT(refusal(bad), Contains("another HDF5 file"));
  write_npz(bad, {{"a", Tensor::scalar(1)}});
  CHECK_THAT(refusal(bad), Contains("is no checkpoint of fastfold; "));
}

TEST_CASE("files that only pretend to be checkpoints") {
  const Scratch scratch;
  const std::string path = scratch / "x.h5";
  const auto reseal = [&] {
    std::string bytes = read_text_file(path, 1 << 22);
    seal(bytes);
    scratch.write("x.h5", bytes);
  };
  const auto change = [&](auto edit) {
    write_checkpoint(path, {{"a//b", Tensor::zeros({3})}}, {{"step", "1"}});
    {
      const Hdf5Lock lock;
      const Hid file(H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT));
      edit(file);
    }
    reseal();
  };
  change([](hid_t) {});
  CHECK(read_checkpoint(path).size() == 1);
  change([](hid_t file) {
    const int version = 2;
    H5Awrite(Hid(H5Aopen(file, "format_version", H5P_DEFAULT)), H5T_NATIVE_INT, &version);
  });
  CHECK_THAT(refusal(path), Contains("format 2, this program reads format 1"));
  change([](hid_t file) { H5Adelete(file, "format_version"); });
  CHECK_THAT(refusal(path), Contains("cannot read 'format_version'"));
  change([](hid_t file) { H5Ldelete(file, "arrays", H5P_DEFAULT); });
  CHECK_THAT(refusal(path), Contains("cannot read /arrays"));

  const auto add = [&](hid_t type, std::vector<hsize_t> sizes, auto properties) {
    change([&](hid_t file) {
      const Hid plist(H5Pcreate(H5P_DATASET_CREATE));
      properties(hid_t(plist));
      const Hid space(H5Screate_simple(int(sizes.size()), sizes.data(), nullptr));
      Hid(H5Dcreate2(file, "arrays/evil", type, space, H5P_DEFAULT, plist, H5P_DEFAULT));
    });
    return refusal(path);
  };
  const auto plain = [](hid_t) {};
  CHECK_THAT(add(H5T_STD_I64LE, {3}, plain), Contains("of a type that checkpoints do not have"));
  CHECK_THAT(add(H5T_IEEE_F32LE, {1, 1, 1, 1, 1, 1, 1}, plain), Contains("has 7 axes"));
  reset_memory_peak();
  CHECK_THAT(add(H5T_IEEE_F32LE, {1'000'000'000}, plain), Contains("cannot read evil"));
  CHECK(memory_count().peak < 10'000);
  CHECK_THAT(add(H5T_IEEE_F32LE, {3},
                 [](hid_t p) {
                   const hsize_t chunk = 3;
                   H5Pset_chunk(p, 1, &chunk);
                 }),
             Contains("cannot read evil"));
  CHECK_THAT(add(H5T_IEEE_F32LE, {3}, [](hid_t p) { H5Pset_external(p, "/etc/passwd", 0, 12); }),
             Contains("cannot read evil"));
}

TEST_CASE("a checkpoint that has no room leaves the last one as it was") {
  const Scratch scratch;
  const std::string path = scratch / "last.h5";
  write_checkpoint(path, {{"x", Tensor::scalar(1)}});
  {
    for (const rlim_t room : {600, 3000, 100'000, 4'000'900}) {
      const FileSizeLimit limit(room);
      try {
        write_checkpoint(path, {{"x", Tensor::zeros({1000, 1000})}});
        FAIL("written past the limit");
      } catch (const Error& e) {
        CHECK(e.code() == Exit::kDevice);
        CHECK_THAT(e.what(), Contains(path) && !Contains("\n"));
      }
    }
  }
  CHECK(scratch.names() == std::vector<std::string>{"last.h5"});
  CHECK(read_checkpoint(path).at("x").item() == 1);
  CHECK_THROWS_WITH(write_checkpoint(scratch / "no/x.h5", {}), Contains("cannot write there"));
  write_checkpoint(path, {{"x", Tensor::scalar(2)}});
  CHECK(read_checkpoint(path).at("x").item() == 2);
}
