// Parameter files: which preset they are of, and where they come from.
#pragma once

#include <string>
#include <vector>

#include "core/model/config.h"
#include "core/tensor/arrays.h"

namespace CLI {
class App;
}

namespace ff {

/// What the command line changes of a preset: --config, --set and --max-msa, applied in this order.
struct ConfigChanges {
  std::vector<std::string> files, overrides;
  std::string max_msa;  ///< "512:5120"

  void add_to(CLI::App& app);
  /// Throws Exit::kUsage naming the flag or the file's line, Exit::kInput for a missing file.
  void apply(ModelConfig& config) const;
};

struct ModelFile {
  ModelConfig config;
  Arrays arrays;
};

/// Reads parameters (.npz, or our checkpoint .h5). An empty preset is taken from the file's name
/// (params_model_1_ptm.npz), else from the names and shapes it holds. Throws Exit::kInput when they
/// fit none, Exit::kUsage for an unknown preset.
ModelFile read_model_file(const std::string& path, const std::string& preset);

/// The parameter files that `--params` names. A folder (or its params/) stands for its
/// params_model_N*.npz in the order of N: those of `model_preset` (monomer, monomer_ptm,
/// monomer_casp14; "" takes the _ptm ones where there are any); that of a training run for its
/// best or else newest checkpoint. `num_models` > 0 keeps the first so
/// many. Throws Exit::kInput on what is not there, Exit::kUsage for a preset that is not ours.
std::vector<std::string> find_parameter_files(const std::vector<std::string>& params,
                                              const std::string& model_preset, int num_models);

/// The arrays of a parameter file by its extension, or of a training run's best checkpoint; bf16 as
/// f32. Into `config` goes the training configuration that a checkpoint holds, as JSON.
Arrays read_parameters(const std::string& path, std::string* config = nullptr);

/// "model_1_ptm" of "x/params_model_1_ptm.npz"; "" where the name tells nothing.
std::string preset_of_name(const std::string& path);

/// The first preset (by name; model_1 before model_2) whose parameters these are; "" for none.
std::string preset_of_arrays(const Arrays& arrays);

/// A sentence on where to get parameters.
std::string where_parameters_are();

}  // namespace ff
