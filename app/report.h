// What the commands tell about their run.
#pragma once

#include <string>
#include <vector>

#include "core/tensor/tensor.h"

namespace ff {

/// "f32", "bf16" or "f64" as a dtype.
Dtype dtype_of_precision(const std::string& precision);

/// The program's arguments as they were given, its name first.
std::vector<std::string> command_line();

/// Best rate of large matrix products on this machine's threads, FLOP/s: the ceiling that shares
/// are counted with. Takes about a second.
double matrix_rate(Dtype dtype, Device device = {});

/// "peak memory 4.51 GiB (tensors 4.12 GiB)"
std::string memory_line();

}  // namespace ff
