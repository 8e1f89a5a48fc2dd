// The thread that waits for SIGINT, SIGTERM and SIGUSR1.
#include "core/base/stop.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <thread>

#include "core/base/log.h"

namespace ff {

namespace {

std::atomic<int> g_signal{0};

void wait_for_signals(sigset_t signals) {
  while (true) {
    int signal = 0;
    if (sigwait(&signals, &signal) != 0) return;
    if (g_signal.exchange(signal)) _exit(128 + signal);
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
