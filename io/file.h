// Files: bounded reading of text (plain or gzip), and writing that never leaves half a file behind.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace ff {

/// The whole text of a file; gzip is recognised by its magic bytes and unpacked. Throws
/// Exit::kInput when it cannot be read, is damaged, is named .gz without being it, or holds more
/// than `max_bytes` (after unpacking).
std::string read_text_file(const std::string& path, int64_t max_bytes);

/// The first `bytes` of such a text, fewer where it ends or is damaged. Throws Exit::kInput when it
/// cannot be opened.
std::string read_text_start(const std::string& path, int64_t bytes);

/// Takes the next line off `text`: without its end (\n, \r\n or \r). False at the end of the text.
bool next_line(std::string_view& text, std::string_view& line);

/// Blank, tab, vertical tab or form feed.
bool is_blank(char c);

/// `text` without these at both ends.
std::string_view trim(std::string_view text);

/// A character for an error message: 'x', or its code where it cannot be printed.
std::string show_char(char c);

/// Text of a file for an error message: in quotes, at most 100 bytes, control characters as '?'.
std::string show_text(std::string_view text);

/// Appends to an open file. Throws Exit::kDevice naming `path` when writing fails.
void append_to(int fd, const std::string& path, std::string_view text);

/// Writes a file under a temporary name in the target's folder; commit() syncs and renames it.
/// Without commit the temporary is removed and the target stays as it was. Throws Exit::kUsage when
/// the file cannot be made there, Exit::kDevice when writing fails.
class AtomicFile {
 public:
  /// The temporary is ".NAME.PROCESS-COUNT.tmp", with this much of the file's name.
  static constexpr size_t kMostName = 200;

  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// Appends.
  void write(const void* data, int64_t bytes);
  void write(std::string_view text) { write(text.data(), int64_t(text.size())); }
  /// Replaces bytes that were written before.
  void write_at(int64_t offset, const void* data, int64_t bytes);
  /// Bytes appended so far.
  int64_t size() const { return flushed_ + int64_t(buffer_.size()); }
  void commit();

  /// For libraries that open files by name.
  const std::string& temporary_path() const { return temporary_; }
  const std::string& path() const { return path_; }

 private:
  void flush();
  void put(int64_t offset, const char* data, int64_t bytes);

  std::string path_, temporary_, buffer_;
  int64_t flushed_ = 0;
  int fd_ = -1;
};

/// Writes a text as the whole of a file. Throws as AtomicFile.
void write_file(const std::string& path, std::string_view text);

/// Removes a file that may be there. Throws Exit::kUsage when it cannot be removed.
void remove_file(const std::string& path);

/// Removes the temporaries of AtomicFile in a folder that killed processes left, of those names
/// (their first kMostName bytes) that are `ours`. Throws as remove_file.
void remove_temporaries(const std::string& folder,
                        const std::function<bool(const std::string&)>& ours);

}  // namespace ff
