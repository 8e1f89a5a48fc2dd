// Keeps two processes from writing the same thing.
#pragma once

#include <string>

namespace ff {

class FileLock {
 public:
  /// Locks the file `path` (made where it is missing) for writing `what`. Throws Exit::kUsage "WHAT
  /// is being written by another fastfold (process N on HOST)". Where the file system has no locks:
  /// a warning, and no protection.
  FileLock(std::string path, const std::string& what);
  /// Removes the file.
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  std::string path_;
  int fd_ = -1;
};

}  // namespace ff
