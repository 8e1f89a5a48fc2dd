// Outer product mean: checks and dispatch.
#include "core/ops/outer_product_mean.h"

#include "core/ops/gradient.h"
#include "core/ops/linear.h"

namespace ff {
Var outer_product_mean(const Var& residual, const Var& left, const Var& right, const Var& w,
                       const Var& b, const Tensor& norm) {
  check(left.rank() == 3 && right.rank() == 3 && left.size(0) == right.size(0) &&
            w.shape() == Dims{left.size(2), right.size(2), residual.size(2)} &&
            residual.shape() == Dims{left.size(1), right.size(1), w.size(2)} &&
            norm.shape() == Dims{left.size(1), right.size(1)},
        "outer product mean of ", left.shape(), " and ", right.shape(), " with w ", w.shape(),
        ", norm ", norm.shape(), " into ", residual.shape());
  check(!NoGrad::active() || !residual.requires_grad(), "a recorded tensor would be overwritten");
  const Tensor& old = residual.value();
  const Tensor z = NoGrad::active() ? old : Tensor::empty(old.shape(), old.dtype(), old.device());
  kernels(z.device())
      .outer_product_mean(left.value(), right.value(), w.value(), b.value(), norm, old, z);
  return result("outer_product_mean", z, {&residual, &left, &right, &w, &b},
                [left, right, w, b, norm, r = residual.gradient_only()](const Tensor& dz) {
                  hand_over(r, dz);
                  const auto room = [](const Var& x) {
                    const Tensor& like = x.value();
                    return x.requires_grad()
                               ? Tensor::empty(like.shape(), like.dtype(), like.device())
                               : Tensor();
                  };
                  const Tensor dleft = room(left), dright = room(right);
                  kernels(dz.device())
                      .outer_product_mean_backward(left.value(), right.value(), w.value(), norm, dz,
                                                   dleft, dright, w.grad_into(), b.grad_into());
                  hand_over(left, dleft);
                  hand_over(right, dright);
                });
}

Tensor pair_count(const Tensor& left, const Tensor& right, Dtype dtype) {
  const auto plain = [&](const Tensor& mask) {
    return mask.to(dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32).unsqueeze(0);
  };
  const Tensor a = plain(left), b = plain(right);
  const Tensor count = Tensor::empty({a.size(2), b.size(2)}, a.dtype(), a.device());
  kernels(a.device()).matmul(a.transpose(1, 2), b, count.unsqueeze(0));
  return count;
}

}  // namespace ff
