// The command line, memory and precision, named for people.
#include "app/report.h"

#include <fstream>

#include "core/base/log.h"
#include "core/base/machine.h"

namespace ff {

Dtype dtype_of_precision(const std::string& precision) {
  for (Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f64})
    if (precision == name_of(dtype)) return dtype;
  fail(Exit::kUsage, "unknown precision '", precision, "' (f32, bf16)");
}

std::vector<std::string> command_line() {
  std::ifstream in("/proc/self/cmdline", std::ios::binary);
  std::vector<std::string> arguments;
  for (std::string word; std::getline(in, word, '\0');) arguments.push_back(word);
  return arguments;
}

std::string memory_line() {
  const int64_t gpu = memory_count(Device::cuda).peak;
  return cat("peak memory ", show_bytes(peak_rss()), " (tensors ", show_bytes(memory_count().peak),
             gpu ? ", on the GPU " + show_bytes(gpu) : "", ")");
}

}  // namespace ff
