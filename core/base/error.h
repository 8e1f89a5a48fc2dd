// Errors: one exception type with the exit code it stands for, and the two ways to throw it.
// Rule: a message names the file, key or tensor, what was found, what was expected and the next
// step.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace ff {

/// Exit codes of the program (README.md lists them for users).
enum class Exit : int {
  kDone = 0,
  kBug = 1,      ///< our mistake
  kUsage = 2,    ///< command line or configuration
  kInput = 3,    ///< input data
  kDevice = 4,   ///< device or memory
  kPartial = 5,  ///< some targets failed
  kRequeue = 75  ///< checkpointed; may be started again
};

class Error : public std::runtime_error {
 public:
  Error(Exit code, const std::string& what) : std::runtime_error(what), code_(code) {}
  Exit code() const { return code_; }

 private:
  Exit code_;
};

/// Streams its arguments into one string.
template <class... Parts>
std::string cat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class... Parts>
[[noreturn]] void fail(Exit code, const Parts&... parts) {
  throw Error(code, cat(parts...));
}

/// Throws Exit::kBug unless `ok`: for what no input can cause.
template <class... Parts>
void check(bool ok, const Parts&... parts) {
  if (!ok) [[unlikely]]
    fail(Exit::kBug, parts...);
}

/// Throws Exit::kInput unless `ok`: for what a file or a user brought.
template <class... Parts>
void check_input(bool ok, const Parts&... parts) {
  if (!ok) [[unlikely]]
    fail(Exit::kInput, parts...);
}

}  // namespace ff
