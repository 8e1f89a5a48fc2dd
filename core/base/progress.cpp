// Draws the progress of a task on standard error.
#include "core/base/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "core/base/log.h"

namespace ff {

namespace {

constexpr double kTerminalInterval = 0.1, kPlainInterval = 15;  // seconds between two updates
constexpr double kLeastShare = 0.01;                            // no estimate before this is done
constexpr int kBarWidth = 30;

}  // namespace

Progress::Progress(std::string title)
    : title_(std::move(title)),
      terminal_(isatty(STDERR_FILENO)),
      start_(Clock::now()),
      last_(start_) {}

Progress::~Progress() {
  if (drawn_) set_status_line("");
}

void Progress::update(const std::string& stage, double done) {
  if (is_quiet()) return;
  const Clock::time_point now = Clock::now();
  const auto seconds = [&](Clock::time_point since) {
    return std::chrono::duration<double>(now - since).count();
  };
  if (seconds(last_) < (terminal_ ? kTerminalInterval : kPlainInterval)) return;
  last_ = now;
  done = std::clamp(done, 0.0, 1.0);
  const std::string left =
      done < kLeastShare ? "" : ", " + show_seconds(seconds(start_) * (1 - done) / done) + " left";
  const std::string text = cat(title_, " ", int(done * 100), " %", left, ": ", stage);
  if (!terminal_) {
    log_notice(text);
    return;
  }
  const int full = int(std::lround(done * kBarWidth));
  set_status_line("[" + std::string(full, '#') + std::string(kBarWidth - full, '.') + "] " + text);
  drawn_ = true;
}

}  // namespace ff
