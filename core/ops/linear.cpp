// Linear: collapses the leading axes to at most two strided ones and calls the matrix product.
#include "core/ops/linear.h"

#include "core/ops/gradient.h"

namespace ff {
namespace {

/// x [..., c] as [batch, rows, c] without a copy where its strides allow it.
Tensor as_batches(const Tensor& x) {
  if (x.is_contiguous()) return x.view({1, -1, x.size(-1)});
  if (x.rank() == 2) return x.unsqueeze(0);
  if (x.rank() == 3) return x;
  return x.contiguous().view({1, -1, x.size(-1)});
}

void check_linear(const Tensor& x, const Tensor& w, const Tensor& b) {
  check(x.size(-1) == w.size(0), "linear: x ", x.shape(), " against w ", w.shape());
  check(x.dtype() == w.dtype(), "linear: x is ", name_of(x.dtype()), ", w is ", name_of(w.dtype()));
  check(!b.defined() || b.numel() == w.size(1), "linear: bias ", b.shape(), " against w ",
        w.shape());
}

/// dx += dy w^T, dw += x^T dy, db += sum of dy's rows, where they are wanted. dy [..., n] is
/// contiguous, w [c, n].
void products_backward(const Var& x, const Var& w, const Var& b, const Tensor& dy) {
  const Kernels& k = kernels(dy.device());
  const Tensor rows = dy.view({-1, dy.size(-1)});
  const int64_t c = x.size(-1), n = rows.size(1);
  const Tensor wt = w.value().view({c, n}).transpose(0, 1).unsqueeze(0);
  if (has_room(x) && x.slot()->dtype == dy.dtype() && dy.device().kind == Device::cuda) {
    // Written instead of added to zeros, which a GPU would fill and read.
    const Tensor dx = Tensor::empty(x.slot()->shape, dy.dtype(), dy.device());
    k.linear(rows.unsqueeze(0), wt, {}, Activation::kNone, false, dx.view({1, -1, c}));
    x.add_grad(dx);
  } else if (const Tensor dx = x.grad_into()) {
    // Any strides that a product cannot write go through a copy.
    const bool direct = dx.is_contiguous() || dx.rank() == 2 || dx.rank() == 3;
    const Tensor to = direct ? dx : Tensor::empty(dx.shape(), dx.dtype(), dx.device());
    const Tensor batches = as_batches(to);
    k.linear(dy.view({batches.size(0), batches.size(1), n}), wt, {}, Activation::kNone, direct,
             batches);
    if (!direct) k.add(to, dx);
  }
  if (const Tensor dw = w.grad_into()) {
    const Tensor to = dw.view({1, c, n}), batches = as_batches(x.value()),
                 dys = dy.view({batches.size(0), batches.size(1), n});
    for (int64_t i = 0; i < batches.size(0); ++i)
      k.linear(batches.narrow(0, i, 1).transpose(1, 2), dys.narrow(0, i, 1), {}, Activation::kNone,
               true, to);
  }
  if (b)
    if (const Tensor db = b.grad_into()) k.add_column_sums(rows, db.view({n}));
}

}  // namespace

Var linear(const Var& x, const Var& w, const Var& b, Activation act) {
  const Tensor& xv = x.value();
  const Tensor wv = w.value().view({w.size(0), -1});
  const Tensor bv = b ? b.value().view({-1}) : Tensor();
  check_linear(xv, wv, bv);
  Dims shape = xv.shape();
  shape[shape.size() - 1] = wv.size(1);
  const Tensor y = Tensor::empty(shape, xv.dtype(), xv.device());
  const Tensor batches = as_batches(xv);
  kernels(xv.device())
      .linear(batches, wv.unsqueeze(0), bv, act, false,
              y.view({batches.size(0), batches.size(1), wv.size(1)}));
  const Tensor kept = act == Activation::kNone ? Tensor() : y;
  return result("linear", y, {&x, &w, &b}, [x, w, b, act, kept](const Tensor& dy) {
    // dy is the node's own: nobody reads it afterwards.
    if (kept) kernels(dy.device()).activation_backward(kept, act, dy);
    products_backward(x, w, b, dy);
  });
}

Var linear_add(const Var& residual, const Var& x, const Var& w, const Var& b) {
  const Tensor& xv = x.value();
  const Tensor wv = w.value().view({xv.size(-1), -1});
  const Tensor bv = b ? b.value().view({-1}) : Tensor();
  check_linear(xv, wv, bv);
  check(!NoGrad::active() || !residual.requires_grad(), "a recorded tensor would be overwritten");
  const Tensor y = NoGrad::active() ? residual.value() : residual.value().clone();
  // The residual may be a transposed view: then both sides keep two leading axes.
  const bool flat = y.is_contiguous() && xv.is_contiguous();
  const Tensor xs = flat ? xv.view({1, -1, xv.size(-1)}) : xv.rank() == 2 ? xv.unsqueeze(0) : xv;
  const Tensor ys = flat ? y.view({1, -1, y.size(-1)}) : y.rank() == 2 ? y.unsqueeze(0) : y;
  kernels(xv.device()).linear(xs, wv.unsqueeze(0), bv, Activation::kNone, true, ys);
  return result("linear_add", y, {&residual, &x, &w, &b},
                [x, w, b, r = residual.gradient_only()](const Tensor& dy) {
                  products_backward(x, w, b, dy);
                  hand_over(r, dy);
                });
}

Var linear_channels_first(const Var& x, const Var& w) {
  const Tensor rows = x.value().view({-1, x.size(-1)});
  const Tensor wv = w.value().view({w.size(0), -1});
  check_linear(rows, wv, {});
  const Tensor y = Tensor::empty({wv.size(1), rows.size(0)}, rows.dtype(), rows.device());
  kernels(rows.device())
      .matmul(wv.transpose(0, 1).unsqueeze(0), rows.transpose(0, 1).unsqueeze(0), y.unsqueeze(0));
  return result("linear_channels_first", y, {&x, &w}, [=](const Tensor& dy) {
    const Kernels& k = kernels(dy.device());
    const Tensor dyt = dy.transpose(0, 1).unsqueeze(0);
    if (const Tensor dx = x.grad_into())
      k.linear(dyt, wv.transpose(0, 1).unsqueeze(0), {}, Activation::kNone, true,
               dx.view({1, -1, dx.size(-1)}));
    if (const Tensor dw = w.grad_into())
      k.linear(rows.transpose(0, 1).unsqueeze(0), dyt, {}, Activation::kNone, true,
               dw.view({1, wv.size(0), wv.size(1)}));
  });
}

}  // namespace ff
