// Parameter files: which preset they are of, and where they come from.
#pragma once

#include <string>

#include "core/model/config.h"
#include "core/tensor/arrays.h"

namespace ff {

struct ModelFile {
  ModelConfig config;
  Arrays arrays;
};

/// Reads parameters (.npz, or our checkpoint .h5). An empty preset is taken from the file's name
/// (params_model_1_ptm.npz), else from the names and shapes it holds. Throws Exit::kInput when they
/// fit none, Exit::kUsage for an unknown preset.
ModelFile read_model_file(const std::string& path, const std::string& preset);

/// The arrays of a parameter file by its extension.
Arrays read_parameters(const std::string& path);

/// "model_1_ptm" of "x/params_model_1_ptm.npz"; "" where the name tells nothing.
std::string preset_of_name(const std::string& path);

/// The first preset (by name; model_1 before model_2) whose parameters these are; "" for none.
std::string preset_of_arrays(const Arrays& arrays);

/// A sentence on where to get parameters.
std::string where_parameters_are();

}  // namespace ff
