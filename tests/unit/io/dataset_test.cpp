// Shards: what is packed comes back, through this reader and through HDF5's own; damage, cuts,
// forged numbers and other files are refused by name.
#include "io/dataset.h"

#include <catch2/catch.hpp>
#include <cstring>
#include <numeric>
#include <random>
#include <thread>

#include "core/geometry/residue_constants.h"
#include "io/dataset_writer.h"
#include "io/file.h"
#include "io/hdf5.h"
#include "tests/unit/io/scratch.h"

using namespace ff;
using Catch::Contains;

namespace {

const std::string kFingerprint(64, 'a');

/// The same numbers everywhere, unlike std::uniform_int_distribution's.
int64_t below(std::mt19937& random, int64_t n) { return int64_t(random() % uint64_t(n)); }

ChainStructure chain_4cup() {
  return read_structure(TEST_DATA "/evaluate/bp_4CUP.cif.gz").chains.at(0);
}

/// An alignment of `rows` rows with gaps and insertions, some longer than a byte can say.
Msa alignment_of(const std::string& sequence, int rows) {
  std::mt19937 random(7);
  Msa msa{.rows = {sequence}, .descriptions = {"query"}, .columns = sequence.size()};
  for (int s = 1; s < rows; ++s) {
    std::string row;
    for (const char c : sequence) {
      const int64_t draw = below(random, 100);
      if (draw < 2) row += std::string(draw == 0 ? 300 : 2, 'a');
      row += draw < 20 ? '-' : draw < 50 ? "ARNDCQEGHILKMFPSTWYVX"[below(random, 21)] : c;
    }
    msa.rows.push_back(row);
    msa.descriptions.push_back(cat("row", s));
  }
  return msa;
}

TemplateFeatures templates_of(const ChainStructure& chain, int64_t count) {
  const auto n = int64_t(chain.sequence.size());
  TemplateFeatures t{.aatype = Tensor::zeros({count, n, kMsaLetters}),
                     .all_atom_positions = Tensor::zeros({count, n, kAtom37, 3}),
                     .all_atom_masks = Tensor::zeros({count, n, kAtom37}),
                     .sum_probs = Tensor::zeros({count, 1})};
  for (int64_t k = 0; k < count; ++k) {
    for (int64_t i = 0; i < n; ++i)
      t.aatype.data<float>()[(k * n + i) * kMsaLetters + (i + k) % kMsaLetters] = 1;
    t.all_atom_positions.select(0, k).copy_from(chain.positions);
    t.all_atom_positions.data<float>()[k * n * kAtom37 * 3] = float(k) + 0.25f;
    t.all_atom_masks.select(0, k).copy_from(chain.mask);
    t.sum_probs.data<float>()[k] = 90.5f - float(k);
  }
  return t;
}

struct Sample {
  ChainStructure structure = chain_4cup();
  RawFeatures deep, alone;

  explicit Sample(int rows, int64_t templates = 3) {
    deep = make_raw_features(structure.sequence, alignment_of(structure.sequence, rows),
                             templates ? templates_of(structure, templates) : TemplateFeatures{});
    alone = make_raw_features(structure.sequence, {});
  }

  void write(const std::string& path, const ShardHeader& header = {1, 1, kFingerprint, 0}) const {
    ChainInfo info{.id = "4cup_A",
                   .sequence = "",
                   .date = "2014-04-09",
                   .method = "x-ray diffraction",
                   .source = "4cup.cif",
                   .resolution = 1.88,
                   .cluster = 5,
                   .cluster_size = 3};
    ShardWriter writer(path, header);
    writer.add(pack_chain(info, deep, structure));
    info.id = "4cup_alone";
    info.distillation = true;
    writer.add(pack_chain(info, alone, structure));
    writer.commit({{true, "1lcd.cif", "", "holds no protein chain \xff"},
                   {false, "4cup.cif", "A", "has several models"}});
  }
};

bool same(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && std::memcmp(a.contiguous().raw(), b.contiguous().raw(),
                                               size_t(a.numel() * size_of(a.dtype()))) == 0;
}

/// The message of the refusal to open, or to read, or what verify finds; "" where all is accepted.
std::string refusal(const std::string& path) {
  try {
    const std::vector<ShardDamage> found = verify_shard(path);
    return found.empty() ? "" : found[0].what;
  } catch (const Error& e) {
    CHECK(e.code() == Exit::kInput);
    CHECK_THAT(e.what(), Catch::StartsWith(path + ": "));
    return e.what();
  }
}

std::string bytes_of(const std::string& path) { return read_text_file(path, 1 << 26); }

uint32_t crc_of(std::string_view bytes) {
  return uint32_t(crc32(0, reinterpret_cast<const Bytef*>(bytes.data()), uInt(bytes.size())));
}

/// Puts fitting checksums of index, notes, file and header in the header.
void seal(std::string& bytes) {
  std::string out;
  std::string_view text = std::string_view(bytes).substr(0, 512), line;
  char crc[16];
  while (next_line(text, line) && !line.starts_with("header")) {
    std::string l(line);
    long long offset = 0, size = 0;
    if (std::sscanf(l.c_str(), "%*s %lld %lld", &offset, &size) == 2 &&
        (l.starts_with("index") || l.starts_with("notes"))) {
      std::snprintf(crc, sizeof crc, "%08x",
                    crc_of(std::string_view(bytes).substr(size_t(offset), size_t(size))));
      l.replace(l.size() - 8, 8, crc);
    }
    if (l.starts_with("rest")) {
      std::snprintf(crc, sizeof crc, "%08x", crc_of(std::string_view(bytes).substr(512)));
      l.replace(l.size() - 8, 8, crc);
    }
    out += l + "\n";
  }
  std::snprintf(crc, sizeof crc, "%08x", crc_of(out));
  out += std::string("header ") + crc + "\n";
  out.resize(512);
  bytes.replace(0, 512, out);
}

}  // namespace

TEST_CASE("a shard gives back what was packed, row by row") {
  const Scratch scratch;
  const Sample sample(500);
  const std::string path = scratch / "chains-00001-of-00001.h5";
  sample.write(path);
  CHECK(scratch.names() == std::vector<std::string>{"chains-00001-of-00001.h5"});
  const Dataset data({scratch.path()});
  REQUIRE(data.chains().size() == 2);
  const ChainInfo& info = data.chains()[0];
  CHECK(info.id == "4cup_A");
  CHECK(info.sequence == sample.structure.sequence);
  CHECK(info.date == "2014-04-09");
  CHECK(info.method == "x-ray diffraction");
  CHECK(info.resolution == 1.88);
  CHECK(info.n_msa == 500);
  CHECK(info.n_templates == 3);
  CHECK(info.cluster == 5);
  CHECK(info.cluster_size == 3);
  CHECK_FALSE(info.distillation);
  CHECK(data.chains()[1].distillation);
  CHECK(data.chains()[1].n_msa == 1);
  CHECK(data.shard(1) == path);

  const int64_t n = info.n_res();
  std::mt19937 random(1);
  for (const int count : {0, 1, 40, 700}) {
    std::vector<int32_t> rows(static_cast<size_t>(count));
    for (int32_t& row : rows) row = int32_t(below(random, 500));
    std::vector<int8_t> msa(rows.size() * size_t(n), 99);
    std::vector<uint8_t> deletions(msa.size(), 99);
    data.read_msa(0, rows, msa.data(), deletions.data());
    int64_t wrong = 0, clipped = 0;
    for (size_t r = 0; r < rows.size(); ++r)
      for (int64_t i = 0; i < n; ++i) {
        const int32_t d = sample.deep.deletions(rows[r])[i];
        clipped += d > 255;
        wrong += msa[r * size_t(n) + size_t(i)] != sample.deep.row(rows[r])[i] ||
                 deletions[r * size_t(n) + size_t(i)] != std::min(d, 255);
      }
    CHECK(wrong == 0);
    if (count == 700) CHECK(clipped > 0);
  }
  CHECK(data.profile(0) == sample.deep.profile);
  CHECK(data.profile(1) == sample.alone.profile);
  const ChainStructure structure = data.structure(1);
  CHECK(structure.sequence == sample.structure.sequence);
  CHECK(same(structure.positions, sample.structure.positions));
  CHECK(same(structure.mask, sample.structure.mask));
  const int32_t which[] = {2, 0};
  const TemplateFeatures t = data.templates(0, which);
  for (int64_t k = 0; k < 2; ++k) {
    const TemplateFeatures& all = sample.deep.templates;
    CHECK(same(t.aatype.select(0, k), all.aatype.select(0, which[k])));
    CHECK(same(t.all_atom_positions.select(0, k), all.all_atom_positions.select(0, which[k])));
    CHECK(same(t.all_atom_masks.select(0, k), all.all_atom_masks.select(0, which[k])));
    CHECK(same(t.sum_probs.select(0, k), all.sum_probs.select(0, which[k])));
  }
  CHECK(data.templates(1, {}).size() == 0);

  const std::vector<BuildNote> notes = read_shard_notes(path);
  REQUIRE(notes.size() == 2);
  CHECK(notes[0].rejected);
  CHECK_THAT(notes[0].reason, Catch::StartsWith("holds no protein chain"));
  CHECK(notes[1].chain == "A");
  int64_t chains = 0;
  CHECK(verify_shard(path, &chains).empty());
  CHECK(chains == 2);

  const std::string bytes = bytes_of(path);
  sample.write(path);
  CHECK(bytes_of(path) == bytes);
}

TEST_CASE("HDF5 itself reads a shard's datasets") {
  const Scratch scratch;
  const Sample sample(50);
  const std::string path = scratch / "x.h5";
  sample.write(path);
  const Hdf5Lock lock;
  const Hid file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT));
  REQUIRE(file.ok());
  const auto read = [&](const char* name, hid_t type, auto& values) {
    const Hid set(H5Dopen2(file, name, H5P_DEFAULT));
    REQUIRE(set.ok());
    const Hid space(H5Dget_space(set));
    values.resize(size_t(H5Sget_simple_extent_npoints(space)));
    REQUIRE(H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) >= 0);
  };
  std::vector<int8_t> msa;
  read("/chains/4cup_A/msa", H5T_NATIVE_INT8, msa);
  CHECK(msa == sample.deep.msa);
  std::vector<float> positions, profile;
  read("/chains/4cup_A/positions", H5T_NATIVE_FLOAT, positions);
  REQUIRE(int64_t(positions.size()) == sample.structure.positions.numel());
  CHECK(std::memcmp(positions.data(), sample.structure.positions.raw(), positions.size() * 4) == 0);
  read("/chains/4cup_A/profile", H5T_NATIVE_FLOAT, profile);
  CHECK(profile == sample.deep.profile);
  std::vector<uint8_t> index;
  read("/index", H5T_NATIVE_UINT8, index);
  CHECK(std::string(index.begin(), index.end()).starts_with("{\"id\":\"4cup_A\""));
}

TEST_CASE("reads from several threads agree") {
  const Scratch scratch;
  const Sample sample(200, 0);
  sample.write(scratch / "x.h5");
  const Dataset data({scratch / "x.h5"});
  const auto n = size_t(data.chains()[0].n_res());
  std::vector<int> wrong(4);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < wrong.size(); ++t)
    threads.emplace_back([&, t] {
      std::mt19937 random{unsigned(t)};
      std::vector<int8_t> msa(30 * n);
      std::vector<uint8_t> deletions(msa.size());
      std::vector<int32_t> rows(30);
      for (int round = 0; round < 30; ++round) {
        for (int32_t& row : rows) row = int32_t(below(random, 200));
        data.read_msa(0, rows, msa.data(), deletions.data());
        for (size_t r = 0; r < rows.size(); ++r)
          wrong[t] += std::memcmp(&msa[r * n], sample.deep.row(rows[r]), n) != 0;
        wrong[t] += data.profile(0) != sample.deep.profile;
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(std::accumulate(wrong.begin(), wrong.end(), 0) == 0);
}

TEST_CASE("verify finds any changed byte, and reading names shard and chain") {
  const Scratch scratch;
  const Sample sample(60, 1);
  const std::string path = scratch / "x.h5";
  sample.write(path);
  const std::string whole = bytes_of(path);
  std::mt19937 random(3);
  for (int k = 0; k < 150; ++k) {
    std::string bytes = whole;
    // Half of them in the header; zeros after its text carry nothing.
    const size_t at = k % 2 ? size_t(below(random, int64_t(whole.find('\0'))))
                            : 512 + size_t(below(random, std::ssize(whole) - 512));
    bytes[at] = char(bytes[at] ^ (1 << below(random, 8)));
    scratch.write("x.h5", bytes);
    INFO("byte " << at);
    CHECK_FALSE(refusal(path).empty());
  }
  for (int k = 0; k < 60; ++k) {
    const auto length = size_t(below(random, std::ssize(whole)));
    scratch.write("x.h5", whole.substr(0, length));
    INFO("cut at " << length);
    CHECK_THAT(refusal(path),
               Contains("cut off") || Contains("is no shard") || Contains("damaged"));
  }

  // A chunk in the middle: its rows are refused, the others and the other chain are read.
  std::string bytes = whole;
  const size_t table = whole.find("\nchunks ");
  long long chunks_at = 0;
  REQUIRE(std::sscanf(whole.c_str() + table, "\nchunks %lld", &chunks_at) == 1);
  uint64_t offset = 0;
  std::memcpy(&offset, whole.data() + chunks_at + 2 * 24, sizeof offset);  // rows 32 to 47
  bytes[size_t(offset) + 5] ^= 1;
  scratch.write("x.h5", bytes);
  const Dataset data({path});
  const int64_t n = data.chains()[0].n_res();
  std::vector<int8_t> msa(static_cast<size_t>(n));
  std::vector<uint8_t> deletions(msa.size());
  for (const int32_t row : {0, 31, 48, 59})
    data.read_msa(0, {&row, 1}, msa.data(), deletions.data());
  const int32_t bad = 40;
  CHECK_THROWS_WITH(data.read_msa(0, {&bad, 1}, msa.data(), deletions.data()),
                    Catch::StartsWith(path + ": chain 4cup_A: chunk 2 of its msa is damaged"));
  CHECK(data.profile(1).size() == size_t(n * kMsaLetters));
  CHECK_THAT(refusal(path), Contains("chain 4cup_A: chunk 2 of its msa is damaged"));
}

TEST_CASE("other files, other versions and incomplete builds are told apart") {
  const Scratch scratch;
  const Sample sample(5, 0);
  const std::string path = scratch / "x.h5";
  sample.write(path);
  std::string bytes = bytes_of(path);
  bytes.replace(bytes.find("format 1"), 8, "format 2");
  scratch.write("x.h5", bytes);
  CHECK_THAT(refusal(path), Contains("is a shard of format 2, this program reads format 1"));
  scratch.write("x.h5", "\x89HDF\r\n\x1a\n and more");
  CHECK_THAT(refusal(path), Contains("is no shard of a fastfold dataset, but another HDF5 file"));
  scratch.write("x.h5", "");
  CHECK_THAT(refusal(path), Contains("is no shard"));
  CHECK_THAT(refusal(scratch / "nowhere.h5"), Contains("cannot open it"));
  std::filesystem::remove(path);
  CHECK_THROWS_WITH(Dataset({scratch.path()}), Contains("holds no shard"));
  sample.write(scratch / "a.h5", {1, 3, kFingerprint, 0});
  sample.write(scratch / "c.h5", {3, 3, kFingerprint, 0});
  CHECK_THROWS_WITH(Dataset({scratch.path()}), Contains("shard 2 of 3 is missing"));
  CHECK(Dataset({scratch / "c.h5", scratch / "a.h5"}).chains().size() == 4);
  sample.write(scratch / "b.h5", {1, 3, kFingerprint, 0});
  CHECK_THROWS_WITH(Dataset({scratch.path()}), Contains("of different builds"));
  std::filesystem::create_directory(scratch / "x.h5");
  CHECK_THROWS_AS(Dataset({scratch / "x.h5"}), Error);
}

TEST_CASE("a full disk leaves no shard") {
  const Scratch scratch;
  const Sample sample(100);
  const FileSizeLimit limit(20'000);
  try {
    sample.write(scratch / "x.h5");
    FAIL("a file larger than the disk");
  } catch (const Error& e) {
    CHECK(e.code() == Exit::kDevice);
    CHECK_THAT(e.what(), Contains("x.h5: writing the shard failed"));
  }
  CHECK(scratch.names().empty());
}

TEST_CASE("forged shards, checksums and all, do no harm") {
  const Scratch scratch;
  const Sample sample(40, 1);
  const std::string path = scratch / "x.h5";
  sample.write(path);
  const std::string whole = bytes_of(path);
  long long index_at = 0, index_bytes = 0, chunks_at = 0, chunks = 0;
  REQUIRE(std::sscanf(whole.c_str() + whole.find("\nindex "), "\nindex %lld %lld", &index_at,
                      &index_bytes) == 2);
  REQUIRE(std::sscanf(whole.c_str() + whole.find("\nchunks "), "\nchunks %lld %lld", &chunks_at,
                      &chunks) == 2);
  std::mt19937 random(11);
  int refused = 0;
  const int rounds = 400;
  for (int k = 0; k < rounds; ++k) {
    std::string bytes = whole;
    if (k % 2) {  // digits, quotes and letters of the index
      for (int m = 0; m < 3; ++m) {
        const auto at = size_t(index_at + below(random, index_bytes));
        bytes[at] = "0123456789-.\"{}[]e:,xA\0\xff"[below(random, 24)];
      }
    } else {  // offsets and sizes of chunks, with the list's checksum
      const auto row = size_t(chunks_at + 24 * below(random, chunks));
      uint64_t value = 0;
      std::memcpy(&value, bytes.data() + row + 8, 8);
      const uint64_t values[] = {0, 1, value + 1, uint64_t(-1), uint64_t(1) << 62, value / 2};
      std::memcpy(bytes.data() + row + 8 * size_t(below(random, 2)),
                  &values[size_t(below(random, 6))], 8);
      const std::string line = bytes.substr(size_t(index_at), size_t(index_bytes));
      for (size_t at = line.find("\"chunks\":["); at != std::string::npos;
           at = line.find("\"chunks\":[", at + 1)) {
        long long first = 0, count = 0;
        unsigned crc = 0;
        REQUIRE(std::sscanf(line.c_str() + at, "\"chunks\":[%lld,%lld,%u]", &first, &count, &crc) ==
                3);
        const std::string now = std::to_string(crc_of(
            std::string_view(bytes).substr(size_t(chunks_at + 24 * first), size_t(24 * count))));
        const std::string old = std::to_string(crc);
        if (now.size() == old.size())
          bytes.replace(bytes.find(old, size_t(index_at)), old.size(), now);
      }
    }
    seal(bytes);
    scratch.write("x.h5", bytes);
    refused += !refusal(path).empty();
  }
  CHECK(refused > rounds / 3);
}
