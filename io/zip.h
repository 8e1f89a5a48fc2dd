// The zip archives that .npz files are: a directory, and members as streams, stored or inflated.
#pragma once

#include <zlib.h>

#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "io/file.h"

namespace ff::zip {

constexpr int64_t kChunk = 1 << 18;  ///< bytes of a member that are read or packed at a time

/// Bytes that can be read at any offset: a file or memory. What is wrong with them is
/// Exit::kInput, here and below.
class Source {
 public:
  explicit Source(const std::string& path);
  Source(std::string_view bytes, const std::string& name_)
      : name(name_), size(int64_t(bytes.size())), memory_(bytes) {}
  ~Source();
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;

  void read(int64_t offset, void* to, int64_t bytes) const;
  std::string read(int64_t offset, int64_t bytes) const;

  const std::string name;
  int64_t size = 0;

 private:
  int fd_ = -1;
  std::string_view memory_;
};

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

/// The members in the order of their contents; none of them overlaps another.
std::vector<Member> read_directory(const Source& source);

/// The contents of a member from front to end; never reads or gives more than the directory says.
class MemberReader {
 public:
  MemberReader(const Source& source, const Member& member);
  ~MemberReader();
  MemberReader(const MemberReader&) = delete;
  MemberReader& operator=(const MemberReader&) = delete;

  int64_t left() const { return member_.size - given_; }
  void read(void* to, int64_t bytes);
  /// To be called when all is read: the stream must end here and its checksum fit.
  void finish();

 private:
  /// Inflates at most `room` bytes; returns how many bytes of the room are left.
  int64_t step(char* to, int64_t room);
  void inflate_into(char* to, int64_t bytes);

  const Source& source_;
  const Member& member_;
  z_stream z_{};
  bool inflating_ = false, ended_ = false;
  std::string packed_;
  int64_t taken_ = 0, given_ = 0;  ///< bytes from the file, bytes handed out
  uint32_t crc_ = 0;
};

/// Writes an archive to a temporary name first (AtomicFile). Deterministic bytes (no time stamps).
class Writer {
 public:
  Writer(const std::string& path, bool compress) : file_(path), compress_(compress) {}
  /// A member of what stands in `header` and `data`.
  void add(const std::string& name, std::string_view header, std::string_view data);
  void commit();

 private:
  AtomicFile file_;
  const bool compress_;
  std::string directory_;
  int64_t count_ = 0;
};

}  // namespace ff::zip
