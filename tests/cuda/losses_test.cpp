// The losses' kernels on the GPU, in f32, against the CPU's in f64 on the same numbers.
#include "tests/cuda/twins.h"

using namespace ff;
using namespace ff::test;

TEST_CASE("GPU: cross-entropy of rows of logits") {
  if (!have_gpu()) return;
  Twins twins;
  for (const Dims& shape : {Dims{1, 1}, {0, 64}, {77, 23}, {5003, 64}, {300, 50}, {9, 129}}) {
    INFO(shape);
    const int64_t rows = shape[0], n = shape[1];
    const Twin logits = twins.normal(shape, Dtype::f32, 5),
               classes = twins.integers({rows}, int32_t(n)),
               weights = twins.mask({rows}).cast(Dtype::f64), gradient = twins.poison(shape);
    // Rows without weight are left as they are.
    for (const Tensor& t : {gradient.cpu, gradient.gpu})
      for (int64_t r = 0; r < rows; ++r)
        if (weights.cpu.data<double>()[r] == 0) t.narrow(0, r, 1).copy_from(Tensor::zeros({1, n}));
    const Tensor loss = Tensor::zeros({1}, Dtype::f64), gpu_loss = loss.to(kGpu),
                 want = gradient.cpu.to(Dtype::f64);
    const double norm = 1 / (1e-6 + 0.75 * double(rows));
    kernels(Device{}).cross_entropy(logits.cpu.to(Dtype::f64), classes.cpu, weights.cpu, norm, loss,
                                    want);
    kernels(kGpu).cross_entropy(logits.gpu, classes.gpu, weights.gpu, norm, gpu_loss, gradient.gpu);
    compare("loss", gpu_loss.to(Device{}), loss, Tolerance::of(Dtype::f32));
    // Gradients are a row's share of the mean: compared at the size of one row's.
    const Tensor got = gradient.gpu.to(Device{}).to(Dtype::f64);
    for (const Tensor& t : {got, want})
      for (int64_t i = 0; i < t.numel(); ++i) t.data<double>()[i] /= norm;
    compare("gradient", got, want, Tolerance::of(Dtype::f32));
    kernels(kGpu).cross_entropy(logits.gpu, classes.gpu, weights.gpu, norm, gpu_loss, {});
    compare("loss alone", gpu_loss.to(Device{}), loss, Tolerance::of(Dtype::f32));
  }
}
