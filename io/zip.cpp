// Zip archives: nothing that their directory says is trusted.
#include "io/zip.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace ff::zip {
namespace {

constexpr uint32_t kLocalMagic = 0x04034b50, kCentralMagic = 0x02014b50, kEndMagic = 0x06054b50,
                   kEnd64Magic = 0x06064b50, kLocator64Magic = 0x07064b50;
constexpr int64_t kLocalSize = 30, kCentralSize = 46, kEndSize = 22, kEnd64Size = 56,
                  kLocator64Size = 20;
constexpr uint32_t kFull32 = 0xffffffff;
constexpr uint16_t kFull16 = 0xffff;

constexpr int kStored = 0, kDeflated = 8;
constexpr uint16_t kVersion = 45;         // zip 4.5: zip64
constexpr uint16_t kUtf8 = 1 << 11;       // flag: the name is UTF-8
constexpr uint16_t kDay = 1 << 5 | 1;     // 1 January 1980: the same bytes whenever written
constexpr int64_t kLocal64 = 0xf0000000;  // from here a local header has room for 64-bit sizes

template <class T>
T little(const std::string& bytes, int64_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

template <class T>
void append(std::string& to, T value) {
  to.append(reinterpret_cast<const char*>(&value), sizeof value);
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

/// Writes header and data of a member; sets its crc, packed and size.
void write_contents(AtomicFile& file, Member& member, std::string_view header,
                    std::string_view data) {
  const std::string_view parts[] = {header, data};
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

/// What both of a member's headers say of it before its sizes.
void append_description(std::string& h, const Member& m) {
  append(h, kVersion);
  append(h, name_flags(m.name));
  append(h, uint16_t(m.method));
  append(h, uint16_t(0));
  append(h, kDay);
  append(h, m.crc);
}

std::string local_header(const Member& m, bool is_long) {
  std::string h;
  append(h, kLocalMagic);
  append_description(h, m);
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
  append_description(h, m);
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

Source::Source(const std::string& path) : name(path) {
  fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  check_input(fd_ >= 0, path, ": cannot open it: ", std::strerror(errno), "; check the path");
  struct stat found;
  if (fstat(fd_, &found) != 0 || !S_ISREG(found.st_mode)) {
    close(fd_);
    fail(Exit::kInput, path, ": is no ordinary file; expected a NumPy .npz file");
  }
  size = found.st_size;
}

Source::~Source() {
  if (fd_ >= 0) close(fd_);
}

void Source::read(int64_t offset, void* to, int64_t bytes) const {
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

std::string Source::read(int64_t offset, int64_t bytes) const {
  check_input(bytes <= size, name, ": a part of ", bytes, " bytes in a file of ", size,
              "; it is damaged: copy it again");
  std::string s(size_t(bytes), '\0');
  read(offset, s.data(), bytes);
  return s;
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

MemberReader::MemberReader(const Source& source, const Member& member)
    : source_(source), member_(member) {
  if (member.method != kDeflated) return;
  check(inflateInit2(&z_, -MAX_WBITS) == Z_OK, "zlib: no memory to inflate ", source.name);
  inflating_ = true;
  packed_.resize(size_t(std::min(member.packed, kChunk)));
}

MemberReader::~MemberReader() {
  if (inflating_) inflateEnd(&z_);
}

void MemberReader::read(void* to, int64_t bytes) {
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

void MemberReader::finish() {
  if (inflating_) {
    char extra;
    check_member(step(&extra, 1) == 1 && ended_ && z_.avail_in == 0 && taken_ == member_.packed,
                 source_, member_, "holds more data than its ", member_.size,
                 " bytes; it is damaged: copy it again");
  }
  check_member(crc_ == member_.crc, source_, member_,
               "its checksum does not fit its data; the file is damaged: copy it again");
}

int64_t MemberReader::step(char* to, int64_t room) {
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

void MemberReader::inflate_into(char* to, int64_t bytes) {
  const int64_t missing = step(to, bytes);
  check_member(missing == 0, source_, member_, "its data end after ", given_ + bytes - missing,
               " bytes, expected ", member_.size, "; the file is damaged: copy it again");
}

void Writer::add(const std::string& name, std::string_view header, std::string_view data) {
  Member m;
  m.name = name;
  check(m.name.size() < kFull16, file_.path(), ": the array name ", show_text(name),
        " is too long");
  m.method = compress_ ? kDeflated : kStored;
  m.offset = file_.size();
  const bool is_long = int64_t(header.size() + data.size()) >= kLocal64;
  file_.write(local_header(m, is_long));
  write_contents(file_, m, header, data);
  const std::string final_header = local_header(m, is_long);
  file_.write_at(m.offset, final_header.data(), int64_t(final_header.size()));
  directory_ += central_header(m);
  ++count_;
}

void Writer::commit() {
  Directory d;
  d.count = count_;
  d.offset = file_.size();
  d.size = int64_t(directory_.size());
  d.end = d.offset + d.size;
  file_.write(directory_);
  file_.write(directory_end(d));
  file_.commit();
}

}  // namespace ff::zip
