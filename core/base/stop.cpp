// The thread that waits for SIGINT, SIGTERM and SIGUSR1.
#include "core/base/stop.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <thread>

#include "core/base/log.h"

namespace ff {

namespace {

std::atomic<int> g_signal{0};

/// A second signal ends the program at once, unless it is the echo of the first: timeout(1), mpirun
/// and schedulers send one to the process and to its group.
void wait_for_signals(sigset_t signals) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::seconds kEcho(1);
  Clock::time_point first;
  while (true) {
    int signal = 0;
    if (sigwait(&signals, &signal) != 0) return;
    if (g_signal) {
      if (Clock::now() - first > kEcho) _exit(128 + signal);
      continue;
    }
    first = Clock::now();
    g_signal = signal;
    log_line(signal == SIGINT ? "fastfold: interrupted, stopping"
                              : "fastfold: terminated, stopping");
  }
}

}  // namespace

void watch_stop_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (int signal : {SIGINT, SIGTERM, SIGUSR1}) {
    struct sigaction now = {};
    if (sigaction(signal, nullptr, &now) == 0 && now.sa_handler != SIG_IGN)
      sigaddset(&signals, signal);
  }
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread(wait_for_signals, signals).detach();
}

int stop_requested() { return g_signal; }

void throw_if_stopped() {
  if (const int signal = g_signal) throw Stopped{signal};
}

}  // namespace ff
