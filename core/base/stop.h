// SIGINT and SIGTERM: the first asks the work to stop at its next step, so that temporary files are
// removed on the way out; the second ends the process at once.
#pragma once

namespace ff {

/// Thrown where the work stops. Not a std::exception: code that goes on after one failed target
/// must not go on after this.
struct Stopped {
  int signal;
  int exit_code() const { return 128 + signal; }
};

/// The handler writes the one line that says so.
void install_stop_handlers();
/// The signal that asked, or 0.
int stop_requested();
void throw_if_stopped();

}  // namespace ff
