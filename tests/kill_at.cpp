// Preloaded into the program: with KILL_AT=N the process is killed before or after its N-th
// operation on a file in the folder `out`, so that a test can end a run at every moment that leaves
// other files.
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdarg>
#include <cstdlib>
#include <cstring>

namespace {

void step(const char* path) {
  static const char* const at = std::getenv("KILL_AT");
  static std::atomic<int> steps{0};
  if (at && std::strncmp(path, "out/", 4) == 0 && ++steps == std::atoi(at)) kill(getpid(), SIGKILL);
}

template <class Function>
Function* real(Function*, const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

int open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
  va_end(arguments);
  const int fd = real(&open, "open")(path, flags, mode);
  if (flags & O_CREAT) step(path);
  return fd;
}

// The same on 64-bit Linux.
int open64(const char* path, int flags, ...) __attribute__((alias("open")));

int rename(const char* from, const char* to) noexcept {
  step(to);
  const int result = real(&rename, "rename")(from, to);
  step(to);
  return result;
}

int link(const char* from, const char* to) noexcept {
  const int result = real(&link, "link")(from, to);
  step(to);
  return result;
}

int unlink(const char* path) noexcept {
  const int result = real(&unlink, "unlink")(path);
  step(path);
  return result;
}

int remove(const char* path) noexcept {
  const int result = real(&remove, "remove")(path);
  step(path);
  return result;
}

}  // extern "C"
