// Draws the progress of a task on standard error.
#include "core/base/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "core/base/log.h"

namespace ff {

namespace {

// Seconds between two updates.
constexpr double kTerminalInterval = 0.1, kPlainInterval = 15, kJsonInterval = 2;
constexpr double kLeastShare = 0.01;  // no estimate before this is done
constexpr int kBarWidth = 30;

}  // namespace

Progress::Progress(std::string title, double before)
    : title_(std::move(title)),
      before_(before),
      terminal_(isatty(STDERR_FILENO)),
      start_(Clock::now()),
      last_(start_),
      last_json_(start_) {}

Progress::~Progress() {
  if (drawn_) set_status_line("");
}

void Progress::update(const std::string& stage, double done) {
  if (is_quiet() && !has_json_log()) return;
  const Clock::time_point now = Clock::now();
  const auto seconds = [&](Clock::time_point since) {
    return std::chrono::duration<double>(now - since).count();
  };
  done = std::clamp(done, 0.0, 1.0);
  const double now_done = done - before_;
  const double left = now_done < kLeastShare * (1 - before_)
                          ? std::nan("")
                          : seconds(start_) * (1 - done) / now_done;
  if (has_json_log() && seconds(last_json_) >= kJsonInterval) {
    last_json_ = now;
    log_event("progress", stage, {{"target", title_}, {"done", done}, {"seconds_left", left}});
  }
  if (is_quiet() || seconds(last_) < (terminal_ ? kTerminalInterval : kPlainInterval)) return;
  last_ = now;
  const std::string text =
      cat(title_, " ", int(done * 100), " %",
          std::isnan(left) ? "" : ", " + show_seconds(left) + " left", ": ", stage);
  if (!terminal_) {
    log_message(Level::kProgress, text);
    return;
  }
  const int full = int(std::lround(done * kBarWidth));
  set_status_line("[" + std::string(full, '#') + std::string(kBarWidth - full, '.') + "] " + text);
  drawn_ = true;
}

}  // namespace ff
