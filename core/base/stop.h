// SIGINT, SIGTERM and SIGUSR1 (what SLURM sends before a time limit): the first asks the work to
// stop at its next step, so that temporary files are removed on the way out; a second one, a second
// or more later, ends the process at once.
#pragma once

namespace ff {

/// Thrown where the work stops. Not a std::exception: code that goes on after one failed target
/// must not go on after this.
struct Stopped {
  int signal;
  int exit_code() const { return 128 + signal; }
};

/// Starts the thread that receives the signals and writes the one line that says so; all threads
/// started later keep them blocked. oneDNN's kernels use the stack pointer as if no signal could
/// come: a handler's frame on a computing thread's stack overwrites memory. A signal that is
/// ignored (a shell's background job) stays so.
void watch_stop_signals();
/// The signal that asked, or 0.
int stop_requested();
void throw_if_stopped();

}  // namespace ff
