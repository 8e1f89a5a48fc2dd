// Progress of a long task: a bar with an estimate on a terminal, now and then a plain line
// otherwise.
#pragma once

#include <chrono>
#include <string>

namespace ff {

class Progress {
 public:
  /// `title` names the task ("6KWC_1"), of which `before` (0 to 1) was done by an earlier run.
  explicit Progress(std::string title, double before = 0);
  /// Takes the bar away.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `stage` runs now; `done` is the share of the whole that is finished, 0 to 1. Cheap: draws at
  /// most ten times a second, and an event in the JSON log every other second.
  void update(const std::string& stage, double done);

 private:
  using Clock = std::chrono::steady_clock;
  std::string title_;
  double before_;
  bool terminal_, drawn_ = false;
  Clock::time_point start_, last_, last_json_;
};

}  // namespace ff
