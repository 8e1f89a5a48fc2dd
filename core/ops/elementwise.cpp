// Element-wise operations: checks and dispatch. Also the copies that views.h declares.
#include "core/ops/elementwise.h"

#include "core/ops/kernels.h"
#include "core/ops/views.h"

namespace ff {
namespace {

Tensor target(const Var& x) { return NoGrad::active() ? x.value() : x.value().clone(); }

}  // namespace

Var add(const Var& residual, const Var& x) {
  check(residual.shape() == x.shape(), "add ", x.shape(), " to ", residual.shape());
  const Tensor y = target(residual);
  kernels(y.device()).add(x.value(), y);
  return result("add", y, {&residual, &x});
}

Var add_gated(const Var& residual, const Var& x, const Var& gate) {
  check(residual.shape() == x.shape() && x.shape() == gate.shape(), "add ", x.shape(), " gated by ",
        gate.shape(), " to ", residual.shape());
  const Tensor y = target(residual);
  kernels(y.device()).add_gated(x.value(), gate.value(), y);
  return result("add_gated", y, {&residual, &x, &gate});
}

Var scale_rows(const Var& x, const Tensor& mask) {
  check(mask.rank() + 1 == x.rank(), "mask ", mask.shape(), " for ", x.shape());
  const Tensor y = target(x);
  kernels(y.device()).scale_rows(mask, y);
  return result("scale_rows", y, {&x});
}

Var concat_rows(const Var& a, const Var& b) {
  Dims shape = a.shape();
  shape[0] += b.size(0);
  const Tensor y = Tensor::empty(shape, a.value().dtype(), a.value().device());
  y.narrow(0, 0, a.size(0)).copy_from(a.value());
  y.narrow(0, a.size(0), b.size(0)).copy_from(b.value());
  return result("concat_rows", y, {&a, &b});
}

Var cast(const Var& x, Dtype dtype) {
  if (x.value().dtype() == dtype) return x;
  return result("cast", x.value().to(dtype), {&x});
}

}  // namespace ff
