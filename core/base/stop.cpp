// The handlers of SIGINT and SIGTERM.
#include "core/base/stop.h"

#include <unistd.h>

#include <csignal>

namespace ff {

namespace {

volatile std::sig_atomic_t g_signal = 0;

void on_signal(int signal) {
  if (g_signal) _exit(128 + signal);
  g_signal = signal;
  constexpr char kInterrupted[] = "\nfastfold: interrupted, stopping\n";
  constexpr char kTerminated[] = "\nfastfold: terminated, stopping\n";
  // After ^C a terminal's cursor stands in the progress line.
  const bool terminal = isatty(STDERR_FILENO);
  const char* text = signal == SIGINT ? kInterrupted : kTerminated;
  const size_t size = (signal == SIGINT ? sizeof kInterrupted : sizeof kTerminated) - 1;
  const ssize_t written = write(STDERR_FILENO, text + !terminal, size - !terminal);
  (void)written;
}

}  // namespace

void install_stop_handlers() {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

int stop_requested() { return g_signal; }

void throw_if_stopped() {
  if (g_signal) throw Stopped{int(g_signal)};
}

}  // namespace ff
