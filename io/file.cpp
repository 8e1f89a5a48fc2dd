// Bounded text reading through zlib, and the temporary-then-rename writer.
#include "io/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>

#include "core/base/error.h"

namespace ff {

std::string read_text_file(const std::string& path, int64_t max_bytes) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  check_input(fd >= 0, path, ": cannot open it: ", std::strerror(errno), "; check the path");
  gzFile opened = gzdopen(fd, "rb");
  if (!opened) close(fd);
  check(opened != nullptr, path, ": no memory to open it");
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(opened, gzclose_r);
  gzbuffer(file.get(), 1 << 18);

  std::string text;
  int64_t size = 0;
  while (true) {
    // One byte more than allowed shows that there is more.
    const int64_t room = std::min<int64_t>(max_bytes + 1 - size, std::max<int64_t>(size, 1 << 16));
    const int wanted = int(std::min<int64_t>(room, 1 << 30));
    text.resize(size + wanted);
    errno = 0;
    const int got = gzread(file.get(), text.data() + size, wanted);
    int status = Z_OK;
    const char* reason = gzerror(file.get(), &status);
    check_input(status != Z_BUF_ERROR, path, ": the gzip data ends too early; copy the file again");
    check_input(got >= 0 || status != Z_ERRNO, path, ": cannot read it: ", std::strerror(errno));
    check_input(got >= 0 && status >= Z_OK, path, ": damaged gzip data (", reason,
                "); copy the file again");
    size += got;
    check_input(size <= max_bytes, path, ": holds more than ", max_bytes,
                " bytes of text, the limit for this kind of file; is it the right file?");
    if (got < wanted) break;
  }
  check_input(size == 0 || !path.ends_with(".gz") || !gzdirect(file.get()), path,
              ": is named .gz but holds no gzip data; give it the name of what it is, or pack it");
  text.resize(size);
  return text;
}

std::string read_text_start(const std::string& path, int64_t bytes) {
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rbe"), gzclose_r);
  check_input(file != nullptr, path, ": cannot open it: ", std::strerror(errno),
              "; check the path");
  std::string text(bytes, '\0');
  text.resize(std::max(0, gzread(file.get(), text.data(), unsigned(bytes))));
  return text;
}

bool next_line(std::string_view& text, std::string_view& line) {
  if (text.empty()) return false;
  // memchr in growing parts: find_first_of takes ten times as long, and text of '\r' alone must not
  // be searched to its end for every line.
  size_t end = 0;
  for (size_t part = 128; end < text.size(); part *= 2) {
    const std::string_view here = text.substr(end, part);
    const size_t newline = std::min(here.find('\n'), here.size());
    const size_t found = std::min(here.substr(0, newline).find('\r'), newline);
    end += found;
    if (found < here.size()) break;
  }
  line = text.substr(0, end);
  if (end == text.size()) {
    text = {};
  } else {
    const bool crlf = text[end] == '\r' && end + 1 < text.size() && text[end + 1] == '\n';
    text.remove_prefix(end + (crlf ? 2 : 1));
  }
  return true;
}

bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\v' || c == '\f'; }

std::string_view trim(std::string_view text) {
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
  return text;
}

std::string show_char(char c) {
  if (c > ' ' && c <= '~') return cat("'", c, "'");
  return cat("character code ", int(static_cast<unsigned char>(c)));
}

std::string show_text(std::string_view text) {
  constexpr size_t kMost = 100;
  std::string shown = cat("'", text.substr(0, kMost), text.size() > kMost ? "...'" : "'");
  for (char& c : shown)
    if ((c >= 0 && c < ' ') || c == '\x7f') c = '?';
  return shown;
}

void append_to(int fd, const std::string& path, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      fail(Exit::kDevice, path, ": writing failed: ", n ? std::strerror(errno) : "no space",
           "; free some space or write elsewhere");
    text.remove_prefix(size_t(n));
  }
}

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  struct stat found;
  // Renaming over a device or a pipe (/dev/null, /dev/stdout) would replace it by a file.
  if (stat(path_.c_str(), &found) == 0 && !S_ISREG(found.st_mode))
    fail(Exit::kUsage, path_, ": is ", S_ISDIR(found.st_mode) ? "a folder" : "no ordinary file",
         ", so no file can be written there; give another name");
  const std::filesystem::path target(path_);
  static std::atomic<int> count{0};
  do {
    const std::string name = cat(".", target.filename().string().substr(0, kMostName), ".",
                                 getpid(), "-", count.fetch_add(1), ".tmp");
    temporary_ = (target.parent_path() / name).string();
    fd_ = open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  } while (fd_ < 0 && errno == EEXIST);
  if (fd_ < 0)
    fail(Exit::kUsage, path_, ": cannot write there: ", std::strerror(errno),
         "; check that the folder exists and may be written");
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(temporary_.c_str());
}

void AtomicFile::put(int64_t offset, const char* data, int64_t bytes) {
  while (bytes > 0) {
    const ssize_t n = pwrite(fd_, data, size_t(std::min<int64_t>(bytes, 1 << 30)), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      fail(Exit::kDevice, path_, ": writing failed after ", offset,
           " bytes: ", n ? std::strerror(errno) : "no space",
           "; free some space or write elsewhere");
    data += n;
    offset += n;
    bytes -= n;
  }
}

void AtomicFile::flush() {
  put(flushed_, buffer_.data(), int64_t(buffer_.size()));
  flushed_ += int64_t(buffer_.size());
  buffer_.clear();
}

void AtomicFile::write(const void* data, int64_t bytes) {
  constexpr int64_t kBuffer = 1 << 18;
  if (int64_t(buffer_.size()) + bytes > kBuffer) flush();
  if (bytes > kBuffer) {
    put(flushed_, static_cast<const char*>(data), bytes);
    flushed_ += bytes;
  } else {
    buffer_.append(static_cast<const char*>(data), size_t(bytes));
  }
}

void AtomicFile::write_at(int64_t offset, const void* data, int64_t bytes) {
  flush();
  put(offset, static_cast<const char*>(data), bytes);
}

void AtomicFile::commit() {
  check(fd_ >= 0, path_, ": committed twice");
  flush();
  // Some network file systems have no fsync for what they hold: they answer EINVAL.
  if (fsync(fd_) != 0 && errno != EINVAL)
    fail(Exit::kDevice, path_, ": writing failed: ", std::strerror(errno),
         "; free some space or write elsewhere");
  if (rename(temporary_.c_str(), path_.c_str()) != 0)
    fail(Exit::kUsage, path_, ": cannot put the finished file there: ", std::strerror(errno));
  close(fd_);
  fd_ = -1;
  const std::string folder = std::filesystem::path(path_).parent_path().string();
  const int dir = open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (dir >= 0) {
    fsync(dir);
    close(dir);
  }
}

void write_file(const std::string& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

void remove_file(const std::string& path) {
  if (unlink(path.c_str()) != 0 && errno != ENOENT)
    fail(Exit::kUsage, path, ": cannot remove the file of an earlier run: ", std::strerror(errno));
}

void remove_temporaries(const std::string& folder,
                        const std::function<bool(const std::string&)>& ours) {
  constexpr std::string_view kEnd = ".tmp";
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    std::string name = entry.path().filename().string();
    if (!name.starts_with('.') || !name.ends_with(kEnd) || name == kEnd) continue;
    name = name.substr(1, name.size() - 1 - kEnd.size());
    const size_t dot = name.rfind('.');
    if (dot != std::string::npos &&
        name.find_first_not_of("0123456789-", dot + 1) == std::string::npos &&
        ours(name.substr(0, dot)))
      remove_file(entry.path().string());
  }
}

}  // namespace ff
