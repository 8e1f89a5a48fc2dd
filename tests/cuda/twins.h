// The same operands on the CPU and on the GPU, for tests that hold one kernel against the other:
// fresh random values, poisoned outputs, views of any strides.
#pragma once

#include <cstring>
#include <random>

#include "tests/cuda/gpu.h"
#include "tests/unit/compare.h"

namespace ff::test {

/// One operand: equal values and strides on both devices. An undefined one is absent.
struct Twin {
  Tensor cpu, gpu;
  Tensor whole_cpu, whole_gpu;  ///< what the tensors are views of

  template <class F>
  Twin view(F f) const {
    return {f(cpu), f(gpu), whole_cpu, whole_gpu};
  }
  Twin cast(Dtype dtype) const {
    const Tensor t = cpu.to(dtype), g = t.to(kGpu);
    return {t, g, t, g};
  }
};

class Twins {
 public:
  Twin of(const Tensor& t) const {
    const Tensor g = t.to(kGpu);
    return {t, g, t, g};
  }
  Twin normal(const Dims& shape, Dtype dtype = Dtype::f32, double spread = 1, double mean = 0) {
    std::normal_distribution<double> draw(mean, spread);
    const Tensor t = Tensor::empty(shape, Dtype::f64);
    for (int64_t i = 0; i < t.numel(); ++i) t.data<double>()[i] = draw(engine_);
    return of(t.to(dtype));
  }
  /// Rows apart from each other, the first two axes swapped: [a, b, c] of a larger tensor.
  Twin strided(const Dims& shape, Dtype dtype = Dtype::f32) {
    return normal({shape[1], shape[0] + 1, shape[2] + 8}, dtype).view([&](const Tensor& t) {
      return t.narrow(1, 1, shape[0]).narrow(2, 0, shape[2]).transpose(0, 1);
    });
  }
  Twin mask(const Dims& shape) {
    const Tensor t = Tensor::empty(shape);
    for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = engine_() % 4 != 0;
    return of(t);
  }
  Twin integers(const Dims& shape, int32_t bound) {
    const Tensor t = Tensor::empty(shape, Dtype::i32);
    for (int64_t i = 0; i < t.numel(); ++i) t.data<int32_t>()[i] = int32_t(engine_() % bound);
    return of(t);
  }
  Twin poison(const Dims& shape, Dtype dtype = Dtype::f32) const {
    const Tensor t = Tensor::zeros(shape, Dtype::f64);
    for (int64_t i = 0; i < t.numel(); ++i) t.data<double>()[i] = NAN;
    return of(t.to(dtype));
  }
  Twin affines(int64_t n) {
    const Twin twin = normal({n, 7});
    for (int64_t i = 0; i < n; ++i) {
      float* q = twin.cpu.data<float>() + 7 * i;
      const float length = std::hypot(std::hypot(q[0], q[1]), std::hypot(q[2], q[3]));
      for (int k = 0; k < 4; ++k) q[k] /= length;
    }
    return of(twin.cpu);
  }

  /// f(table, at) once for each device; at(twin) is that device's tensor.
  template <class F>
  void run(F f) const {
    f(kernels(Device{}), [](const Twin& t) -> const Tensor& { return t.cpu; });
    f(kernels(kGpu), [](const Twin& t) -> const Tensor& { return t.gpu; });
  }

 private:
  std::mt19937 engine_{unsigned(Catch::rngSeed())};  // --rng-seed N: other numbers
};

/// Both sides agree in norm, and what lies between a view's elements is as it was. The last use of
/// the twin.
inline void agree(const std::string& name, const Twin& t, double tolerance) {
  if (!t.cpu.defined()) return;
  {
    INFO(name);
    CHECK(norm_error(t.gpu, t.cpu) < tolerance);
  }
  if (t.whole_cpu.numel() == t.cpu.numel()) return;
  for (const Tensor& view : {t.cpu, t.gpu}) view.copy_from(Tensor::zeros(view.shape()));
  const Tensor gpu = t.whole_gpu.to(Device{});
  INFO(name << ": beside the view");
  const auto bytes = size_t(gpu.numel() * size_of(gpu.dtype()));
  REQUIRE(std::memcmp(t.whole_cpu.raw(), gpu.raw(), bytes) == 0);
}

}  // namespace ff::test
