// Outer product mean: checks and dispatch.
#include "core/ops/outer_product_mean.h"

#include "core/ops/gradient.h"
#include "core/ops/linear.h"

namespace ff {
namespace {

/// Left (0) or right (1) of two tensors, or of one that holds both; undefined for undefined ones.
Tensor side(const std::vector<Tensor>& of, size_t i) {
  return of.size() == 2 ? of[i] : of[0] ? of[0].select(2, int64_t(i)) : of[0];
}

}  // namespace

Var outer_product_mean(const Var& residual, const Vars& sides, const Var& w, const Var& b,
                       const Tensor& norm) {
  std::vector<Tensor> values;
  for (const Var& v : sides) values.push_back(v.value());
  const Tensor left = side(values, 0), right = side(values, 1);
  check(left.rank() == 3 && right.rank() == 3 && left.size(0) == right.size(0) &&
            w.shape() == Dims{left.size(2), right.size(2), residual.size(2)} &&
            residual.shape() == Dims{left.size(1), right.size(1), w.size(2)} &&
            norm.shape() == Dims{left.size(1), right.size(1)},
        "outer product mean of ", left.shape(), " and ", right.shape(), " with w ", w.shape(),
        ", norm ", norm.shape(), " into ", residual.shape());
  const Tensor z = place_for_result(residual);
  const Tensor kept = kernels(z.device())
                          .outer_product_mean(left, right, w.value(), b.value(), norm,
                                              residual.value(), z, recording({&w}));
  return result(
      "outer_product_mean", z, {&residual, &sides.front(), &sides.back(), &w, &b},
      [sides, left, right, w, b, norm, kept, r = residual.gradient_only()](const Tensor& dz) {
        hand_over(r, dz);
        std::vector<Tensor> made;
        for (const Var& v : sides)
          made.push_back(v.requires_grad()
                             ? Tensor::empty(v.shape(), v.value().dtype(), v.value().device())
                             : Tensor());
        kernels(dz.device())
            .outer_product_mean_backward(left, right, w.value(), norm, kept, dz, side(made, 0),
                                         side(made, 1), w.grad_into(), b.grad_into());
        for (size_t i = 0; i < sides.size(); ++i) hand_over(sides[i], made[i]);
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
