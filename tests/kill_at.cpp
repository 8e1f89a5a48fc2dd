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

template <class Function>
int opened(Function* function, const char* name, const char* path, int flags, mode_t mode) {
  const int fd = real(function, name)(path, flags, mode);
  if (flags & O_CREAT) step(path);
  return fd;
}

mode_t mode_of(int flags, va_list arguments) {
  return flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
}

}  // namespace

extern "C" {

int open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = mode_of(flags, arguments);
  va_end(arguments);
  return opened(&open, "open", path, flags, mode);
}

int open64(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = mode_of(flags, arguments);
  va_end(arguments);
  return opened(&open64, "open64", path, flags, mode);
}

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
