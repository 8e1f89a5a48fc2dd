// Memory and precision, named for people.
#include "app/report.h"

#include "core/base/log.h"
#include "core/base/machine.h"

namespace ff {

Dtype dtype_of_precision(const std::string& precision) {
  for (Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f64})
    if (precision == name_of(dtype)) return dtype;
  fail(Exit::kUsage, "unknown precision '", precision, "' (f32, bf16)");
}

std::string memory_line() {
  return cat("peak memory ", show_bytes(peak_rss()), " (tensors ", show_bytes(memory_count().peak),
             ")");
}

}  // namespace ff
