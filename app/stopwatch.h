// How benchmarks make their numbers and take their times.
#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

#include "core/base/rng.h"
#include "core/tensor/tensor.h"

namespace ff {

inline double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Uniform numbers in [-spread, spread], a block of them over and over: only its making is quick.
inline Tensor noise(const Dims& shape, uint64_t stream, Dtype dtype, Device device,
                    float spread = 0.05f) {
  const int64_t n = shape.product(), block = std::min<int64_t>(n, (1 << 20) - 3);
  if (n == 0) return Tensor::empty(shape, dtype, device);
  const Tensor some = Tensor::empty({1, block});
  const Rng random(1, {stream});
  for (int64_t i = 0; i < block; ++i)
    some.data<float>()[i] = spread * (2 * unit_float(random.word(uint64_t(i))) - 1);
  const int64_t blocks = (n + block - 1) / block;
  const Tensor all = Tensor::empty({blocks, block}, dtype, device);
  all.copy_from(some.to(device).expand(0, blocks));
  return all.view({blocks * block}).narrow(0, 0, n).view(shape);
}

inline Tensor noise(const Dims& shape, uint64_t stream, float spread = 0.05f) {
  return noise(shape, stream, Dtype::f32, Device{}, spread);
}

inline Tensor ones(const Dims& shape) {
  const Tensor t = Tensor::empty(shape);
  std::fill_n(t.data<float>(), t.numel(), 1.0f);
  return t;
}

/// Median seconds of f, of the lower half for an even count. On a GPU f is warm, and a sample is as
/// many calls, one behind the other, as take ten milliseconds or more, and no fewer than `fewest`.
template <class F>
double median_seconds(Device device, int64_t repetitions, F f, int fewest = 1) {
  const auto run = [&](int calls) {
    synchronize(device);
    const double start = seconds();
    for (int i = 0; i < calls; ++i) f();
    synchronize(device);
    return (seconds() - start) / calls;
  };
  int calls = 1;
  if (device.kind != Device::cpu) {
    run(1);
    calls = int(std::clamp(10e-3 / run(1), double(fewest), 200.0));
  }
  std::vector<double> samples;
  for (int64_t i = 0; i < repetitions; ++i) samples.push_back(run(calls));
  const auto middle = samples.begin() + (repetitions - 1) / 2;
  std::nth_element(samples.begin(), middle, samples.end());
  return *middle;
}

}  // namespace ff
