// Attention: checks and dispatch.
#include "core/ops/attention.h"

#include <algorithm>

#include "core/ops/gradient.h"

namespace ff {

namespace {

/// [a, b, h, c] as [batch, positions, h, c]; an absent tensor stays that.
Tensor turn(const Tensor& t, int along) { return t && along == 0 ? t.transpose(0, 1) : t; }

/// Operands as they were given, with what the forward leaves for the backward.
struct Attending {
  Tensor q, k, v, gate, mask;
  int along;
  Tensor o, lse;

  /// queries: what q is of.
  void forward(const Var& queries, const Var& bias, bool record) {
    const Tensor qs = turn(q, along), ks = turn(k, along), vs = turn(v, along);
    check(qs.rank() == 4 && ks.rank() == 4 && vs.rank() == 4 && qs.size(0) == ks.size(0) &&
              qs.size(2) == ks.size(2) && qs.size(3) == ks.size(3) && ks.size(1) == vs.size(1) &&
              ks.size(2) == vs.size(2) && vs.size(0) == ks.size(0),
          "attention of q ", qs.shape(), ", k ", ks.shape(), ", v ", vs.shape());
    check(!bias || (bias.shape() == Dims{qs.size(2), qs.size(1), ks.size(1)} &&
                    bias.value().stride(-1) == 1),
          "attention: bias ", bias.shape(), " for q ", qs.shape(), ", k ", ks.shape());
    check(!mask.defined() || mask.shape() == Dims{ks.size(0), ks.size(1)}, "attention: mask ",
          mask.shape(), " for k ", ks.shape());
    const Dims shape = {q.size(0), q.size(1), q.size(2), v.size(3)};
    o = q.shape() == shape && may_overwrite(queries) ? q
                                                     : Tensor::empty(shape, q.dtype(), q.device());
    check(!gate || gate.shape() == o.shape(), "attention: gate ", gate.shape(), " for ", o.shape());
    // The GPU's backward begins from the forward's log-sum-exp; the CPU's computes the softmax
    // again.
    if (record && o.device().kind == Device::cuda)
      lse = Tensor::empty({qs.size(0), qs.size(2), qs.size(1)}, Dtype::f32, o.device());
    kernels(o.device())
        .attention(qs, ks, vs, turn(gate, along), bias.value(), mask, turn(o, along), lse);
  }
  void backward(const Var& bias, const Tensor& dy, const Tensor& dq, const Tensor& dk,
                const Tensor& dv, const Tensor& dgate, const Tensor& fresh = {}) const {
    kernels(dy.device())
        .attention_backward(turn(q, along), turn(k, along), turn(v, along), turn(gate, along),
                            bias.value(), mask, turn(o, along), lse, turn(dy, along),
                            turn(dq, along), turn(dk, along), turn(dv, along), turn(dgate, along),
                            bias.grad_into(), fresh);
  }
};

}  // namespace

Var attention(const Var& q, const Var& k, const Var& v, const Var& gate, const Var& bias,
              const Tensor& mask, int along) {
  Attending a{q.value(), k.value(), v.value(), gate.value(), mask, along, {}, {}};
  a.forward(q, bias, recording({&q, &k, &v, &gate, &bias}));
  return result("attention", a.o, {&q, &k, &v, &gate, &bias}, [=](const Tensor& dy) {
    // Written instead of added to zeros, where nothing was added yet to any.
    const Var inputs[] = {q, k, v, gate};
    const int64_t n = gate ? 4 : 3;
    const bool fresh = std::all_of(inputs, inputs + n, [&](const Var& x) {
      return has_room(x) && x.shape() == q.shape() && x.value().dtype() == dy.dtype();
    });
    if (!fresh)
      return a.backward(bias, dy, q.grad_into(), k.grad_into(), v.grad_into(), gate.grad_into());
    const Tensor all =
        Tensor::empty({n, q.size(0), q.size(1), q.size(2), q.size(3)}, dy.dtype(), dy.device());
    const auto part = [&](int64_t i) { return i < n ? all.select(0, i) : Tensor(); };
    a.backward(bias, dy, part(0), part(1), part(2), part(3), all);
    for (int64_t i = 0; i < n; ++i) inputs[i].add_grad(part(i));
  });
}

Var attention(const Var& qkvg, const Var& bias, const Tensor& mask, int along) {
  check(qkvg.rank() == 5 && qkvg.size(2) == 4, "attention of ", qkvg.shape());
  const auto part = [](const Tensor& t, int i) { return t ? t.select(2, i) : t; };
  const Tensor& all = qkvg.value();
  Attending a{part(all, 0), part(all, 1), part(all, 2), part(all, 3), mask, along, {}, {}};
  a.forward(qkvg, bias, recording({&qkvg, &bias}));
  return result("attention", a.o, {&qkvg, &bias}, [=](const Tensor& dy) {
    // Written instead of added to zeros, where nothing was added yet.
    const Tensor fresh =
        has_room(qkvg) ? Tensor::empty(qkvg.shape(), dy.dtype(), dy.device()) : Tensor();
    const Tensor d = fresh ? fresh : qkvg.grad_into();
    a.backward(bias, dy, part(d, 0), part(d, 1), part(d, 2), part(d, 3), fresh);
    if (fresh) qkvg.add_grad(fresh);
  });
}

Var global_attention(const Var& q, const Var& k, const Var& v, const Var& gate,
                     const Tensor& mask) {
  const Dims shape = {k.size(0), k.size(1), q.size(1) * v.size(2)};
  check(q.size(0) == k.size(0) && q.size(2) == k.size(2) && v.size(1) == k.size(1) &&
            gate.shape() == shape && mask.shape() == Dims{k.size(0), k.size(1)},
        "global attention of q ", q.shape(), ", k ", k.shape(), ", v ", v.shape(), ", gate ",
        gate.shape(), ", mask ", mask.shape());
  const Tensor o = Tensor::empty(shape, q.value().dtype(), q.value().device());
  kernels(o.device()).global_attention(q.value(), k.value(), v.value(), gate.value(), mask, o);
  return result("global_attention", o, {&q, &k, &v, &gate}, [=](const Tensor& dy) {
    kernels(dy.device())
        .global_attention_backward(q.value(), k.value(), v.value(), gate.value(), mask, dy,
                                   q.grad_into(), k.grad_into(), v.grad_into(), gate.grad_into());
  });
}

Var masked_mean(const Var& x, const Tensor& mask) {
  check(x.rank() == 3 && mask.shape() == Dims{x.size(0), x.size(1)}, "masked mean of ", x.shape(),
        " under ", mask.shape());
  const Tensor y = Tensor::empty({x.size(0), x.size(2)}, x.value().dtype(), x.value().device());
  kernels(y.device()).masked_mean(x.value(), mask, y);
  return result("masked_mean", y, {&x}, [=](const Tensor& dy) {
    kernels(dy.device()).masked_mean_backward(mask, dy, x.grad_into());
  });
}

}  // namespace ff
