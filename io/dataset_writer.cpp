// Packs chains and writes them as HDF5; the chunks' places are asked of HDF5 and put in the index.
#include "io/dataset_writer.h"

#include <fcntl.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "io/dataset_format.h"
#include "io/file.h"
#include "io/hdf5.h"

namespace ff {
namespace {

using shard::Part;
using Json = nlohmann::ordered_json;

/// Small, for a sample's rows are scattered over a deep alignment; much smaller packs badly.
constexpr int64_t kMsaChunkRows = 16;
constexpr int kDeflate = 6;

uint32_t crc_of(std::string_view bytes) {
  return uint32_t(crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

/// HDF5's shuffle filter where elements have several bytes, then its deflate filter.
std::string pack(const char* data, int64_t bytes, int element) {
  std::string shuffled;
  if (element > 1) {
    const int64_t n = bytes / element;
    shuffled.resize(size_t(bytes));
    for (int64_t i = 0; i < n; ++i)
      for (int b = 0; b < element; ++b) shuffled[size_t(b * n + i)] = data[i * element + b];
    data = shuffled.data();
  }
  uLongf size = compressBound(uLong(bytes));
  std::string out(size, '\0');
  check(compress2(reinterpret_cast<Bytef*>(out.data()), &size, reinterpret_cast<const Bytef*>(data),
                  uLong(bytes), kDeflate) == Z_OK,
        "zlib cannot pack ", bytes, " bytes");
  out.resize(size);
  return out;
}

void pack_part(const Part& part, const void* data, std::vector<std::string>& chunks) {
  const int64_t whole = part.chunk_bytes(), rows = part.shape[0];
  const auto* bytes = static_cast<const char*>(data);
  for (int64_t c = 0; c < part.chunks(); ++c) {
    const int64_t here = std::min(part.chunk_rows, rows - c * part.chunk_rows) * part.row_bytes();
    const char* from = bytes + c * whole;
    std::string padded;
    if (here < whole) {
      padded.assign(from, size_t(here));
      padded.resize(size_t(whole));
      from = padded.data();
    }
    chunks.push_back(pack(from, whole, part.element));
  }
}

/// A mask or other small numbers as bytes.
std::vector<uint8_t> bytes_of(const Tensor& t) {
  const Tensor whole = t.contiguous();
  std::vector<uint8_t> out(size_t(whole.numel()));
  for (size_t i = 0; i < out.size(); ++i) out[i] = whole.data<float>()[i] != 0;
  return out;
}

/// Letters of one-hot rows of template_aatype, in kRestypeLetters.
std::vector<int8_t> letters_of(const Tensor& one_hot) {
  const Tensor whole = one_hot.contiguous();
  std::vector<int8_t> out(size_t(whole.numel() / kMsaLetters));
  for (size_t i = 0; i < out.size(); ++i) {
    const float* row = whole.data<float>() + i * kMsaLetters;
    out[i] = int8_t(hhblits_to_restype(int(std::max_element(row, row + kMsaLetters) - row)));
  }
  return out;
}

void check_written(bool ok, const std::string& path) {
  if (!ok)
    fail(Exit::kDevice, path, ": writing the shard failed", hdf5_reason(),
         "; free some space or write elsewhere");
}

Hid file_access() {
  Hid access(H5Pcreate(H5P_FILE_ACCESS));
  H5Pset_file_locking(access, false, true);  // as for checkpoints
  // Chunk indices without empty space, and checksums on HDF5's own structures.
  H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110);
  return access;
}

Hid untimed(hid_t cls) {
  Hid list(H5Pcreate(cls));
  H5Pset_obj_track_times(list, false);  // the same bytes whenever written
  return list;
}

std::string part_of_file(int fd, int64_t offset, int64_t bytes) {
  std::string out(size_t(bytes), '\0');
  return pread(fd, out.data(), out.size(), offset) == ssize_t(bytes) ? out : std::string();
}

}  // namespace

PackedChain pack_chain(ChainInfo info, const RawFeatures& raw, const ChainStructure& structure) {
  const auto n = int64_t(structure.sequence.size());
  check(n == raw.n_res() && n > 0 && n <= shard::kMostResidues, "pack_chain: ", info.id, ": ", n,
        " residues, their features ", raw.n_res());
  info.sequence = structure.sequence;
  info.n_msa = raw.n_seq;
  info.n_templates = std::min(raw.templates.size(), shard::kMostTemplates);
  info.n_seen = 0;
  for (int64_t i = 0; i < n; ++i)
    info.n_seen += structure.mask.data<float>()[i * kAtom37 + kAtomCa] != 0;
  PackedChain out;
  out.msa_chunk_rows = std::min(kMsaChunkRows, info.n_msa);
  const auto parts = shard::parts_of(n, info.n_msa, info.n_templates, out.msa_chunk_rows);
  std::vector<uint8_t> deletions(raw.deletion_matrix.size());
  std::transform(raw.deletion_matrix.begin(), raw.deletion_matrix.end(), deletions.begin(),
                 [](int32_t d) { return uint8_t(std::min(d, 255)); });
  pack_part(parts[shard::kMsa], raw.msa.data(), out.chunks);
  pack_part(parts[shard::kDeletions], deletions.data(), out.chunks);
  pack_part(parts[shard::kProfile], raw.profile.data(), out.chunks);
  pack_part(parts[shard::kPositions], structure.positions.contiguous().raw(), out.chunks);
  pack_part(parts[shard::kMask], bytes_of(structure.mask).data(), out.chunks);
  if (info.n_templates) {
    const TemplateFeatures& t = raw.templates;
    pack_part(parts[shard::kTemplateAatype], letters_of(t.aatype).data(), out.chunks);
    pack_part(parts[shard::kTemplateSumProbs], t.sum_probs.contiguous().raw(), out.chunks);
    pack_part(parts[shard::kTemplatePositions], t.all_atom_positions.contiguous().raw(),
              out.chunks);
    pack_part(parts[shard::kTemplateMask], bytes_of(t.all_atom_masks).data(), out.chunks);
  }
  out.info = std::move(info);
  return out;
}

struct ShardWriter::State {
  State(const std::string& path, const ShardHeader& shard_header)
      : header(shard_header), target(path) {
    const Hid create(untimed(H5P_FILE_CREATE));
    H5Pset_userblock(create, shard::kUserBlock);
    file = Hid(H5Fcreate(target.temporary_path().c_str(), H5F_ACC_TRUNC, create, file_access()));
    check_written(file.ok(), path);
    fd = open(target.temporary_path().c_str(), O_RDONLY | O_CLOEXEC);
    check_written(fd >= 0, path);
    const Hid scalar(H5Screate(H5S_SCALAR)), text(H5Tcopy(H5T_C_S1));
    H5Tset_size(text, std::strlen(shard::kKind));
    const Hid kind(H5Acreate2(file, "kind", text, scalar, H5P_DEFAULT, H5P_DEFAULT)),
        version(
            H5Acreate2(file, "format_version", H5T_STD_I32LE, scalar, H5P_DEFAULT, H5P_DEFAULT));
    check_written(kind.ok() && H5Awrite(kind, text, shard::kKind) >= 0 && version.ok() &&
                      H5Awrite(version, H5T_NATIVE_INT, &shard::kFormatVersion) >= 0,
                  path);
    group("/chains");
  }
  ~State() {
    if (fd >= 0) close(fd);
  }

  Hid group(const std::string& name) {
    Hid made(H5Gcreate2(file, name.c_str(), H5P_DEFAULT, untimed(H5P_GROUP_CREATE), H5P_DEFAULT));
    check_written(made.ok(), target.path());
    return made;
  }

  /// Writes a part's chunks and appends their places.
  void part(const Hid& chain, const Part& p, const std::string* chunks) {
    const std::vector<hsize_t> shape(p.shape.begin(), p.shape.end());
    std::vector<hsize_t> chunk = shape;
    chunk[0] = hsize_t(p.chunk_rows);
    const Hid list(untimed(H5P_DATASET_CREATE));
    H5Pset_chunk(list, int(chunk.size()), chunk.data());
    H5Pset_fill_time(list, H5D_FILL_TIME_NEVER);
    if (p.element > 1) H5Pset_shuffle(list);
    H5Pset_deflate(list, kDeflate);
    const hid_t type = p.element > 1 ? H5T_IEEE_F32LE : p.is_signed ? H5T_STD_I8LE : H5T_STD_U8LE;
    const Hid space(H5Screate_simple(int(shape.size()), shape.data(), nullptr));
    const Hid set(H5Dcreate2(chain, p.name, type, space, H5P_DEFAULT, list, H5P_DEFAULT));
    check_written(set.ok(), target.path());
    std::vector<hsize_t> at(shape.size());
    for (int64_t c = 0; c < p.chunks(); ++c, ++chunks) {
      at[0] = hsize_t(c * p.chunk_rows);
      check_written(
          H5Dwrite_chunk(set, H5P_DEFAULT, 0, at.data(), chunks->size(), chunks->data()) >= 0,
          target.path());
      haddr_t address = HADDR_UNDEF;
      hsize_t bytes = 0;
      unsigned skipped_filters = 0;
      check_written(
          H5Dget_chunk_info_by_coord(set, at.data(), &skipped_filters, &address, &bytes) >= 0 &&
              address != HADDR_UNDEF && bytes == chunks->size() && skipped_filters == 0,
          target.path());
      if (base < 0) base = located(int64_t(address), *chunks) - int64_t(address);
      for (const uint64_t value :
           {uint64_t(base) + address, uint64_t(bytes), uint64_t(crc_of(*chunks))})
        table.push_back(value);
    }
  }

  /// The place in the file of bytes that HDF5 says are at `address`: its versions differ in whether
  /// that counts the user block.
  int64_t located(int64_t address, const std::string& bytes) {
    check_written(H5Fflush(file, H5F_SCOPE_LOCAL) >= 0, target.path());
    for (const int64_t start : {shard::kUserBlock, int64_t(0)})
      if (part_of_file(fd, start + address, int64_t(bytes.size())) == bytes) return start + address;
    fail(Exit::kDevice, target.path(), ": what was written does not come back; check the disk");
  }

  /// Writes a plain dataset; returns its place.
  int64_t plain(const char* name, hid_t type, std::vector<hsize_t> shape,
                const std::string& bytes) {
    const Hid list(untimed(H5P_DATASET_CREATE));
    H5Pset_fill_time(list, H5D_FILL_TIME_NEVER);
    const Hid space(H5Screate_simple(int(shape.size()), shape.data(), nullptr));
    const Hid set(H5Dcreate2(file, name, type, space, H5P_DEFAULT, list, H5P_DEFAULT));
    check_written(set.ok(), target.path());
    if (bytes.empty()) return shard::kUserBlock;
    check_written(H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data()) >= 0,
                  target.path());
    return located(int64_t(H5Dget_offset(set)), bytes);
  }

  ShardHeader header;
  AtomicFile target;
  Hid file;
  int fd = -1;
  int64_t base = -1;
  std::vector<uint64_t> table;
  std::string index;
};

ShardWriter::ShardWriter(const std::string& path, const ShardHeader& header) {
  const Hdf5Lock lock;
  state_ = std::make_unique<State>(path, header);
}

ShardWriter::~ShardWriter() {
  const Hdf5Lock lock;
  state_.reset();
}

void ShardWriter::add(const PackedChain& chain) {
  const Hdf5Lock lock;
  State& s = *state_;
  const ChainInfo& info = chain.info;
  const auto parts =
      shard::parts_of(info.n_res(), info.n_msa, info.n_templates, chain.msa_chunk_rows);
  check(std::ssize(chain.chunks) == shard::chunks_of(parts), "shard: ", info.id, " has ",
        chain.chunks.size(), " chunks, expected ", shard::chunks_of(parts));
  const size_t first = s.table.size();
  const Hid group = s.group("/chains/" + info.id);
  for (const Part& part : parts) s.part(group, part, &chain.chunks[size_t(part.first_chunk)]);
  const std::string_view rows(reinterpret_cast<const char*>(s.table.data() + first),
                              (s.table.size() - first) * sizeof(uint64_t));
  const Json line = {{"id", info.id},
                     {"sequence", info.sequence},
                     {"date", info.date},
                     {"method", info.method},
                     {"resolution", info.resolution},
                     {"source", info.source},
                     {"n_seen", info.n_seen},
                     {"n_msa", info.n_msa},
                     {"msa_chunk_rows", chain.msa_chunk_rows},
                     {"n_templates", info.n_templates},
                     {"cluster", info.cluster},
                     {"cluster_size", info.cluster_size},
                     {"distillation", info.distillation},
                     {"chunks", {int64_t(first / 3), std::ssize(chain.chunks), crc_of(rows)}}};
  s.index += line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

void ShardWriter::commit(const std::vector<BuildNote>& notes) {
  const Hdf5Lock lock;
  State& s = *state_;
  const std::string& path = s.target.path();
  std::string note_lines;
  for (const BuildNote& note : notes)
    note_lines += Json({{"rejected", note.rejected},
                        {"source", note.source},
                        {"chain", note.chain},
                        {"reason", note.reason}})
                      .dump(-1, ' ', false, Json::error_handler_t::replace) +
                  "\n";
  const std::string table(reinterpret_cast<const char*>(s.table.data()),
                          s.table.size() * sizeof(uint64_t));
  const int64_t chunks_at = s.plain("chunks", H5T_STD_U64LE, {s.table.size() / 3, 3}, table);
  const int64_t notes_at = s.plain("notes", H5T_STD_U8LE, {note_lines.size()}, note_lines);
  const int64_t index_at = s.plain("index", H5T_STD_U8LE, {s.index.size()}, s.index);
  check_written(H5Fflush(s.file, H5F_SCOPE_LOCAL) >= 0 && s.file.close(), path);

  const auto whole = int64_t(lseek(s.fd, 0, SEEK_END));
  uLong crc = 0;
  std::vector<Bytef> buffer(1 << 20);
  for (int64_t at = shard::kUserBlock; at < whole;) {
    const ssize_t got = pread(s.fd, buffer.data(), buffer.size(), at);
    check_written(got > 0, path);
    crc = crc32_z(crc, buffer.data(), size_t(got));
    at += got;
  }
  char text[shard::kUserBlock] = {};
  const auto number = [](int64_t n) { return static_cast<long long>(n); };
  const int length = std::snprintf(
      text, sizeof text,
      "%s\nformat %d\npart %lld of %lld\nfingerprint %s\nbytes %lld\nindex %lld %lld %08x\n"
      "notes %lld %lld %08x\nchunks %lld %lld\nrest %08lx\n",
      shard::kKind, shard::kFormatVersion, number(s.header.part), number(s.header.parts),
      s.header.fingerprint.c_str(), number(whole), number(index_at), number(std::ssize(s.index)),
      crc_of(s.index), number(notes_at), number(std::ssize(note_lines)), crc_of(note_lines),
      number(chunks_at), number(std::ssize(s.table) / 3), crc);
  std::snprintf(text + length, sizeof text - size_t(length), "header %08x\n",
                crc_of({text, size_t(length)}));
  s.target.write_at(0, text, shard::kUserBlock);
  const std::vector<ShardDamage> damage = verify_shard(s.target.temporary_path());
  if (!damage.empty())
    fail(Exit::kDevice, path, ": what was written does not come back (", damage[0].what,
         "); check the disk");
  s.target.commit();
}

}  // namespace ff
