// Arrays: named tensors, as npz files, feature batches and outputs hold them.
#pragma once

#include <map>
#include <string>

#include "core/tensor/tensor.h"

namespace ff {

/// Arrays by name, such as DeepMind's "scope//name" or AlphaFold's "msa_feat".
using Arrays = std::map<std::string, Tensor>;

}  // namespace ff
