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

/// dx += dy w^T where it is wanted. dy [..., n] is contiguous, w [c, n].
void input_backward(const Var& x, const Tensor& w, const Tensor& dy) {
  const Kernels& k = kernels(dy.device());
  const Tensor rows = dy.view({-1, dy.size(-1)});
  const int64_t c = x.size(-1), n = rows.size(1);
  const Tensor wt = w.view({c, n}).transpose(0, 1).unsqueeze(0);
  if (has_room(x) && x.slot()->dtype == dy.dtype() && dy.device().kind == Device::cuda) {
    // Written instead of added to zeros, which a GPU would fill and read.
    const Tensor dx = Tensor::empty(x.slot()->shape, dy.dtype(), dy.device());
    k.linear(rows.unsqueeze(0), wt, {}, Activation::kNone, {}, dx.view({1, -1, c}));
    x.add_grad(dx);
  } else if (const Tensor dx = x.grad_into()) {
    // Any strides that a product cannot write go through a copy.
    const bool direct = dx.is_contiguous() || dx.rank() == 2 || dx.rank() == 3;
    const Tensor to = direct ? dx : Tensor::empty(dx.shape(), dx.dtype(), dx.device());
    const Tensor batches = as_batches(to);
    k.linear(dy.view({batches.size(0), batches.size(1), n}), wt, {}, Activation::kNone,
             direct ? batches : Tensor(), batches);
    if (!direct) k.add(to, dx);
  }
}

/// dw and db (the sum of dy's rows) are added to where they are wanted.
void weights_backward(const Tensor& x, const Var& w, const Var& b, const Tensor& dy) {
  const Tensor dw = w.grad_into(), db = b ? b.grad_into() : Tensor();
  if (dw || db) kernels(dy.device()).weight_gradient(x, dy, {&dw, 1}, db);
}

void products_backward(const Var& x, const Var& w, const Var& b, const Tensor& dy) {
  input_backward(x, w.value(), dy);
  weights_backward(x.value(), w, b, dy);
}

/// y = act(x w + b), and x as its backward keeps it.
struct Layer {
  Tensor y;
  Var x;
};
Layer layer_of(const Normed& n, const Tensor& w, const Tensor& b, Activation act) {
  const Tensor& x = n.x.value();
  const auto kernel = kernels(x.device()).normed_linear;
  // The backward asks for the norm where anything's gradient is wanted.
  if (n.scale && kernel && (NoGrad::active() || recording({&n.x, &n.scale, &n.offset}))) {
    check_linear(x, w, b);
    Dims shape = x.shape();
    shape[shape.size() - 1] = w.size(1);
    const Tensor y = Tensor::empty(shape, x.dtype(), x.device()), rows = as_batches(x);
    if (kernel(rows, {n.scale.value(), n.offset.value(), w.unsqueeze(0), b}, act,
               y.view({rows.size(0), rows.size(1), w.size(1)})))
      return {y, layer_norm_later(n.x, n.scale, n.offset)};
  }
  const Var made = n.value();
  return {linear(made.value(), w, b, act).value(), made};
}

}  // namespace

void weight_gradient_by_products(const Tensor& x, const Tensor& dy, TensorList parts,
                                 const Tensor& sums) {
  const Kernels& k = kernels(dy.device());
  const int64_t c = x.size(-1), n = dy.size(-1);
  const Tensor rows = dy.view({-1, n}), batches = as_batches(x),
               dys = dy.view({batches.size(0), batches.size(1), n});
  const bool joined = parts.size() > 1;
  const Dtype summed = dy.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  const Tensor dw = joined     ? Tensor::empty({1, c, n}, summed, dy.device())
                    : parts[0] ? parts[0].view({1, c, n})
                               : Tensor();
  if (dw)
    for (int64_t i = 0; i < batches.size(0); ++i)
      k.linear(batches.narrow(0, i, 1).transpose(1, 2), dys.narrow(0, i, 1), {}, Activation::kNone,
               i || !joined ? dw : Tensor(), dw);
  if (joined) {
    std::vector<Tensor> to;
    for (const Tensor& part : parts) to.push_back(part ? part.view({c, -1}) : part);
    k.add_columns(dw.view({c, n}), to);
  }
  if (sums) k.add_column_sums(rows.narrow(1, n - sums.numel(), sums.numel()), sums.view({-1}));
}

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
      .linear(batches, wv.unsqueeze(0), bv, act, {},
              y.view({batches.size(0), batches.size(1), wv.size(1)}));
  const Tensor kept = act == Activation::kNone ? Tensor() : y;
  return result("linear", y, {&x, &w, &b}, [x = Kept(x), w, b, act, kept](const Tensor& dy) {
    // dy is the node's own: nobody reads it afterwards.
    if (kept) kernels(dy.device()).activation_backward(kept, act, dy);
    products_backward(x.get(), w, b, dy);
  });
}

Var linear_joined(const Normed& normed, const Tensor& w, const Tensor& b, const Vars& parts,
                  const Vars& biases, const Tensor& mask) {
  const int64_t c = normed.x.size(-1), n = w.numel() / c;
  Dims shape;
  for (int i = 0; i + 1 < normed.x.rank(); ++i) shape.push_back(normed.x.size(i));
  for (int i = 1; i < w.rank(); ++i) shape.push_back(w.size(i));
  const auto [flat, x] = layer_of(normed, w.view({c, n}), b.view({n}), Activation::kNone);
  const Tensor y = flat.view(shape);
  const auto scale = [mask, n](const Tensor& t) {
    if (!mask) return;
    Dims rows = mask.shape();
    rows.push_back(n);
    kernels(t.device()).scale_rows(mask, t.view(rows));
  };
  scale(y);
  bool record = recording({&x});
  for (const Vars* leaves : {&parts, &biases})
    for (const Var& leaf : *leaves) record = record || recording({&leaf});
  Vars out{Var(y)};
  if (record)
    Tape::current()->record(
        out,
        [kept = Kept(x), w, parts, biases, scale, n](const std::vector<Tensor>& given) {
          const Var x = kept.get();
          scale(given[0]);  // the node's own: nobody reads it afterwards
          const Tensor dy = given[0].view({-1, n});
          input_backward(x, w, dy);
          const Kernels& k = kernels(dy.device());
          const int64_t width = n / int64_t(parts.size()), count = int64_t(biases.size());
          std::vector<Tensor> dws, dbs;
          for (const Var& part : parts) dws.push_back(part.grad_into());
          for (const Var& bias : biases) {
            const Tensor db = bias.grad_into();
            dbs.push_back(db ? db.view({1, width}) : db);
          }
          const Tensor sums =
              count == 1 ? dbs[0] : Tensor::zeros({1, count * width}, Dtype::f32, dy.device());
          k.weight_gradient(x.value(), dy, dws, sums);
          if (count > 1) k.add_columns(sums, dbs);
        },
        "linear_joined");
  return out[0];
}

Var linear_add(const Var& residual, const Var& x, const Var& w, const Var& b) {
  const Tensor& xv = x.value();
  const Tensor wv = w.value().view({xv.size(-1), -1});
  const Tensor bv = b ? b.value().view({-1}) : Tensor();
  check_linear(xv, wv, bv);
  const Tensor& r = residual.value();
  const Tensor y = place_for_result(residual);
  // The residual may be a transposed view: then all keep two leading axes.
  const bool flat = r.is_contiguous() && xv.is_contiguous();
  const auto batches = [flat](const Tensor& t) {
    return flat ? t.view({1, -1, t.size(-1)}) : t.rank() == 2 ? t.unsqueeze(0) : t;
  };
  kernels(xv.device())
      .linear(batches(xv), wv.unsqueeze(0), bv, Activation::kNone, batches(r), batches(y));
  return result("linear_add", y, {&residual, &x, &w, &b},
                [x, w, b, r = residual.gradient_only()](const Tensor& dy) {
                  products_backward(x, w, b, dy);
                  hand_over(r, dy);
                });
}

Var transition(const Var& residual, const Normed& normed, const Var& w1, const Var& b1,
               const Var& w2, const Var& b2) {
  const auto [hidden, x] = layer_of(normed, w1.value(), b1.value(), Activation::kRelu);
  const Tensor y = linear_add(residual.value(), hidden, w2.value(), b2.value()).value();
  return result("transition", y, {&residual, &x, &w1, &b1, &w2, &b2},
                [x = Kept(x), w1, b1, w2, b2, hidden = hidden,
                 r = residual.gradient_only()](const Tensor& dy) {
                  const Tensor dh = Tensor::empty(hidden.shape(), dy.dtype(), dy.device());
                  const auto rows = [](const Tensor& t) { return t.view({1, -1, t.size(-1)}); };
                  kernels(dy.device())
                      .linear_where_positive(rows(dy), w2.value().transpose(0, 1).unsqueeze(0),
                                             rows(hidden), rows(dh));
                  weights_backward(hidden, w2, b2, dy);
                  input_backward(x.get(), w1.value(), dh);
                  weights_backward(x.get().value(), w1, b1, dh);
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
  return result("linear_channels_first", y, {&x, &w}, [kept = Kept(x), w, wv](const Tensor& dy) {
    const auto add_product = [](const Tensor& a, const Tensor& b, const Tensor& to) {
      kernels(to.device()).linear(a, b, {}, Activation::kNone, to, to);
    };
    const Var x = kept.get();
    const Tensor dyt = dy.transpose(0, 1).unsqueeze(0), rows = x.value().view({-1, x.size(-1)});
    if (const Tensor dx = x.grad_into())
      add_product(dyt, wv.transpose(0, 1).unsqueeze(0), dx.view({1, -1, dx.size(-1)}));
    if (const Tensor dw = w.grad_into())
      add_product(rows.transpose(0, 1).unsqueeze(0), dyt, dw.view({1, wv.size(0), wv.size(1)}));
  });
}

}  // namespace ff
