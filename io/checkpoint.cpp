// Checkpoints in HDF5: names, the checked user block, writing and reading.
#include "io/checkpoint.h"

#include <zlib.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <vector>

#include "io/file.h"
#include "io/hdf5.h"

namespace ff {
namespace {

constexpr int kFormatVersion = 1;
constexpr const char* kKind = "fastfold checkpoint";
constexpr int64_t kUserBlock = 512;
constexpr const char *kArrays = "/arrays", *kAttributes = "/attributes";

std::string encode_part(std::string_view part) {
  if (part.empty()) return "%";
  if (part == ".") return "%2E";
  std::string s;
  for (char c : part) c == '%' ? s += "%25" : s += c;
  return s;
}

std::string decode_part(std::string_view part) {
  if (part == "%") return "";
  if (part == "%2E") return ".";
  std::string s;
  for (size_t i = 0; i < part.size(); ++i) {
    s += part[i];
    if (part[i] == '%') i += 2;
  }
  return s;
}

/// The path of an item below its root; `is_group` where other names continue this one.
std::string encode_name(std::string_view name, bool is_group) {
  std::string path;
  while (true) {
    const size_t slash = name.find('/');
    path += "/" + encode_part(name.substr(0, slash));
    if (slash == std::string_view::npos) return is_group ? path + "%" : path;
    name.remove_prefix(slash + 1);
  }
}

/// The name of a path without leading "/".
std::string decode_name(std::string_view path) {
  std::string name;
  while (true) {
    const size_t slash = path.find('/');
    std::string_view part = path.substr(0, slash);
    const bool is_last = slash == std::string_view::npos;
    if (is_last && part.size() > 1 && part.ends_with('%')) part.remove_suffix(1);
    name += decode_part(part);
    if (is_last) return name;
    name += '/';
    path.remove_prefix(slash + 1);
  }
}

template <class Map>
bool is_group(const Map& items, const std::string& name) {
  const auto next = items.lower_bound(name + "/");
  return next != items.end() && next->first.starts_with(name + "/");
}

hid_t file_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32:
      return H5T_IEEE_F32LE;
    case Dtype::f64:
      return H5T_IEEE_F64LE;
    case Dtype::i32:
      return H5T_STD_I32LE;
    case Dtype::bf16:
      return H5T_STD_U16LE;
  }
  return H5I_INVALID_HID;
}

/// The user block that belongs to the rest of the file as it now is.
std::string user_block(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  file.seekg(kUserBlock);
  std::vector<char> chunk(1 << 20);
  int64_t size = 0;
  uLong crc = 0;
  while (file.read(chunk.data(), int64_t(chunk.size())), file.gcount() > 0) {
    crc = crc32(crc, reinterpret_cast<const Bytef*>(chunk.data()), uInt(file.gcount()));
    size += file.gcount();
  }
  check_input(!file.bad(), path, ": cannot be read");
  char text[kUserBlock] = {};
  std::snprintf(text, sizeof text, "%s\ncrc32 %08lx of %lld bytes\n", kKind, crc,
                static_cast<long long>(size));
  return std::string(text, sizeof text);
}

/// Without file locks, which many clusters' file systems refuse: a file is complete before it has
/// its name.
Hid unlocked() {
  Hid access(H5Pcreate(H5P_FILE_ACCESS));
  H5Pset_file_locking(access, false, true);
  return access;
}

// ---- Writing

void check_written(bool ok, const std::string& path) {
  if (!ok)
    fail(Exit::kDevice, path, ": writing the checkpoint failed", hdf5_reason(),
         "; free some space or write elsewhere");
}

class Writer {
 public:
  explicit Writer(const AtomicFile& target) : path_(target.path()) {
    const Hid create(H5Pcreate(H5P_FILE_CREATE));
    H5Pset_userblock(create, kUserBlock);
    file_ = Hid(H5Fcreate(target.temporary_path().c_str(), H5F_ACC_TRUNC, create, unlocked()));
    check_written(file_.ok(), path_);
    links_ = Hid(H5Pcreate(H5P_LINK_CREATE));
    H5Pset_create_intermediate_group(links_, 1);
    datasets_ = Hid(H5Pcreate(H5P_DATASET_CREATE));
    H5Pset_obj_track_times(datasets_, false);  // the same bytes whenever written
    H5Pset_fill_time(datasets_, H5D_FILL_TIME_NEVER);
    for (const char* group : {kArrays, kAttributes})
      check_written(Hid(H5Gcreate2(file_, group, links_, H5P_DEFAULT, H5P_DEFAULT)).ok(), path_);
  }

  void root_attributes() {
    const Hid scalar(H5Screate(H5S_SCALAR)), text = text_type(kKind);
    const Hid kind(H5Acreate2(file_, "kind", text, scalar, H5P_DEFAULT, H5P_DEFAULT));
    check_written(kind.ok() && H5Awrite(kind, text, kKind) >= 0, path_);
    const Hid version(
        H5Acreate2(file_, "format_version", H5T_STD_I32LE, scalar, H5P_DEFAULT, H5P_DEFAULT));
    check_written(version.ok() && H5Awrite(version, H5T_NATIVE_INT, &kFormatVersion) >= 0, path_);
  }

  void array(const std::string& name, const Tensor& t) {
    check(t.device().kind == Device::cpu, "array '", name, "' is not in the CPU's memory");
    const Tensor whole = t.contiguous();
    const std::vector<hsize_t> sizes(t.shape().begin(), t.shape().end());
    const Hid space(sizes.empty() ? H5Screate(H5S_SCALAR)
                                  : H5Screate_simple(int(sizes.size()), sizes.data(), nullptr));
    dataset(kArrays + name, file_type(t.dtype()), space, whole.raw());
  }

  void text(const std::string& name, const std::string& value) {
    dataset(kAttributes + name, text_type(value), Hid(H5Screate(H5S_SCALAR)), value.c_str());
  }

  void close() {
    datasets_.close();
    links_.close();
    check_written(H5Fflush(file_, H5F_SCOPE_LOCAL) >= 0 && file_.close(), path_);
  }

 private:
  static Hid text_type(const std::string& value) {
    Hid type(H5Tcopy(H5T_C_S1));
    H5Tset_size(type, std::max<size_t>(value.size(), 1));
    H5Tset_strpad(type, H5T_STR_NULLPAD);
    H5Tset_cset(type, H5T_CSET_UTF8);
    return type;
  }
  void dataset(const std::string& name, hid_t type, const Hid& space, const void* data) {
    check(name.find('\0') == std::string::npos, "a zero byte in the name of '", name.c_str(), "'");
    const Hid set(H5Dcreate2(file_, name.c_str(), type, space, links_, datasets_, H5P_DEFAULT));
    check_written(set.ok() && H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0, path_);
  }

  std::string path_;
  Hid file_, links_, datasets_;
};

// ---- Reading

class Reader {
 public:
  Reader(const std::string& path, int64_t size) : path_(path), left_(size) {
    file_ = Hid(H5Fopen(path.c_str(), H5F_ACC_RDONLY, unlocked()));
    check_read(file_.ok(), "the file");
    int version = 0;
    const Hid attribute(H5Aopen(file_, "format_version", H5P_DEFAULT));
    check_read(attribute.ok() && H5Aread(attribute, H5T_NATIVE_INT, &version) >= 0,
               "'format_version'");
    check_input(version == kFormatVersion, path, ": is a checkpoint of format ", version,
                ", this program reads format ", kFormatVersion, "; use a newer fastfold");
  }

  /// Paths of all datasets below `root`, relative to it. Soft and external links are not followed.
  std::vector<std::string> names(const char* root) const {
    std::vector<std::string> found;
    const auto visit = [](hid_t, const char* name, const H5O_info_t* info, void* to) -> herr_t {
      if (info->type == H5O_TYPE_DATASET)
        static_cast<std::vector<std::string>*>(to)->push_back(name);
      return 0;
    };
    check_read(H5Ovisit_by_name2(file_, root, H5_INDEX_NAME, H5_ITER_INC, visit, &found,
                                 H5O_INFO_BASIC, H5P_DEFAULT) >= 0,
               root);
    return found;
  }

  Tensor array(const std::string& name) {
    const Hid set = open(kArrays, name);
    const Hid type(H5Dget_type(set)), space(H5Dget_space(set));
    const int rank = H5Sget_simple_extent_ndims(space);
    check_input(rank >= 0 && rank <= Dims::kMax && H5Sget_simple_extent_type(space) != H5S_NULL,
                path_, ": array '", name, "' has ", rank, " axes, at most ", Dims::kMax,
                " expected");
    hsize_t sizes[Dims::kMax] = {};
    H5Sget_simple_extent_dims(space, sizes, nullptr);
    for (Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::i32, Dtype::bf16})
      if (H5Tequal(type, file_type(dtype)) > 0) {
        Dims shape;
        hsize_t extent = hsize_t(size_of(dtype));
        for (int i = 0; i < rank; ++i) {
          constexpr hsize_t kMost = hsize_t(1) << 50;  // beyond any file; also where a size is 0
          check_read(sizes[i] <= kMost / extent, name);
          extent *= std::max<hsize_t>(sizes[i], 1);
          shape.push_back(int64_t(sizes[i]));
        }
        take(shape.product() * size_of(dtype), name);
        Tensor t = Tensor::empty(shape, dtype);
        check_read(H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, t.raw()) >= 0, name);
        return t;
      }
    fail(Exit::kInput, path_, ": array '", name,
         "' is of a type that checkpoints do not have, expected f32, f64, i32 or bf16");
  }

  std::string text(const std::string& name) {
    const Hid set = open(kAttributes, name);
    const Hid type(H5Dget_type(set)), space(H5Dget_space(set));
    check_read(H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) == 0 &&
                   H5Sget_simple_extent_type(space) == H5S_SCALAR,
               name);
    take(int64_t(H5Tget_size(type)), name);
    std::string value(H5Tget_size(type), '\0');
    check_read(H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, value.data()) >= 0, name);
    value.resize(std::min(value.find('\0'), value.size()));
    return value;
  }

 private:
  void check_read(bool ok, const std::string& what) const {
    if (!ok)
      fail(Exit::kInput, path_, ": cannot read ", what, hdf5_reason(),
           "; the file is damaged: use an earlier checkpoint");
  }
  /// Only data that lie plainly in this file: no chunks or filters, no other files.
  Hid open(const char* root, const std::string& name) const {
    Hid set(H5Dopen2(file_, (std::string(root) + "/" + name).c_str(), H5P_DEFAULT));
    check_read(set.ok(), name);
    const Hid plist(H5Dget_create_plist(set));
    check_read(
        plist.ok() && H5Pget_layout(plist) == H5D_CONTIGUOUS && H5Pget_external_count(plist) == 0,
        name);
    return set;
  }
  /// All data together cannot be more than the file.
  void take(int64_t bytes, const std::string& name) {
    check_read(bytes <= left_, name);
    left_ -= bytes;
  }

  std::string path_;
  int64_t left_;
  Hid file_;
};

}  // namespace

void write_checkpoint(const std::string& path, const Arrays& arrays, const Attributes& attributes) {
  const Hdf5Lock lock;
  AtomicFile target(path);
  Writer writer(target);
  writer.root_attributes();
  for (const auto& [name, t] : arrays) writer.array(encode_name(name, is_group(arrays, name)), t);
  for (const auto& [name, value] : attributes)
    writer.text(encode_name(name, is_group(attributes, name)), value);
  writer.close();
  const std::string block = user_block(target.temporary_path());
  target.write_at(0, block.data(), kUserBlock);
  target.commit();
}

Arrays read_checkpoint(const std::string& path, Attributes* attributes) {
  std::string block(kUserBlock, '\0');
  std::ifstream file(path, std::ios::binary);
  check_input(file.is_open(), path, ": cannot open it; check the path");
  file.read(block.data(), kUserBlock);
  check_input(block.starts_with(std::string(kKind) + "\n"), path, ": is no checkpoint of fastfold",
              block.starts_with("\x89HDF") ? ", but another HDF5 file" : "", "; check the path");
  check_input(
      block == user_block(path), path,
      ": its checksum does not fit its contents; it is damaged or incomplete: use an earlier "
      "checkpoint");
  file.seekg(0, std::ios::end);

  const Hdf5Lock lock;
  Reader reader(path, file.tellg());
  Arrays arrays;
  for (const std::string& name : reader.names(kArrays))
    arrays.emplace(decode_name(name), reader.array(name));
  if (!attributes) return arrays;
  attributes->clear();
  for (const std::string& name : reader.names(kAttributes))
    attributes->emplace(decode_name(name), reader.text(name));
  return arrays;
}

}  // namespace ff
