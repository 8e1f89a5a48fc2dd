// The configuration of a training run: model, data, losses, optimizer and run, in one YAML file.
//
// `preset: NAME` chooses the model (configs/presets.yaml), `recipe: NAME` begins from one of
// configs/*.yaml. Layers apply in this order, the later over the earlier: the preset that the last
// layer to name one names, the recipe's recipe, the recipe, the file, each key=value.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/model/config.h"
#include "core/train/optimizer.h"

namespace ff {

struct TrainDataConfig {
  std::vector<std::string> shards;  ///< of `fastfold prepare build`, files or folders
  int64_t crop_size = 256;          ///< residues
  int64_t max_msa_clusters = 128, max_extra_msa = 1024, max_templates = 4;
  double distillation_prob = 0.75;
  double clamp_prob = 0.9;  ///< share of samples whose backbone FAPE is clamped
  bool uniform_recycling = true;
};
struct DataFilterConfig {
  double max_resolution = 9.0;  ///< angstrom
  double max_single_aa_prop = 0.8;
  bool accept_by_length_and_cluster = true;
  std::string cluster_file, date_max;  ///< "" none; date YYYY-MM-DD
};
struct BlockDeleteConfig {
  double fraction = 0.3;
  int64_t num_blocks = 5;
};

/// Weights of the losses. A weight above zero needs the preset's head.
struct LossWeights {
  double fape = 1.0, supervised_chi = 1.0, distogram = 0.3, masked_msa = 2.0, plddt = 0.01,
         violation = 0.0, experimentally_resolved = 0.0, tm = 0.0;
};

struct RunConfig {
  int64_t global_batch = 128;  ///< samples a step
  std::optional<int64_t>
      accumulate;  ///< samples a rank takes one after another; unset: all its own
  int64_t dap = 1;
  std::string precision = "bf16";  ///< of activations: bf16, f32, tf32 or, for tests, f64
  /// How many of the trunk's blocks are computed again in the backward instead of being kept: auto
  /// (those that memory has no room for), blocks (all), none or a number.
  std::string recompute = "auto";
  bool graphs = true;  ///< passes of shapes that come often are CUDA graphs
  int64_t max_steps = 75'000;
  int64_t checkpoint_every = 500, keep = 3, val_every = 1000,
          log_every = 1;  ///< steps; val 0: never
  std::string logdir;
  std::optional<int64_t> threads, loader_threads;  ///< unset: by the machine
};

struct TrainConfig {
  int64_t seed = 42;
  ModelConfig model;  ///< its `data` is what validation takes: data.validation and data.masked_msa
  TrainDataConfig train;
  DataFilterConfig filter;
  BlockDeleteConfig block_delete;
  DataConfig features;  ///< of training samples: sizes of data.train, masking, templates
  std::vector<std::string> validation_shards;
  LossWeights loss;
  OptimConfig optim;
  RunConfig run;
};

/// The recipes compiled in: the names of configs/*.yaml without presets.yaml.
std::vector<std::string> recipe_names();

/// Reads a file (or, where there is none of that name, a recipe) and the overrides. Throws
/// Exit::kUsage with file and line on an unknown key (with the nearest name), a wrong type, a
/// number out of its range and what does not fit together; Exit::kInput on a file that cannot be
/// read.
TrainConfig read_train_config(const std::string& path_or_recipe,
                              const std::vector<std::string>& overrides = {});

/// Every key with its value: what read_train_config and parse_train_config take for the same
/// configuration.
std::string train_config_yaml(const TrainConfig& config);
std::string train_config_json(const TrainConfig& config);
/// From such text, named `file` in errors.
TrainConfig parse_train_config(const std::string& text, const std::string& file);

/// "optim.lr: 0.001, 0.0005" for each key whose values differ between two results of
/// train_config_json; those of keys that begin with `prefix`.
std::vector<std::string> config_differences(const std::string& before, const std::string& now,
                                            const std::string& prefix = "");

}  // namespace ff
