// The command line, memory and precision, named for people.
#include "app/report.h"

#include <algorithm>
#include <chrono>
#include <fstream>

#include "core/base/log.h"
#include "core/base/machine.h"
#include "core/ops/kernels.h"

namespace ff {

Dtype dtype_of_precision(const std::string& precision) {
  for (Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f64})
    if (precision == name_of(dtype)) return dtype;
  if (precision == "tf32") return Dtype::f32;
  fail(Exit::kUsage, "unknown precision '", precision, "' (f32, tf32, bf16)");
}

std::vector<std::string> command_line() {
  std::ifstream in("/proc/self/cmdline", std::ios::binary);
  std::vector<std::string> arguments;
  for (std::string word; std::getline(in, word, '\0');) arguments.push_back(word);
  return arguments;
}

double matrix_rate(Dtype dtype, Device device) {
  // f64 is for tests, whose products are plain loops.
  const int64_t size = dtype == Dtype::f64 ? 128 : device.kind == Device::cpu ? 2048 : 8192;
  const Tensor values = Tensor::empty({1, size, size});
  for (int64_t i = 0; i < values.numel(); ++i)
    values.data<float>()[i] = float(i % 17) * 0.1f - 0.8f;
  const Tensor a = values.to(dtype).to(device), c = Tensor::empty(values.shape(), dtype, device);
  constexpr double kLongEnough = 0.2;  // seconds
  double best = 1e9, total = 0;
  // The first also plans.
  for (int i = 0; i < 2 || (i < 8 && total < kLongEnough); ++i) {
    synchronize(device);
    const auto start = std::chrono::steady_clock::now();
    kernels(device).matmul(a, a, c);
    synchronize(device);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::min(best, took.count());
    total += took.count();
  }
  return 2.0 * double(size * size * size) / best;
}

std::string memory_line() {
  const int64_t gpu = memory_count(Device::cuda).peak;
  return cat("peak memory ", show_bytes(peak_rss()), " (tensors ", show_bytes(memory_count().peak),
             gpu ? ", on the GPU " + show_bytes(gpu) : "", ")");
}

}  // namespace ff
