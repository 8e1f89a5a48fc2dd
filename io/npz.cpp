// .npz archives: a zip directory, members as streams (stored or inflated) read straight into
// tensors.
#include "io/npz.h"

#include <fcntl.h>
#include <immintrin.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "io/file.h"

namespace ff {
namespace {

constexpr uint32_t kLocalMagic = 0x04034b50, kCentralMagic = 0x02014b50, kEndMagic = 0x06054b50,
                   kEnd64Magic = 0x06064b50, kLocator64Magic = 0x07064b50;
constexpr int64_t kLocalSize = 30, kCentralSize = 46, kEndSize = 22, kEnd64Size = 56,
                  kLocator64Size = 20;
constexpr uint32_t kFull32 = 0xffffffff;
constexpr uint16_t kFull16 = 0xffff;
constexpr int kStored = 0, kDeflated = 8;
constexpr int64_t kChunk = 1 << 18;

/// Bytes that can be read at any offset: a file or memory.
class Source {
 public:
  explicit Source(const std::string& path) : name(path) {
    fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    check_input(fd_ >= 0, path, ": cannot open it: ", std::strerror(errno), "; check the path");
    struct stat found;
    if (fstat(fd_, &found) != 0 || !S_ISREG(found.st_mode)) {
      close(fd_);
      fail(Exit::kInput, path, ": is no ordinary file; expected a NumPy .npz file");
    }
    size = found.st_size;
  }
  Source(std::string_view bytes, const std::string& name_)
      : name(name_), size(int64_t(bytes.size())), memory_(bytes) {}
  ~Source() {
    if (fd_ >= 0) close(fd_);
  }
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;

  void read(int64_t offset, void* to, int64_t bytes) const {
    check_input(offset >= 0 && bytes >= 0 && offset <= size && bytes <= size - offset, name,
                ": refers to bytes ", offset, " to ", offset, " + ", bytes, " but has only ", size,
                "; it is damaged or incomplete: copy it again");
    if (fd_ < 0) {
      if (bytes) std::memcpy(to, memory_.data() + offset, size_t(bytes));
      return;
    }
    char* p = static_cast<char*>(to);
    while (bytes > 0) {
      const ssize_t n = pread(fd_, p, size_t(std::min<int64_t>(bytes, 1 << 30)), offset);
      if (n < 0 && errno == EINTR) continue;
      check_input(n > 0, name, ": reading failed at byte ", offset, ": ",
                  n ? std::strerror(errno) : "the file became shorter");
      p += n;
      offset += n;
      bytes -= n;
    }
  }
  std::string read(int64_t offset, int64_t bytes) const {
    check_input(bytes <= size, name, ": a part of ", bytes, " bytes in a file of ", size,
                "; it is damaged: copy it again");
    std::string s(size_t(bytes), '\0');
    read(offset, s.data(), bytes);
    return s;
  }

  const std::string name;
  int64_t size = 0;

 private:
  int fd_ = -1;
  std::string_view memory_;
};

template <class T>
T little(const std::string& bytes, int64_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

struct Member {
  std::string name;
  int method = 0;
  uint32_t crc = 0;
  int64_t offset = 0, packed = 0, size = 0;  ///< local header; bytes in the file; bytes unpacked
  int64_t data = 0;                          ///< first byte of the contents
};

template <class... Parts>
void check_member(bool ok, const Source& source, const Member& member, const Parts&... parts) {
  if (!ok) [[unlikely]]
    fail(Exit::kInput, source.name, ": member ", show_text(member.name), ": ", parts...);
}

/// Where the directory is and how many entries it has.
struct Directory {
  int64_t offset = 0, size = 0, count = 0, end = 0;
};

Directory find_directory(const Source& source) {
  const int64_t tail_size = std::min<int64_t>(source.size, kEndSize + kFull16);
  const int64_t tail_start = source.size - tail_size;
  const std::string tail = source.read(tail_start, tail_size);
  int64_t at = tail_size - kEndSize;
  while (at >= 0 && !(little<uint32_t>(tail, at) == kEndMagic &&
                      at + kEndSize + little<uint16_t>(tail, at + 20) == tail_size))
    --at;
  check_input(
      at >= 0, source.name,
      ": found no zip directory at its end, expected a NumPy .npz file; it is of another kind "
      "or incomplete: copy it again");
  Directory d;
  d.end = tail_start + at;
  bool split = little<uint16_t>(tail, at + 4) != little<uint16_t>(tail, at + 6);
  d.count = little<uint16_t>(tail, at + 10);
  d.size = little<uint32_t>(tail, at + 12);
  d.offset = little<uint32_t>(tail, at + 16);
  if (d.count == kFull16 || d.size == kFull32 || d.offset == kFull32) {
    const int64_t locator_at = d.end - kLocator64Size;
    const std::string locator = locator_at >= 0 ? source.read(locator_at, kLocator64Size) : "";
    if (!locator.empty() && little<uint32_t>(locator, 0) == kLocator64Magic) {
      const int64_t end64_at = little<int64_t>(locator, 8);
      check_input(end64_at >= 0 && end64_at <= locator_at - kEnd64Size, source.name,
                  ": its zip64 directory end lies outside the file; it is damaged: copy it again");
      const std::string end64 = source.read(end64_at, kEnd64Size);
      check_input(little<uint32_t>(end64, 0) == kEnd64Magic, source.name,
                  ": has no zip64 directory end where it should be; it is damaged: copy it again");
      split = little<uint32_t>(end64, 16) != little<uint32_t>(end64, 20);
      d.count = little<int64_t>(end64, 32);
      d.size = little<int64_t>(end64, 40);
      d.offset = little<int64_t>(end64, 48);
      d.end = end64_at;
    }
  }
  check_input(!split, source.name, ": is one part of a split zip archive, expected one file");
  check_input(d.offset >= 0 && d.size >= 0 && d.offset <= d.end && d.size <= d.end - d.offset &&
                  d.count >= 0 && d.count <= d.size / kCentralSize,
              source.name, ": a zip directory of ", d.count, " entries in ", d.size,
              " bytes at byte ", d.offset, " does not fit into the file of ", source.size,
              " bytes; it is damaged: copy it again");
  return d;
}

/// Replaces the saturated fields of a directory entry by those of its zip64 extra field.
void apply_zip64(const Source& source, Member& member, const std::string& extra) {
  const int64_t size = int64_t(extra.size());
  for (int64_t at = 0; at + 4 <= size;) {
    const uint16_t id = little<uint16_t>(extra, at), length = little<uint16_t>(extra, at + 2);
    at += 4;
    check_member(at + length <= size, source, member,
                 "a zip extra field is cut short; copy it again");
    if (id == 1) {
      int64_t next = at;
      for (int64_t* field : {&member.size, &member.packed, &member.offset})
        if (*field == kFull32) {
          check_member(next + 8 <= at + length, source, member, "its zip64 field is cut short");
          *field = little<int64_t>(extra, next);
          next += 8;
        }
      return;
    }
    at += length;
  }
}

std::vector<Member> read_directory(const Source& source) {
  const Directory d = find_directory(source);
  const std::string bytes = source.read(d.offset, d.size);
  std::vector<Member> members;
  int64_t at = 0;
  for (int64_t i = 0; i < d.count; ++i) {
    check_input(at + kCentralSize <= d.size && little<uint32_t>(bytes, at) == kCentralMagic,
                source.name, ": entry ", i,
                " of its zip directory is damaged; copy the file again");
    Member m;
    const uint16_t flags = little<uint16_t>(bytes, at + 8);
    m.method = little<uint16_t>(bytes, at + 10);
    m.crc = little<uint32_t>(bytes, at + 16);
    m.packed = little<uint32_t>(bytes, at + 20);
    m.size = little<uint32_t>(bytes, at + 24);
    m.offset = little<uint32_t>(bytes, at + 42);
    const int64_t name = little<uint16_t>(bytes, at + 28), extra = little<uint16_t>(bytes, at + 30),
                  comment = little<uint16_t>(bytes, at + 32);
    at += kCentralSize;
    check_input(name + extra + comment <= d.size - at, source.name, ": entry ", i,
                " of its zip directory is cut short; copy the file again");
    m.name = bytes.substr(size_t(at), size_t(name));
    apply_zip64(source, m, bytes.substr(size_t(at + name), size_t(extra)));
    at += name + extra + comment;
    if (m.name.ends_with('/') && m.size == 0) continue;  // a folder, as zip programs add them
    check_input(m.name.find('\0') == std::string::npos, source.name, ": entry ", i,
                " of its zip directory has a zero byte in its name; it is damaged: copy it again");
    check_member(!(flags & 1), source, m, "is encrypted, expected a plain one");
    check_member(m.method == kStored || m.method == kDeflated, source, m, "zip method ", m.method,
                 ", expected 0 (stored) or 8 (deflated); write it with numpy.savez");
    check_member(m.name.ends_with(".npy"), source, m,
                 "is no .npy array; an .npz file holds nothing else");
    check_member(m.offset >= 0 && m.offset <= d.offset - kLocalSize, source, m, "starts at byte ",
                 m.offset, ", outside the file's data; it is damaged: copy it again");

    const std::string local = source.read(m.offset, kLocalSize);
    const int64_t local_name = little<uint16_t>(local, 26);
    m.data = m.offset + kLocalSize + local_name + little<uint16_t>(local, 28);
    check_member(
        little<uint32_t>(local, 0) == kLocalMagic && little<uint16_t>(local, 8) == m.method &&
            m.data <= d.offset && source.read(m.offset + kLocalSize, local_name) == m.name,
        source, m, "its local header differs from the directory; it is damaged: copy it again");
    check_member(m.packed >= 0 && m.packed <= d.offset - m.data, source, m, "claims ", m.packed,
                 " bytes of a file of ", source.size, "; it is damaged: copy it again");
    // Deflate cannot shrink anything below 1/1032.
    const int64_t most = m.method == kStored ? m.packed : m.packed * 1032;
    const int64_t least = m.method == kStored ? m.packed : 0;
    check_member(m.size >= least && m.size <= most, source, m, "claims to hold ", m.size,
                 " bytes in ", m.packed, " bytes of the file; it is damaged: copy it again");
    members.push_back(std::move(m));
  }
  std::sort(members.begin(), members.end(),
            [](const Member& a, const Member& b) { return a.offset < b.offset; });
  for (size_t i = 1; i < members.size(); ++i)
    check_member(members[i - 1].data + members[i - 1].packed <= members[i].offset, source,
                 members[i], "overlaps ", show_text(members[i - 1].name),
                 "; the file is damaged or hostile");
  return members;
}

/// The contents of a member from front to end; never reads or gives more than the directory says.
class MemberReader {
 public:
  MemberReader(const Source& source, const Member& member) : source_(source), member_(member) {
    if (member.method != kDeflated) return;
    check(inflateInit2(&z_, -MAX_WBITS) == Z_OK, "zlib: no memory to inflate ", source.name);
    inflating_ = true;
    packed_.resize(size_t(std::min(member.packed, kChunk)));
  }
  ~MemberReader() {
    if (inflating_) inflateEnd(&z_);
  }
  MemberReader(const MemberReader&) = delete;
  MemberReader& operator=(const MemberReader&) = delete;

  int64_t left() const { return member_.size - given_; }

  void read(void* to, int64_t bytes) {
    check_member(bytes <= left(), source_, member_, "ends after ", member_.size, " bytes, ",
                 given_ + bytes, " expected; it is damaged: write it again");
    char* p = static_cast<char*>(to);
    while (bytes > 0) {
      const int64_t part = std::min(bytes, kChunk);  // summed while it is in the cache
      if (inflating_) {
        inflate_into(p, part);
      } else {
        source_.read(member_.data + taken_, p, part);
        taken_ += part;
      }
      crc_ = uint32_t(crc32(crc_, reinterpret_cast<const Bytef*>(p), uInt(part)));
      given_ += part;
      p += part;
      bytes -= part;
    }
  }

  /// To be called when all is read: the stream must end here and its checksum fit.
  void finish() {
    if (inflating_) {
      char extra;
      check_member(step(&extra, 1) == 1 && ended_ && z_.avail_in == 0 && taken_ == member_.packed,
                   source_, member_, "holds more data than its ", member_.size,
                   " bytes; it is damaged: copy it again");
    }
    check_member(crc_ == member_.crc, source_, member_,
                 "its checksum does not fit its data; the file is damaged: copy it again");
  }

 private:
  /// Inflates at most `room` bytes; returns how many bytes of the room are left.
  int64_t step(char* to, int64_t room) {
    z_.next_out = reinterpret_cast<Bytef*>(to);
    z_.avail_out = uInt(room);
    while (z_.avail_out > 0 && !ended_) {
      if (z_.avail_in == 0) {
        const int64_t part = std::min<int64_t>(int64_t(packed_.size()), member_.packed - taken_);
        if (part == 0) break;
        source_.read(member_.data + taken_, packed_.data(), part);
        taken_ += part;
        z_.next_in = reinterpret_cast<Bytef*>(packed_.data());
        z_.avail_in = uInt(part);
      }
      const int status = inflate(&z_, Z_NO_FLUSH);
      ended_ = status == Z_STREAM_END;
      check_member(status == Z_OK || ended_, source_, member_, "damaged deflate data (",
                   z_.msg ? z_.msg : "cut short", "); copy the file again");
    }
    return z_.avail_out;
  }
  void inflate_into(char* to, int64_t bytes) {
    const int64_t missing = step(to, bytes);
    check_member(missing == 0, source_, member_, "its data end after ", given_ + bytes - missing,
                 " bytes, expected ", member_.size, "; the file is damaged: copy it again");
  }

  const Source& source_;
  const Member& member_;
  z_stream z_{};
  bool inflating_ = false, ended_ = false;
  std::string packed_;
  int64_t taken_ = 0, given_ = 0;  ///< bytes from the file, bytes handed out
  uint32_t crc_ = 0;
};

struct NpyHeader {
  std::string descr;
  bool fortran_order = false;
  std::vector<int64_t> shape;
};

/// Parses the header's Python dictionary: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4),
/// }.
class HeaderParser {
 public:
  explicit HeaderParser(std::string_view text) : text_(text) {}

  /// Nothing when the text is not such a dictionary. A structured dtype gives descr "[".
  std::optional<NpyHeader> parse() {
    NpyHeader h;
    bool descr = false, order = false, shape = false;
    if (!take("{")) return {};
    while (!take("}")) {
      std::string key;
      if (!string(key) || !take(":")) return {};
      if (key == "descr" && !descr) {
        descr = true;
        if (take("[")) {
          h.descr = "[";
          return h;
        }
        if (!string(h.descr)) return {};
      } else if (key == "fortran_order" && !order) {
        order = true;
        h.fortran_order = take("True");
        if (!h.fortran_order && !take("False")) return {};
      } else if (key == "shape" && !shape) {
        shape = true;
        if (!tuple(h.shape)) return {};
      } else {
        return {};
      }
      if (!take(",") && !at("}")) return {};
    }
    skip();
    if (!text_.empty() || !descr || !order || !shape) return {};
    return h;
  }

 private:
  void skip() { text_.remove_prefix(std::min(text_.find_first_not_of(" \t\n"), text_.size())); }
  bool at(std::string_view token) {
    skip();
    return text_.starts_with(token);
  }
  bool take(std::string_view token) {
    if (!at(token)) return false;
    text_.remove_prefix(token.size());
    return true;
  }
  bool string(std::string& value) {
    const char quote = at("'") ? '\'' : '"';
    if (!take({&quote, 1})) return false;
    const size_t end = text_.find(quote);
    if (end == std::string_view::npos) return false;
    value = text_.substr(0, end);
    text_.remove_prefix(end + 1);
    return true;
  }
  bool tuple(std::vector<int64_t>& values) {
    if (!take("(")) return false;
    while (!take(")")) {
      skip();
      int64_t value = 0;
      const auto [end, error] = std::from_chars(text_.data(), text_.data() + text_.size(), value);
      if (error != std::errc() || value < 0) return false;
      text_.remove_prefix(size_t(end - text_.data()));
      take("L");  // Python 2 wrote its long integers so
      values.push_back(value);
      if (!take(",") && !at(")")) return false;
    }
    return true;
  }

  std::string_view text_;
};

NpyHeader read_header(const Source& source, const Member& member, MemberReader& reader) {
  char start[12];
  reader.read(start, 8);
  check_member(std::memcmp(start, "\x93NUMPY", 6) == 0, source, member,
               "does not begin as a .npy array does; write it with numpy.savez");
  const int version = static_cast<unsigned char>(start[6]);
  check_member(version >= 1 && version <= 3, source, member, ".npy version ", version,
               ", expected 1 to 3; write it with numpy.savez");
  uint32_t length = 0;
  reader.read(&length, version == 1 ? 2 : 4);
  constexpr uint32_t kLongest = 1 << 20;
  check_member(length <= kLongest, source, member, "a .npy header of ", length, " bytes, at most ",
               kLongest, " expected; it is damaged: write it again");
  std::string text(length, '\0');
  reader.read(text.data(), length);
  const std::optional<NpyHeader> header = HeaderParser(text).parse();
  check_member(header.has_value(), source, member,
               "its .npy header cannot be understood: ", show_text(text),
               "; write it with numpy.savez");
  return *header;
}

enum class Element { b1, i1, u1, i2, u2, i4, u4, i8, u8, f2, f4, f8 };

Element parse_descr(const Source& source, const Member& member, const std::string& descr) {
  const std::string kind = descr.size() > 1 ? descr.substr(1, 1) : "";
  const char* hint = kind == "O" ? " (pickled Python objects, which are never read)"
                     : kind == "U" || kind == "S"  ? " (text)"
                     : kind == "c"                 ? " (complex numbers)"
                     : descr == "[" || kind == "V" ? " (structured)"
                                                   : "";
  constexpr const char* kNames[] = {"b1", "i1", "u1", "i2", "u2", "i4",
                                    "u4", "i8", "u8", "f2", "f4", "f8"};
  for (int i = 0; i < int(std::size(kNames)); ++i)
    if (descr.size() == 3 && descr.substr(1) == kNames[i]) {
      check_member(descr[0] != '>' || descr[2] == '1', source, member, "its dtype ",
                   show_text(descr),
                   " is big-endian, expected little-endian; convert it with "
                   "array.astype(array.dtype.newbyteorder('<'))");
      if (std::string_view("<|=>").find(descr[0]) != std::string_view::npos) return Element(i);
    }
  fail(Exit::kInput, source.name, ": member ", show_text(member.name), ": its dtype ",
       show_text(descr), hint,
       " cannot be read, expected floats (f2, f4, f8), integers (i1 to i8, u1 to u8) or booleans; "
       "leave it out or convert it");
}

/// Reads `count` elements of file type From in chunks; `convert(value, index)` makes the tensor's.
template <class From, class To, class Convert>
void read_converted(MemberReader& reader, To* to, int64_t count, Convert convert) {
  std::vector<From> chunk(size_t(std::min<int64_t>(count, kChunk / int64_t(sizeof(From)))));
  for (int64_t done = 0; done < count;) {
    const int64_t n = std::min(count - done, int64_t(chunk.size()));
    reader.read(chunk.data(), n * int64_t(sizeof(From)));
    for (int64_t i = 0; i < n; ++i) to[done + i] = convert(chunk[size_t(i)], done + i);
    done += n;
  }
}

template <class From>
void read_integers(const Source& source, const Member& member, MemberReader& reader,
                   const Tensor& t) {
  read_converted<From>(reader, t.data<int32_t>(), t.numel(), [&](From value, int64_t index) {
    check_member(std::in_range<int32_t>(value), source, member, "element ", index, " is ", value,
                 ", which does not fit the 32-bit integers used here");
    return int32_t(value);
  });
}

Tensor read_member(const Source& source, const Member& member, bool keep_f64) {
  constexpr int64_t kSizes[] = {1, 1, 1, 2, 2, 4, 4, 8, 8, 2, 4, 8};
  MemberReader reader(source, member);
  const NpyHeader header = read_header(source, member, reader);
  const Element element = parse_descr(source, member, header.descr);
  check_member(header.shape.size() <= size_t(Dims::kMax), source, member, "has ",
               header.shape.size(), " axes, at most ", Dims::kMax, " expected");
  Dims shape{std::span<const int64_t>(header.shape)};
  int64_t bytes = kSizes[int(element)], extent = bytes;
  for (int64_t size : shape) {
    constexpr int64_t kMost = int64_t(1) << 50;  // beyond any file; also where another size is 0
    check_member(size <= kMost / extent, source, member, "its shape ", shape.str(),
                 " is impossible");
    extent *= std::max<int64_t>(size, 1);
    bytes *= size;
  }
  check_member(bytes == reader.left(), source, member, "shape ", shape.str(), " of ",
               show_text(header.descr), " needs ", bytes, " bytes, found ", reader.left(),
               "; it is damaged: write it again");

  if (header.fortran_order)
    for (int i = 0; i < shape.size() / 2; ++i) std::swap(shape[i], shape[shape.size() - 1 - i]);
  const bool is_float = element >= Element::f2;
  const bool is_f64 = element == Element::f8 && keep_f64;
  Tensor t = Tensor::empty(shape, is_f64 ? Dtype::f64 : is_float ? Dtype::f32 : Dtype::i32);
  const int64_t n = t.numel();
  switch (element) {
    case Element::b1:
      read_converted<uint8_t>(reader, t.data<int32_t>(), n,
                              [](uint8_t value, int64_t) { return int32_t(value != 0); });
      break;
    case Element::i1:
      read_integers<int8_t>(source, member, reader, t);
      break;
    case Element::u1:
      read_integers<uint8_t>(source, member, reader, t);
      break;
    case Element::i2:
      read_integers<int16_t>(source, member, reader, t);
      break;
    case Element::u2:
      read_integers<uint16_t>(source, member, reader, t);
      break;
    case Element::u4:
      read_integers<uint32_t>(source, member, reader, t);
      break;
    case Element::i8:
      read_integers<int64_t>(source, member, reader, t);
      break;
    case Element::u8:
      read_integers<uint64_t>(source, member, reader, t);
      break;
    case Element::f2:
      read_converted<uint16_t>(reader, t.data<float>(), n,
                               [](uint16_t value, int64_t) { return _cvtsh_ss(value); });
      break;
    case Element::i4:
    case Element::f4:
      reader.read(t.raw(), n * 4);
      break;
    case Element::f8:
      if (keep_f64)
        reader.read(t.raw(), n * 8);
      else
        read_converted<double>(reader, t.data<float>(), n,
                               [](double value, int64_t) { return float(value); });
      break;
  }
  reader.finish();
  if (!header.fortran_order) return t;
  for (int i = 0; i < t.rank() / 2; ++i) t = t.transpose(i, t.rank() - 1 - i);
  return t.contiguous();
}

Arrays read_archive(const Source& source, bool keep_f64) {
  Arrays arrays;
  for (const Member& member : read_directory(source)) {
    Tensor t = read_member(source, member, keep_f64);
    const bool is_new = arrays.emplace(member.name.substr(0, member.name.size() - 4), t).second;
    check_member(is_new, source, member, "occurs twice; write the file again");
  }
  return arrays;
}

}  // namespace

Arrays read_npz(const std::string& path, bool keep_f64) {
  return read_archive(Source(path), keep_f64);
}

Arrays parse_npz(std::string_view bytes, const std::string& name, bool keep_f64) {
  return read_archive(Source(bytes, name), keep_f64);
}

namespace {

constexpr uint16_t kVersion = 45;         // zip 4.5: zip64
constexpr uint16_t kUtf8 = 1 << 11;       // flag: the name is UTF-8
constexpr uint16_t kDay = 1 << 5 | 1;     // 1 January 1980: the same bytes whenever written
constexpr int64_t kLocal64 = 0xf0000000;  // from here a local header has room for 64-bit sizes

template <class T>
void append(std::string& to, T value) {
  to.append(reinterpret_cast<const char*>(&value), sizeof value);
}

std::string npy_header(const Tensor& t) {
  std::string text = "{'descr': '";
  text += t.dtype() == Dtype::i32 ? "<i4" : t.dtype() == Dtype::f64 ? "<f8" : "<f4";
  text += "', 'fortran_order': False, 'shape': (";
  for (int64_t size : t.shape()) text += std::to_string(size) + ", ";
  if (t.rank()) text.pop_back();
  if (t.rank() > 1) text.pop_back();
  text += "), }";
  // As NumPy pads: magic, version, length and text together end at a multiple of 64.
  text.append((64 - (10 + text.size() + 1) % 64) % 64, ' ');
  text += '\n';
  std::string header("\x93NUMPY\x01\x00", 8);
  append(header, uint16_t(text.size()));
  return header + text;
}

/// Writes header and data of a member; sets its crc, packed and size.
void write_contents(AtomicFile& file, Member& member, const std::string& header, const Tensor& t) {
  const std::string_view parts[] = {
      header, {static_cast<const char*>(t.raw()), size_t(t.numel() * size_of(t.dtype()))}};
  const int64_t start = file.size();
  z_stream z{};
  std::string packed(size_t(kChunk), '\0');
  if (member.method == kDeflated)
    check(deflateInit2(&z, Z_BEST_SPEED, Z_DEFLATED, -MAX_WBITS, 9, Z_DEFAULT_STRATEGY) == Z_OK,
          "zlib: no memory to deflate");
  try {
    for (int p = 0; p < 2; ++p)
      for (size_t at = 0; at < parts[p].size() || (p == 1 && at == 0); at += size_t(kChunk)) {
        const std::string_view part = parts[p].substr(at, size_t(kChunk));
        const Bytef* bytes = reinterpret_cast<const Bytef*>(part.data());
        member.crc = uint32_t(crc32(member.crc, bytes, uInt(part.size())));
        if (member.method == kStored) {
          file.write(part);
          continue;
        }
        const bool last = p == 1 && at + part.size() == parts[p].size();
        z.next_in = const_cast<Bytef*>(bytes);
        z.avail_in = uInt(part.size());
        do {
          z.next_out = reinterpret_cast<Bytef*>(packed.data());
          z.avail_out = uInt(packed.size());
          deflate(&z, last ? Z_FINISH : Z_NO_FLUSH);
          file.write(packed.data(), int64_t(packed.size() - z.avail_out));
        } while (z.avail_out == 0);
      }
  } catch (...) {
    deflateEnd(&z);
    throw;
  }
  if (member.method == kDeflated) deflateEnd(&z);
  member.packed = file.size() - start;
  member.size = int64_t(parts[0].size() + parts[1].size());
}

uint16_t name_flags(const std::string& name) {
  return std::any_of(name.begin(), name.end(), [](char c) { return c & 0x80; }) ? kUtf8 : 0;
}

std::string local_header(const Member& m, bool is_long) {
  std::string h;
  append(h, kLocalMagic);
  append(h, kVersion);
  append(h, name_flags(m.name));
  append(h, uint16_t(m.method));
  append(h, uint16_t(0));
  append(h, kDay);
  append(h, m.crc);
  append(h, is_long ? kFull32 : uint32_t(m.packed));
  append(h, is_long ? kFull32 : uint32_t(m.size));
  append(h, uint16_t(m.name.size()));
  append(h, uint16_t(is_long ? 20 : 0));
  h += m.name;
  if (is_long) {
    append(h, uint16_t(1));
    append(h, uint16_t(16));
    append(h, m.size);
    append(h, m.packed);
  }
  return h;
}

std::string central_header(const Member& m) {
  std::string extra;
  for (int64_t field : {m.size, m.packed, m.offset})
    if (field >= kFull32) append(extra, field);
  const auto clip = [](int64_t field) { return uint32_t(std::min<int64_t>(field, kFull32)); };
  std::string h;
  append(h, kCentralMagic);
  append(h, uint16_t(3 << 8 | kVersion));  // made on Unix
  append(h, kVersion);
  append(h, name_flags(m.name));
  append(h, uint16_t(m.method));
  append(h, uint16_t(0));
  append(h, kDay);
  append(h, m.crc);
  append(h, clip(m.packed));
  append(h, clip(m.size));
  append(h, uint16_t(m.name.size()));
  append(h, uint16_t(extra.empty() ? 0 : extra.size() + 4));
  append(h, uint16_t(0));           // no comment
  append(h, uint32_t(0));           // first disk, no internal attributes
  append(h, uint32_t(0644 << 16));  // external attributes: the file's mode
  append(h, clip(m.offset));
  h += m.name;
  if (!extra.empty()) {
    append(h, uint16_t(1));
    append(h, uint16_t(extra.size()));
    h += extra;
  }
  return h;
}

std::string directory_end(const Directory& d) {
  std::string h;
  if (d.count >= kFull16 || d.size >= kFull32 || d.offset >= kFull32) {
    append(h, kEnd64Magic);
    append(h, uint64_t(kEnd64Size - 12));
    append(h, kVersion);
    append(h, kVersion);
    append(h, uint64_t(0));  // the one disk
    append(h, d.count);
    append(h, d.count);
    append(h, d.size);
    append(h, d.offset);
    append(h, kLocator64Magic);
    append(h, uint32_t(0));
    append(h, d.end);
    append(h, uint32_t(1));
  }
  const auto count = uint16_t(std::min<int64_t>(d.count, kFull16));
  append(h, kEndMagic);
  append(h, uint32_t(0));
  append(h, count);
  append(h, count);
  append(h, uint32_t(std::min<int64_t>(d.size, kFull32)));
  append(h, uint32_t(std::min<int64_t>(d.offset, kFull32)));
  append(h, uint16_t(0));
  return h;
}

}  // namespace

void write_npz(const std::string& path, const Arrays& arrays, bool compress) {
  AtomicFile file(path);
  std::string directory;
  for (const auto& [name, array] : arrays) {
    check(array.device().kind == Device::cpu, "array '", name, "' is not in the CPU's memory");
    const Tensor t = array.dtype() == Dtype::bf16 ? array.to(Dtype::f32) : array.contiguous();
    Member m;
    m.name = name + ".npy";
    check(m.name.size() < kFull16, path, ": the array name ", show_text(name), " is too long");
    m.method = compress ? kDeflated : kStored;
    m.offset = file.size();
    const std::string header = npy_header(t);
    const bool is_long = int64_t(header.size()) + t.numel() * size_of(t.dtype()) >= kLocal64;
    file.write(local_header(m, is_long));
    write_contents(file, m, header, t);
    const std::string final_header = local_header(m, is_long);
    file.write_at(m.offset, final_header.data(), int64_t(final_header.size()));
    directory += central_header(m);
  }
  Directory d;
  d.count = int64_t(arrays.size());
  d.offset = file.size();
  d.size = int64_t(directory.size());
  d.end = d.offset + d.size;
  file.write(directory);
  file.write(directory_end(d));
  file.commit();
}

}  // namespace ff
