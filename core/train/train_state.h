// Everything that a training run needs to go on: in memory, in one file, and in the run's folder.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/model/config.h"
#include "core/tensor/arrays.h"
#include "io/file_lock.h"

namespace ff {

/// Samples are a function of (seed, step, index), so that the step is the loader's state too.
struct TrainState {
  Arrays params, m, v, ema;  ///< f32, by parameter name
  int64_t step = 0, samples = 0;
  int64_t adam_step = 0;       ///< updates made: steps without those skipped
  int64_t skipped = 0;         ///< steps that were not finite
  std::optional<double> best;  ///< validation score of the best checkpoint so far
  int64_t best_step = 0;
  std::string config, model;  ///< train_config_json and the preset's name
};

/// Fresh: zeros for Adam, the average at the parameters.
TrainState initial_state(Arrays params);

/// One checkpoint file (io/checkpoint.h): arrays "NAME" the averaged parameters, which `predict`
/// takes, "train/params/NAME", "train/adam_m/NAME", "train/adam_v/NAME". Throws as
/// write_checkpoint.
void write_train_state(const std::string& path, const TrainState& state);
/// Throws Exit::kInput as read_checkpoint, and where the file is no training checkpoint.
TrainState read_train_state(const std::string& path);
/// The averaged parameters alone of a checkpoint's arrays: what is not under "train/".
Arrays averaged_params(Arrays arrays);

/// Throws Exit::kInput naming `file`, saying which settings and which parameters differ, unless the
/// state's parameters are those of `model`; `config_json` is the present train_config_json.
void check_same_model(const TrainState& state, const ModelConfig& model,
                      const std::string& config_json, const std::string& file);

/// step_NNNNNNNN.h5 of a folder, oldest first.
std::vector<std::string> checkpoints_in(const std::string& folder);
/// best.h5 of a run's folder, else the newest checkpoint; "" where there is none.
std::string best_checkpoint(const std::string& folder);

/// A run's configuration, in its folder.
constexpr const char* kRunConfig = "config.yaml";

/// A run's folder: checkpoints step_00000500.h5 and best.h5, locked against a second trainer.
class RunFolder {
 public:
  /// Makes the folder, locks it and removes temporary files that a killed run left. Throws
  /// Exit::kUsage where another trainer has it.
  explicit RunFolder(const std::string& path);

  const std::string& path() const { return path_; }
  /// Writes step_NNNNNNNN.h5, as best.h5 too where `is_best`, then removes all but the newest
  /// `keep`. Returns its path. Throws Exit::kDevice on a full disk, all older checkpoints whole.
  std::string save(const TrainState& state, int64_t keep, bool is_best) const;
  /// The newest checkpoint that can be read, with its path; warns of those that are damaged.
  /// Throws Exit::kInput where there are checkpoints and none can be read.
  std::optional<std::pair<TrainState, std::string>> latest() const;
  std::vector<std::string> checkpoints() const { return checkpoints_in(path_); }

 private:
  std::string path_;
  std::optional<FileLock> lock_;
};

}  // namespace ff
