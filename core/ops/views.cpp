// Work by ranges of rows, on all threads of the CPU at once.
#include "core/ops/views.h"

#include <omp.h>

#include <exception>

namespace ff {

void for_ranges(Device device, int64_t n, int64_t step,
                const std::function<void(int64_t, int64_t)>& f) {
  const int64_t ranges = (n + step - 1) / step;
  if (device.kind != Device::cpu || ranges == 1) {
    for (int64_t i = 0; i < n; i += step) f(i, std::min(step, n - i));
    return;
  }
  std::exception_ptr error;
#pragma omp parallel
  {
    // What f calls runs on this thread alone: no barriers between its operations, and its
    // temporaries stay in this core's cache.
    omp_set_num_threads(1);
    const NoGrad no_grad;
#pragma omp for schedule(dynamic)
    for (int64_t r = 0; r < ranges; ++r) try {
        f(r * step, std::min(step, n - r * step));
      } catch (...) {
#pragma omp critical(for_ranges_error)
        error = std::current_exception();
      }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace ff
