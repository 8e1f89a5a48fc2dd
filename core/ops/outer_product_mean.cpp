// Outer product mean: checks and dispatch.
#include "core/ops/outer_product_mean.h"

#include "core/ops/gradient.h"
#include "core/ops/linear.h"

namespace ff {
namespace {

/// Adds the gradients of left, right, w and b; dz is overwritten. The products of one row i of left
/// with all of right, [c, n_j, d], exist at a time.
void backward(const Var& left, const Var& right, const Var& w, const Var& b, const Tensor& norm,
              const Tensor& dz) {
  const Kernels& k = kernels(dz.device());
  const Tensor factor = norm.clone();
  const auto invert = [&](auto* f) {
    for (int64_t i = 0; i < factor.numel(); ++i) f[i] = 1 / (decltype(+*f)(1e-3) + f[i]);
  };
  factor.dtype() == Dtype::f64 ? invert(factor.data<double>()) : invert(factor.data<float>());
  k.scale_rows(factor, dz);
  const int64_t n_seq = left.size(0), n_j = right.size(1), c = left.size(2), d = right.size(2);
  const Tensor l = left.value(), r = right.value().contiguous(), wv = w.value();
  const Tensor rows = r.view({n_seq, n_j * d}), dl = left.grad_into(), dw = w.grad_into(),
               db = b.grad_into();
  const Gradient right_sum(right);
  const Tensor dr = right_sum;
  if (db) k.add_column_sums(dz.view({-1, dz.size(2)}), db);
  const Tensor product = Tensor::empty({c, n_j, d}, dz.dtype(), dz.device());
  const Tensor flat = product.view({c, n_j * d});
  const auto add_product = [&](const Tensor& x, const Tensor& y, const Tensor& to) {
    k.linear(x, y, {}, Activation::kNone, true, to);
  };
  for (int64_t i = 0; i < l.size(1); ++i) {
    const Tensor li = l.select(1, i), g = dz.narrow(0, i, 1);  // [n_seq, c], [1, n_j, c_z]
    if (dw) {
      k.matmul(li.transpose(0, 1).unsqueeze(0), rows.unsqueeze(0), flat.unsqueeze(0));
      add_product(product.transpose(1, 2), g, dw);
    }
    if (!dl && !dr) continue;
    k.matmul(g, wv.transpose(1, 2), product);
    if (dl)
      add_product(rows.unsqueeze(0), flat.transpose(0, 1).unsqueeze(0),
                  dl.select(1, i).unsqueeze(0));
    if (dr) add_product(li.unsqueeze(0), flat.unsqueeze(0), dr.view({1, n_seq, n_j * d}));
  }
}

}  // namespace

Var outer_product_mean(const Var& residual, const Var& left, const Var& right, const Var& w,
                       const Var& b, const Tensor& norm) {
  check(left.rank() == 3 && right.rank() == 3 && left.size(0) == right.size(0) &&
            w.shape() == Dims{left.size(2), right.size(2), residual.size(2)} &&
            residual.shape() == Dims{left.size(1), right.size(1), w.size(2)} &&
            norm.shape() == Dims{left.size(1), right.size(1)},
        "outer product mean of ", left.shape(), " and ", right.shape(), " with w ", w.shape(),
        ", norm ", norm.shape(), " into ", residual.shape());
  check(!NoGrad::active() || !residual.requires_grad(), "a recorded tensor would be overwritten");
  const Tensor z = NoGrad::active() ? residual.value() : residual.value().clone();
  kernels(z.device())
      .outer_product_mean(left.value(), right.value(), w.value(), b.value(), norm, z);
  return result("outer_product_mean", z, {&residual, &left, &right, &w, &b},
                [left, right, w, b, norm, r = residual.gradient_only()](const Tensor& dz) {
                  const Kernels& k = kernels(dz.device());
                  if (const Tensor to = r.grad_into()) k.add(dz, to);
                  backward(left, right, w, b, norm, dz);
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
