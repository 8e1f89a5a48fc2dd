// A lock of flock(2), with its holder's name in it.
#include "io/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/base/log.h"
#include "io/file.h"

namespace ff {

FileLock::FileLock(std::string path, const std::string& what) : path_(std::move(path)) {
  while (true) {
    fd_ = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd_ < 0)
      fail(Exit::kUsage, path_, ": cannot write there: ", std::strerror(errno),
           "; check that the folder may be written");
    if (flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      const int reason = errno;
      char holder[128] = {};
      const ssize_t length = pread(fd_, holder, sizeof holder - 1, 0);
      close(fd_);
      fd_ = -1;
      if (reason == EINTR) continue;
      if (reason == EWOULDBLOCK)
        fail(Exit::kUsage, what, " is being written by another fastfold (",
             length > 0 ? trim(std::string_view(holder).substr(0, std::strcspn(holder, "\n")))
                        : "process unknown",
             "); wait for it, or write elsewhere");
      log_warning(path_, ": this file system has no locks (", std::strerror(reason),
                  "); let no second run write into the same folder");
      return;
    }
    // The file may have been removed by its last holder since it was opened: then another process
    // can lock a new one of the same name.
    struct stat mine, there;
    if (fstat(fd_, &mine) == 0 && stat(path_.c_str(), &there) == 0 && mine.st_ino == there.st_ino &&
        mine.st_dev == there.st_dev)
      break;
    close(fd_);
  }
  char host[256] = {};
  gethostname(host, sizeof host - 1);
  const std::string text = cat("process ", getpid(), " on ", host, "\n");
  // Only for the other's message: a full disk does not matter.
  if (ftruncate(fd_, 0) == 0) [[maybe_unused]]
    const ssize_t written = pwrite(fd_, text.data(), text.size(), 0);
}

FileLock::~FileLock() {
  if (fd_ < 0) return;
  unlink(path_.c_str());
  close(fd_);
}

}  // namespace ff
