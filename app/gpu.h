// Opens the GPU module when a GPU is asked for, and says in one sentence why none can be used.
#pragma once

#include <string>

#include "cuda/module.h"

namespace ff {

/// What the GPU module found. Where the module is missing or cannot be opened, an empty report with
/// the reason. Looks beside the program, then in ../lib/fastfold (an installed program).
GpuReport find_gpus();

/// One sentence, without a final stop, on why `--device cuda` cannot be had.
std::string why_no_gpu();

}  // namespace ff
