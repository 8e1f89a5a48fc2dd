// Linear layers and matrix products: cuBLASLt's, and what it does not add itself.
#include <algorithm>

#include "cuda/blas.h"
#include "cuda/device.cuh"
#include "cuda/table.h"

namespace ff::cuda {
namespace {

constexpr int kThreads = 256;

/// c = act(c + bias), every element of c [b, m, n] with any strides; without products, c's old
/// values count for nothing.
template <class T>
__global__ void finish_kernel(T* __restrict__ c, const float* __restrict__ bias, Activation act,
                              bool products, int64_t m, int64_t n, int64_t sb, int64_t sm,
                              int64_t sn, int64_t total) {
  after_earlier();
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < total; i += step) {
    const int64_t column = i % n, row = i / n;
    T* at = c + row / m * sb + row % m * sm + column * sn;
    float v = products ? to_float(*at) : 0.0f;
    if (bias) v += bias[column];
    if (act == Activation::kRelu) v = fmaxf(v, 0.0f);
    if (act == Activation::kSigmoid) v = 1.0f / (1.0f + expf(-v));
    *at = from_float<T>(v);
  }
}

void finish(const Tensor& c, const Tensor& narrow, Activation act, bool products) {
  const Tensor bias = narrow ? narrow.to(Dtype::f32) : narrow;
  by_type(c, [&](auto t) {
    using T = decltype(t);
    const auto blocks =
        std::min(ceil_div(c.numel(), kThreads), int64_t(device_info().sm_count) * 16);
    start_kernel(finish_kernel<T>, blocks, kThreads, 0, data<T>(c), data_or_null<float>(bias), act,
                 products, c.size(1), c.size(2), c.stride(0), c.stride(1), c.stride(2), c.numel());
    check_launch("linear", c.shape());
  });
}

}  // namespace

void linear(const Tensor& x, const Tensor& w, const Tensor& bias, Activation act,
            const Tensor& base, const Tensor& y) {
  if (!y.numel()) return;
  if (!x.size(2)) {
    if (base && base.raw() != y.raw()) y.copy_from(base);
    if (bias || !base) finish(y, bias, act, base.defined());
    return;
  }
  const Activation fused = act == Activation::kSigmoid ? Activation::kNone : act;
  if (product(x, w, bias, fused, base, y)) {
    if (act == Activation::kSigmoid) finish(y, {}, act, true);
  } else {
    product(x, w, {}, Activation::kNone, base, y);
    finish(y, bias, act, true);
  }
}

void matmul(const Tensor& a, const Tensor& b, const Tensor& c) {
  linear(a, b, {}, Activation::kNone, {}, c);
}

}  // namespace ff::cuda
