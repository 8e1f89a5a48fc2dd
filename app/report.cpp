// Memory and precision, named for people.
#include "app/report.h"

#include <fstream>

#include "core/base/log.h"

namespace ff {

Dtype dtype_of_precision(const std::string& precision) {
  for (Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f64})
    if (precision == name_of(dtype)) return dtype;
  fail(Exit::kUsage, "unknown precision '", precision, "' (f32, bf16)");
}

int64_t peak_rss() {
  // Not getrusage: there a child starts with its parent's peak.
  std::ifstream in("/proc/self/status");
  for (std::string word; in >> word;)
    if (int64_t kib = 0; word == "VmHWM:" && in >> kib) return kib * 1024;
  return 0;
}

std::string memory_line() {
  return cat("peak memory ", show_bytes(peak_rss()), " (tensors ", show_bytes(memory_count().peak),
             ")");
}

}  // namespace ff
