// Reads shards: header, index, and chunks by their offsets.
#include "io/dataset.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>

#include "io/dataset_format.h"
#include "io/file.h"

namespace fs = std::filesystem;

namespace ff {
namespace {

using shard::Part;

constexpr const char* kAgain = "; delete it and run 'fastfold prepare build' again";

uint32_t crc_of(std::string_view bytes) {
  return uint32_t(crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

/// A file open for reading at offsets.
class File {
 public:
  explicit File(const std::string& path) : path_(path) {
    fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a FIFO must not be waited for
    check_input(fd_ >= 0, path, ": cannot open it: ", std::strerror(errno), "; check the path");
    struct stat found {};
    if (fstat(fd_, &found) == 0 && S_ISREG(found.st_mode)) bytes_ = found.st_size;
  }
  ~File() { close(fd_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& path() const { return path_; }
  int64_t bytes() const { return bytes_; }
  /// False when not all of it is there.
  bool read(int64_t offset, void* to, int64_t bytes) const {
    if (offset < 0 || bytes < 0 || offset > bytes_ || bytes > bytes_ - offset) return false;
    for (auto* at = static_cast<char*>(to); bytes > 0;) {
      const ssize_t got = pread(fd_, at, size_t(bytes), offset);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return false;
      at += got, offset += got, bytes -= got;
    }
    return true;
  }

 private:
  std::string path_;
  int fd_ = -1;
  int64_t bytes_ = 0;
};

/// A range of the file with its checksum.
struct Range {
  int64_t offset = 0, bytes = 0;
  uint32_t crc = 0;
};

struct Header : ShardHeader {
  Range index, notes;
  int64_t chunks_at = 0, chunks = 0;
  uint32_t rest = 0;
};

/// The words of a line must be all there.
class Words {
 public:
  explicit Words(std::string_view line) : text_(line) {}
  bool word(std::string_view expected) { return next() == expected; }
  bool number(int64_t& value) {
    const std::string_view w = next();
    const auto [end, error] = std::from_chars(w.data(), w.data() + w.size(), value);
    return error == std::errc() && end == w.data() + w.size() && value >= 0;
  }
  bool hex(uint32_t& value) {
    const std::string_view w = next();
    const auto [end, error] = std::from_chars(w.data(), w.data() + w.size(), value, 16);
    return error == std::errc() && end == w.data() + w.size() && w.size() == 8;
  }
  std::string_view next() {
    const size_t end = std::min(text_.find(' '), text_.size());
    const std::string_view w = text_.substr(0, end);
    text_.remove_prefix(std::min(end + 1, text_.size()));
    return w;
  }

 private:
  std::string_view text_;
};

Header header_of(const File& file) {
  const std::string& path = file.path();
  std::string text(shard::kUserBlock, '\0');
  const int64_t there = std::min(shard::kUserBlock, file.bytes());
  const bool is_long = file.read(0, text.data(), there) && there == shard::kUserBlock;
  const std::string kind = std::string(shard::kKind) + "\n";
  check_input(text.starts_with(kind), path, ": is no shard of a fastfold dataset",
              text.starts_with("\x89HDF") ? ", but another HDF5 file" : "",
              "; 'fastfold prepare build' makes them");
  std::string_view rest = text;
  const auto line = [&] {
    std::string_view l;
    next_line(rest, l);
    return Words(l);
  };
  line();
  Words format = line();
  int64_t version = 0;
  check_input(is_long && format.word("format") && format.number(version), path,
              ": its header is damaged", kAgain);
  check_input(version == shard::kFormatVersion, path, ": is a shard of format ", version,
              ", this program reads format ", shard::kFormatVersion,
              "; build it again, or use the fastfold that made it");
  Header h;
  Words part = line(), fingerprint = line(), bytes = line(), index = line(), notes = line(),
        chunks = line(), crc = line();
  const auto in_file = [&](const Range& r) {
    return r.offset <= h.bytes && r.bytes <= h.bytes - r.offset;
  };
  const auto range = [](Words& w, const char* name, Range& r) {
    return w.word(name) && w.number(r.offset) && w.number(r.bytes) && w.hex(r.crc);
  };
  bool ok = part.word("part") && part.number(h.part) && part.word("of") && part.number(h.parts) &&
            h.part >= 1 && h.part <= h.parts && fingerprint.word("fingerprint") &&
            bytes.word("bytes") && bytes.number(h.bytes) && range(index, "index", h.index) &&
            range(notes, "notes", h.notes) && chunks.word("chunks") && chunks.number(h.chunks_at) &&
            chunks.number(h.chunks) && crc.word("rest") && crc.hex(h.rest);
  const size_t length = size_t(rest.data() - text.data());
  Words own = line();
  uint32_t own_crc = 0;
  ok = ok && own.word("header") && own.hex(own_crc) &&
       own_crc == crc_of(std::string_view(text).substr(0, length)) && in_file(h.index) &&
       in_file(h.notes) && h.chunks_at <= h.bytes &&
       h.chunks <= (h.bytes - h.chunks_at) / shard::kChunkRow;
  check_input(ok, path, ": its header is damaged", kAgain);
  h.fingerprint = fingerprint.next();
  check_input(h.bytes == file.bytes(), path, ": has ", file.bytes(), " bytes, its header says ",
              h.bytes, "; it is ", file.bytes() < h.bytes ? "cut off" : "damaged", kAgain);
  return h;
}

/// A range whose checksum fits.
std::string checked_text(const File& file, const Range& range, const char* what) {
  std::string text(size_t(range.bytes), '\0');
  check_input(file.read(range.offset, text.data(), range.bytes) && crc_of(text) == range.crc,
              file.path(), ": its ", what, " is damaged: the checksum does not fit", kAgain);
  return text;
}

/// Calls `each(json)` for every line; what it or the parser throws becomes an error of ours.
template <class Each>
void for_lines(const File& file, const std::string& text, const char* what, Each each) {
  std::string_view rest = text;
  int64_t number = 0;
  for (std::string_view line; next_line(rest, line);) {
    ++number;
    try {
      each(nlohmann::json::parse(line));
    } catch (const nlohmann::json::exception& e) {
      fail(Exit::kInput, file.path(), ": line ", number, " of its ", what, ": ", e.what(), kAgain);
    }
  }
}

bool is_sequence(const std::string& s) {
  return std::all_of(s.begin(), s.end(), [](char c) { return c >= 'A' && c <= 'Z'; });
}

bool is_id(const std::string& id) {
  return !id.empty() && id != "." && id != ".." &&
         std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c < 127 && c != '/'; });
}

/// Files of the paths: folders give their *.h5 in the order of their names, all of a build.
std::vector<std::string> shard_files(const std::vector<std::string>& paths) {
  std::vector<std::string> files;
  for (const std::string& path : paths) {
    std::error_code error;
    if (!fs::is_directory(path, error)) {
      files.push_back(path);
      continue;
    }
    std::vector<std::string> here;
    for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
      const std::string name = it->path().filename().string();
      if (it->path().extension() == ".h5" && name[0] != '.') here.push_back(it->path().string());
    }
    check_input(!error, path, ": cannot be listed: ", error.message());
    check_input(!here.empty(), path,
                ": holds no shard, expected the files *.h5 that 'fastfold prepare build' writes");
    std::sort(here.begin(), here.end());
    std::vector<bool> there;
    for (const std::string& file : here) {
      const ShardHeader h = read_shard_header(file);
      check_input(h.parts <= 10'000'000, file, ": says that it is one of ", h.parts, " shards");
      if (there.empty()) there.assign(size_t(h.parts), false);
      check_input(std::ssize(there) == h.parts && !there[size_t(h.part - 1)], file, ": is shard ",
                  h.part, " of ", h.parts, ", which does not fit the other shards in ", path,
                  "; they are of different builds: keep each in a folder of its own");
      there[size_t(h.part - 1)] = true;
    }
    const auto missing = std::find(there.begin(), there.end(), false);
    check_input(missing == there.end(), path, ": shard ", missing - there.begin() + 1, " of ",
                there.size(),
                " is missing; run 'fastfold prepare build' again to finish it, or name the shards "
                "one by one");
    files.insert(files.end(), here.begin(), here.end());
  }
  return files;
}

/// One chain's line of the index.
struct Entry {
  ChainInfo info;
  int64_t msa_chunk_rows = 1, first_chunk = 0, n_chunks = 0;
  uint32_t table_crc = 0;
};

/// -2, which no number of the index may be, for what is no integer.
int64_t whole_number(const nlohmann::json& value) {
  return value.is_number_integer() ? value.get<int64_t>() : -2;
}

Entry entry_of(const File& file, const Header& header, const nlohmann::json& line) {
  Entry e;
  ChainInfo& c = e.info;
  line.at("id").get_to(c.id);
  line.at("sequence").get_to(c.sequence);
  line.at("date").get_to(c.date);
  line.at("method").get_to(c.method);
  line.at("source").get_to(c.source);
  line.at("resolution").get_to(c.resolution);
  c.n_seen = whole_number(line.at("n_seen"));
  c.n_msa = whole_number(line.at("n_msa"));
  c.n_templates = whole_number(line.at("n_templates"));
  c.cluster = whole_number(line.at("cluster"));
  c.cluster_size = whole_number(line.at("cluster_size"));
  line.at("distillation").get_to(c.distillation);
  e.msa_chunk_rows = whole_number(line.at("msa_chunk_rows"));
  e.first_chunk = whole_number(line.at("chunks").at(0));
  e.n_chunks = whole_number(line.at("chunks").at(1));
  e.table_crc = uint32_t(whole_number(line.at("chunks").at(2)));
  bool ok = is_id(c.id) && c.n_res() >= 1 && c.n_res() <= shard::kMostResidues &&
            is_sequence(c.sequence) && c.n_seen >= 0 && c.n_seen <= c.n_res() && c.n_msa >= 1 &&
            c.n_msa <= shard::kMostRows && c.n_templates >= 0 &&
            c.n_templates <= shard::kMostTemplates && c.cluster_size >= 1 && c.cluster >= -1 &&
            std::isfinite(c.resolution) && c.resolution >= 0 && e.msa_chunk_rows >= 1 &&
            e.msa_chunk_rows <= std::min(c.n_msa, shard::kMostChunkRows) && e.first_chunk >= 0 &&
            e.first_chunk <= header.chunks && e.n_chunks <= header.chunks - e.first_chunk;
  ok = ok && shard::chunks_of(shard::parts_of(c.n_res(), c.n_msa, c.n_templates,
                                              e.msa_chunk_rows)) == e.n_chunks;
  check_input(ok, file.path(), ": chain ", show_text(c.id),
              ": its line of the index has values that do not fit together", kAgain);
  return e;
}

}  // namespace

/// The chunks of one chain in an open shard.
class Dataset::Chunks {
 public:
  Chunks(const std::string& path, const ChainInfo& info, const Place& place)
      : file_(path),
        info_(info),
        parts_(shard::parts_of(info.n_res(), info.n_msa, info.n_templates, place.msa_chunk_rows)) {
    // Its size was seen to fit the file when the index was read.
    table_.resize(size_t(shard::chunks_of(parts_)));
    std::string_view bytes(reinterpret_cast<const char*>(table_.data()),
                           table_.size() * sizeof(table_[0]));
    check_chunk(file_.read(place.table, table_.data(), std::ssize(bytes)) &&
                    crc_of(bytes) == place.table_crc,
                "the list of its chunks");
  }

  const Part& part(shard::PartName name) const { return parts_[name]; }

  /// Unpacks a chunk to `to`, its chunk_bytes().
  void read(shard::PartName name, int64_t chunk, void* to) {
    const Part& p = parts_[name];
    const auto& [offset, stored, crc] = table_[size_t(p.first_chunk + chunk)];
    const int64_t bytes = p.chunk_bytes();
    const auto damaged = [&] { return cat("chunk ", chunk, " of its ", p.name); };
    check_chunk(stored <= uint64_t(file_.bytes()), damaged);
    stored_.resize(size_t(stored));
    check_chunk(offset <= uint64_t(file_.bytes()) &&
                    file_.read(int64_t(offset), stored_.data(), int64_t(stored)) &&
                    crc_of(stored_) == crc,
                damaged);
    shuffled_.resize(p.element > 1 ? size_t(bytes) : 0);
    auto* out = static_cast<char*>(p.element > 1 ? shuffled_.data() : to);
    uLongf got = uLongf(bytes);
    check_chunk(
        uncompress(reinterpret_cast<Bytef*>(out), &got,
                   reinterpret_cast<const Bytef*>(stored_.data()), uLong(stored_.size())) == Z_OK &&
            got == uLongf(bytes),
        damaged);
    if (p.element == 1) return;
    const int64_t n = bytes / p.element;
    auto* floats = static_cast<char*>(to);
    for (int64_t i = 0; i < n; ++i)
      for (int b = 0; b < p.element; ++b) floats[i * p.element + b] = out[b * n + i];
  }

  /// Before memory is taken for `chunks` unpacked chunks: deflate packs at most 1032 to 1.
  void check_size(shard::PartName name, int64_t chunk) const {
    const Part& p = parts_[name];
    constexpr int64_t kMostDeflated = 1032, kSlack = 64;
    const auto stored = table_[size_t(p.first_chunk + chunk)][1];
    check_chunk(stored <= uint64_t(file_.bytes()) &&
                    p.chunk_bytes() <= (int64_t(stored) + kSlack) * kMostDeflated,
                [&] { return cat("chunk ", chunk, " of its ", p.name); });
  }

  template <class T>
  std::vector<T> whole(shard::PartName name) {
    check_size(name, 0);
    std::vector<T> out(size_t(parts_[name].chunk_bytes()) / sizeof(T));
    read(name, 0, out.data());
    return out;
  }

  template <class What>
  void check_chunk(bool ok, const What& what) const {
    if (ok) return;
    std::string text;
    if constexpr (std::is_invocable_v<What>)
      text = what();
    else
      text = what;
    fail(Exit::kInput, file_.path(), ": chain ", info_.id, ": ", text, " is damaged", kAgain);
  }

 private:
  File file_;
  const ChainInfo& info_;
  std::vector<Part> parts_;
  std::vector<std::array<uint64_t, 3>> table_;
  std::string stored_;
  std::vector<char> shuffled_;
};

Dataset::Dataset(const std::vector<std::string>& paths) : shards_(shard_files(paths)) {
  for (size_t s = 0; s < shards_.size(); ++s) {
    const File file(shards_[s]);
    const Header header = header_of(file);
    for_lines(
        file, checked_text(file, header.index, "index"), "index", [&](const nlohmann::json& line) {
          Entry e = entry_of(file, header, line);
          chains_.push_back(std::move(e.info));
          places_.push_back({int32_t(s), int32_t(e.msa_chunk_rows),
                             header.chunks_at + e.first_chunk * shard::kChunkRow, e.table_crc});
        });
  }
}

Dataset::Chunks Dataset::open(int64_t chain) const {
  check(chain >= 0 && chain < std::ssize(chains_), "dataset: no chain ", chain, " of ",
        chains_.size());
  return Chunks(shard(chain), chains_[size_t(chain)], places_[size_t(chain)]);
}

void Dataset::read_msa(int64_t chain, std::span<const int32_t> rows, int8_t* msa,
                       uint8_t* deletions) const {
  Chunks chunks = open(chain);
  const Part& p = chunks.part(shard::kMsa);
  const int64_t n = p.row_bytes();
  std::vector<int32_t> order(rows.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](int32_t a, int32_t b) { return rows[size_t(a)] < rows[size_t(b)]; });
  std::vector<char> letters, counts;
  int64_t current = -1;
  for (const int32_t at : order) {
    const int64_t row = rows[size_t(at)];
    check(row >= 0 && row < p.shape[0], "dataset: no row ", row, " of ", p.shape[0]);
    if (const int64_t chunk = row / p.chunk_rows; chunk != current) {
      chunks.check_size(shard::kMsa, chunk);
      letters.resize(size_t(p.chunk_bytes()));
      counts.resize(letters.size());
      chunks.read(shard::kMsa, chunk, letters.data());
      chunks.read(shard::kDeletions, chunk, counts.data());
      for (const char c : letters)
        chunks.check_chunk(c >= 0 && c < kMsaLetters, "a letter of its msa");
      current = chunk;
    }
    const size_t from = size_t((row - current * p.chunk_rows) * n);
    std::memcpy(msa + at * n, letters.data() + from, size_t(n));
    std::memcpy(deletions + at * n, counts.data() + from, size_t(n));
  }
}

namespace {

/// Throws unless every value is finite, and small enough to compute with.
template <class Chunks>
void check_finite(const Chunks& chunks, std::span<const float> values, const char* what) {
  constexpr float kMost = 1e6f;
  const bool ok =
      std::all_of(values.begin(), values.end(), [](float v) { return std::abs(v) <= kMost; });
  chunks.check_chunk(ok, what);
}

Tensor mask_of(const std::vector<uint8_t>& bytes, const Dims& shape) {
  Tensor mask = Tensor::empty(shape);
  std::transform(bytes.begin(), bytes.end(), mask.data<float>(),
                 [](uint8_t b) { return b ? 1.0f : 0.0f; });
  return mask;
}

}  // namespace

std::vector<float> Dataset::profile(int64_t chain) const {
  Chunks chunks = open(chain);
  std::vector<float> values = chunks.whole<float>(shard::kProfile);
  check_finite(chunks, values, "its profile");
  return values;
}

ChainStructure Dataset::structure(int64_t chain) const {
  Chunks chunks = open(chain);
  const ChainInfo& info = chains_[size_t(chain)];
  const std::vector<float> positions = chunks.whole<float>(shard::kPositions);
  check_finite(chunks, positions, "a position");
  return {.name = info.id,
          .sequence = info.sequence,
          .positions = Tensor::of<float>({info.n_res(), kAtom37, 3}, positions.data()),
          .mask = mask_of(chunks.whole<uint8_t>(shard::kMask), {info.n_res(), kAtom37})};
}

TemplateFeatures Dataset::templates(int64_t chain, std::span<const int32_t> which) const {
  TemplateFeatures out;
  if (which.empty()) return out;
  Chunks chunks = open(chain);
  const ChainInfo& info = chains_[size_t(chain)];
  const int64_t n = info.n_res();
  std::vector<int8_t> letters(static_cast<size_t>(n));
  std::vector<uint8_t> mask(size_t(n * kAtom37));
  for (const int32_t t : which) {
    check(t >= 0 && t < info.n_templates, "dataset: no template ", t, " of ", info.n_templates);
    chunks.check_size(shard::kTemplatePositions, t);
  }
  const int64_t count = std::ssize(which);
  out.aatype = Tensor::zeros({count, n, kMsaLetters});
  out.all_atom_positions = Tensor::empty({count, n, kAtom37, 3});
  out.all_atom_masks = Tensor::empty({count, n, kAtom37});
  out.sum_probs = Tensor::empty({count, 1});
  for (int64_t k = 0; k < count; ++k) {
    const int64_t t = which[size_t(k)];
    chunks.read(shard::kTemplateAatype, t, letters.data());
    float* one_hot = out.aatype.data<float>() + k * n * kMsaLetters;
    for (int64_t i = 0; i < n; ++i) {
      const int8_t c = letters[size_t(i)];
      chunks.check_chunk(c >= 0 && c < kMsaLetters, "a letter of its templates");
      one_hot[i * kMsaLetters + hhblits_id(kRestypeLetters[size_t(c)])] = 1;
    }
    float* positions = out.all_atom_positions.data<float>() + k * n * kAtom37 * 3;
    chunks.read(shard::kTemplatePositions, t, positions);
    check_finite(chunks, {positions, size_t(n * kAtom37 * 3)}, "a template's position");
    chunks.read(shard::kTemplateMask, t, mask.data());
    out.all_atom_masks.select(0, k).copy_from(mask_of(mask, {n, kAtom37}));
    float* sum_probs = out.sum_probs.data<float>() + k;
    chunks.read(shard::kTemplateSumProbs, t, sum_probs);
    check_finite(chunks, {sum_probs, 1}, "a template's sum_probs");
  }
  return out;
}

ShardHeader read_shard_header(const std::string& path) { return header_of(File(path)); }

std::vector<BuildNote> read_shard_notes(const std::string& path) {
  const File file(path);
  std::vector<BuildNote> notes;
  for_lines(file, checked_text(file, header_of(file).notes, "notes"), "notes",
            [&](const nlohmann::json& line) {
              BuildNote& note = notes.emplace_back();
              line.at("rejected").get_to(note.rejected);
              line.at("source").get_to(note.source);
              line.at("chain").get_to(note.chain);
              line.at("reason").get_to(note.reason);
            });
  return notes;
}

std::vector<ShardDamage> verify_shard(const std::string& path, int64_t* chains) {
  std::vector<ShardDamage> found;
  const Dataset data({path});
  for (int64_t c = 0; c < std::ssize(data.chains()); ++c) {
    const ChainInfo& info = data.chains()[size_t(c)];
    try {
      const int64_t n = info.n_res();
      std::vector<int64_t> counts(size_t(n) * kMsaLetters);
      constexpr int64_t kRowsAtOnce = 1024;
      std::vector<int8_t> msa;
      std::vector<uint8_t> deletions;
      std::vector<int32_t> rows;
      const auto check_chain = [&](bool ok, const char* what) {
        check_input(ok, path, ": chain ", info.id, ": ", what, kAgain);
      };
      for (int64_t s = 0; s < info.n_msa; s += kRowsAtOnce) {
        rows.resize(size_t(std::min(kRowsAtOnce, info.n_msa - s)));
        std::iota(rows.begin(), rows.end(), int32_t(s));
        msa.resize(rows.size() * size_t(n));
        deletions.resize(msa.size());
        data.read_msa(c, rows, msa.data(), deletions.data());
        for (size_t r = 0; r < rows.size(); ++r)
          for (int64_t i = 0; i < n; ++i)
            ++counts[size_t(i * kMsaLetters + msa[r * size_t(n) + size_t(i)])];
        if (s == 0)
          for (int64_t i = 0; i < n; ++i) {
            const int query = restype_index(info.sequence[size_t(i)]);
            check_chain(msa[size_t(i)] == query || msa[size_t(i)] == kUnknownRestype ||
                            (query == kUnknownRestype && msa[size_t(i)] != kGapRestype),
                        "its alignment's first row is not its sequence");
          }
      }
      const std::vector<float> profile = data.profile(c);
      for (size_t k = 0; k < counts.size(); ++k)
        check_chain(profile[k] == float(counts[k]) / float(info.n_msa),
                    "its profile is not that of its alignment");
      const ChainStructure structure = data.structure(c);
      int64_t seen = 0;
      for (int64_t i = 0; i < n; ++i)
        seen += structure.mask.data<float>()[i * kAtom37 + kAtomCa] != 0;
      check_chain(seen == info.n_seen, "its number of residues seen is not that of its structure");
      for (int32_t t = 0; t < info.n_templates; ++t) data.templates(c, {&t, 1});
    } catch (const Error& e) {
      found.push_back({info.id, e.what()});
    }
  }
  if (chains) *chains = std::ssize(data.chains());

  const File file(path);
  const Header header = header_of(file);
  std::vector<Bytef> buffer(1 << 20);
  uLong crc = 0;
  bool ok = true;
  for (int64_t at = shard::kUserBlock; ok && at < header.bytes;) {
    const int64_t bytes = std::min(std::ssize(buffer), header.bytes - at);
    ok = file.read(at, buffer.data(), bytes);
    crc = crc32_z(crc, buffer.data(), size_t(bytes));
    at += bytes;
  }
  if ((!ok || crc != header.rest) && found.empty())
    found.push_back({"", cat(path,
                             ": the file's checksum does not fit, though no chain's data are "
                             "damaged",
                             kAgain)});
  try {
    read_shard_notes(path);
  } catch (const Error& e) {
    found.push_back({"", e.what()});
  }
  return found;
}

}  // namespace ff
