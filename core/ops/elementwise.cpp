// Element-wise operations: checks and dispatch. Also the copies that views.h declares.
#include "core/ops/elementwise.h"

#include "core/ops/gradient.h"
#include "core/ops/views.h"

namespace ff {
namespace {

/// What the operation may write: x itself under NoGrad.
Tensor target(const Var& x) { return may_overwrite(x) ? x.value() : x.value().clone(); }

/// Adds dy where x's gradient is wanted, in that gradient's precision.
void pass_on(const Var& x, const Tensor& dy) {
  if (const Tensor dx = x.grad_into()) kernels(dx.device()).add(dy.to(dx.dtype()), dx);
}

}  // namespace

Var add(const Var& residual, const Var& x) {
  check(residual.shape() == x.shape(), "add ", x.shape(), " to ", residual.shape());
  const Tensor y = target(residual);
  kernels(y.device()).add(x.value(), y);
  return result("add", y, {&residual, &x},
                [a = residual.gradient_only(), b = x.gradient_only()](const Tensor& dy) {
                  pass_on(a, dy);
                  hand_over(b, dy);
                });
}

Var add_gated(const Var& residual, const Var& x, const Var& gate) {
  check(residual.shape() == x.shape() && x.shape() == gate.shape(), "add ", x.shape(), " gated by ",
        gate.shape(), " to ", residual.shape());
  const Tensor y = target(residual);
  kernels(y.device()).add_gated(x.value(), gate.value(), y);
  return result("add_gated", y, {&residual, &x, &gate},
                [x, gate, to = residual.gradient_only()](const Tensor& dy) {
                  kernels(dy.device())
                      .add_gated_backward(x.value(), gate.value(), dy, x.grad_into(),
                                          gate.grad_into());
                  hand_over(to, dy);
                });
}

Var scale_rows(const Var& x, const Tensor& mask) {
  check(mask.rank() + 1 == x.rank(), "mask ", mask.shape(), " for ", x.shape());
  const Tensor y = target(x);
  kernels(y.device()).scale_rows(mask, y);
  return result("scale_rows", y, {&x}, [mask, to = x.gradient_only()](const Tensor& dy) {
    kernels(dy.device()).scale_rows(mask, dy);  // the node's own: nobody reads it afterwards
    hand_over(to, dy);
  });
}

Var concat_rows(const Var& a, const Var& b) {
  Dims shape = a.shape();
  shape[0] += b.size(0);
  const Tensor y = Tensor::empty(shape, a.value().dtype(), a.value().device());
  y.narrow(0, 0, a.size(0)).copy_from(a.value());
  y.narrow(0, a.size(0), b.size(0)).copy_from(b.value());
  const int64_t rows = a.size(0), more = b.size(0);
  return result("concat_rows", y, {&a, &b},
                [rows, more, a = a.gradient_only(), b = b.gradient_only()](const Tensor& dy) {
                  pass_on(a, dy.narrow(0, 0, rows));
                  pass_on(b, dy.narrow(0, rows, more));
                });
}

Var stack(const Vars& parts, int axis) {
  check(!parts.empty(), "stack of nothing");
  Dims shape;
  for (int i = 0; i < axis; ++i) shape.push_back(parts[0].size(i));
  shape.push_back(int64_t(parts.size()));
  for (int i = axis; i < parts[0].rank(); ++i) shape.push_back(parts[0].size(i));
  const Tensor y = Tensor::empty(shape, parts[0].value().dtype(), parts[0].value().device());
  bool record = false;
  Vars slots;
  for (size_t i = 0; i < parts.size(); ++i) {
    y.select(axis, int64_t(i)).copy_from(parts[i].value());
    record |= recording({&parts[i]});
    slots.push_back(parts[i].gradient_only());
  }
  Vars out{Var(y)};
  if (record)
    Tape::current()->record(
        out,
        [slots, axis](const std::vector<Tensor>& dy) {
          for (size_t i = 0; i < slots.size(); ++i)
            pass_on(slots[i], dy[0].select(axis, int64_t(i)));
        },
        "stack");
  return out[0];
}

Var cast(const Var& x, Dtype dtype) {
  if (x.value().dtype() == dtype) return x;
  return result("cast", x.value().to(dtype), {&x}, [to = x.gradient_only()](const Tensor& dy) {
    hand_over(to, dy.to(to.slot()->dtype));
  });
}

Var transpose_cast(const Var& x, int a, int b, Dtype dtype) {
  return result("transpose_cast", x.value().transpose(a, b).to(dtype).contiguous(), {&x},
                [a, b, to = x.gradient_only()](const Tensor& dy) {
                  hand_over(to, dy.transpose(a, b).to(to.slot()->dtype).contiguous());
                });
}

Var repeat(const Var& x, int64_t n) {
  return result("repeat", x.value().unsqueeze(0).expand(0, n), {&x},
                [n, shape = x.shape(), to = x.gradient_only()](const Tensor& dy) {
                  // Summed before it is rounded: a table's bias is repeated thousands of times.
                  const Tensor sum = Tensor::zeros(
                      shape, dy.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32, dy.device());
                  kernels(dy.device()).add_column_sums(dy.view({n, -1}), sum.view({-1}));
                  hand_over(to, sum);
                });
}

}  // namespace ff
