// Dropout: the masks, checks and dispatch.
#include "core/ops/dropout.h"

#include "core/base/rng.h"
#include "core/ops/kernels.h"

namespace ff {
namespace {

void check_factors(const Var& x, const Tensor& factors) {
  check(x.rank() >= 2 && factors.shape() == Dims{x.size(-2), x.size(-1)}, "dropout of ", x.shape(),
        " with factors ", factors.shape());
}

/// The backward of x's side: dx += dy times factors.
void dropout_backward(const Var& x, const Tensor& factors, const Tensor& dy) {
  if (const Tensor dx = x.grad_into()) kernels(dx.device()).add_dropped(dy, factors, dx);
}

}  // namespace

Tensor DropoutStream::factors(double rate, uint64_t place, int64_t n, int64_t c, Dtype dtype,
                              Device device) const {
  if (!active || rate == 0) return {};
  check(rate > 0 && rate < 1, "a dropout rate of ", rate);
  const Rng rng(seed, {step, sample, recycle, stack, block, place});
  const Tensor all = Tensor::empty({n, c});
  for (int64_t i = 0; i < n * c; i += 4) {
    const auto words = rng.block(uint64_t(i / 4));
    for (int64_t k = 0; k < 4 && i + k < n * c; ++k)
      all.data<float>()[i + k] = double(unit_float(words[k])) < rate ? 0.0f : 1.0f;
  }
  const Tensor to = all.to(dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32);
  const auto scale = [&](auto* p) {
    for (int64_t i = 0; i < n * c; ++i) p[i] = std::decay_t<decltype(*p)>(p[i] / (1 - rate));
  };
  dtype == Dtype::f64 ? scale(to.data<double>()) : scale(to.data<float>());
  return to.to(device);
}

Var dropout(const Var& x, const Tensor& factors) {
  if (!factors.defined()) return x;
  check_factors(x, factors);
  const Tensor y = Tensor::zeros(x.shape(), x.value().dtype(), x.value().device());
  kernels(y.device()).add_dropped(x.value(), factors, y);
  return result("dropout", y, {&x}, [factors, to = x.gradient_only()](const Tensor& dy) {
    dropout_backward(to, factors, dy);
  });
}

Var dropout_add(const Var& residual, const Var& x, const Tensor& factors) {
  check(residual.shape() == x.shape(), "add ", x.shape(), " to ", residual.shape());
  check_factors(x, factors);
  check(!NoGrad::active() || !residual.requires_grad(), "a recorded tensor would be overwritten");
  const Tensor y = NoGrad::active() ? residual.value() : residual.value().clone();
  kernels(y.device()).add_dropped(x.value(), factors, y);
  return result("dropout_add", y, {&residual, &x},
                [factors, r = residual.gradient_only(), to = x.gradient_only()](const Tensor& dy) {
                  if (const Tensor dr = r.grad_into()) kernels(dr.device()).add(dy, dr);
                  dropout_backward(to, factors, dy);
                });
}

}  // namespace ff
