// metrics.jsonl: one line of JSON for each step that is logged. It only grows, but for what a
// resumed run will write again.
//
// Records are {"kind": "train", "step": 12, NAME: NUMBER, ...} or of kind "validation". Names are
// TensorBoard's tags, the same as in the event file:
//   loss/total, loss/TERM             means over the step's samples
//   val/lddt_ca, val/tm, val/gdt_ts, val/gdt_ha, val/rmsd, val/drmsd; train/lddt_ca
//   optim/lr, optim/grad_norm, optim/clip_rate (0 to 1), optim/skipped (steps so far)
//   run/samples, run/seconds (since the process began), run/memory (bytes);
//   since the record before: run/samples_per_s, run/tflops, run/share_of_peak (of the rate of large
//   matrix products on the same threads), run/loader_stall (0 to 1)
#pragma once

#include <cstdint>
#include <string>

#include "io/event_file.h"

namespace ff {

class TrainingLog {
 public:
  /// Opens RUN/metrics.jsonl to go on after `step`: records of later steps, and a line that a kill
  /// left unfinished, are cut off. Throws Exit::kUsage where it cannot be written.
  TrainingLog(const std::string& run, int64_t step);
  ~TrainingLog();
  TrainingLog(const TrainingLog&) = delete;
  TrainingLog& operator=(const TrainingLog&) = delete;

  /// Appends one record; a value that is not finite is written null. Throws Exit::kDevice when
  /// writing fails.
  void write(const std::string& kind, int64_t step, const Scalars& scalars);

 private:
  std::string path_;
  int fd_ = -1;
};

}  // namespace ff
