// Attention: checks and dispatch.
#include "core/ops/attention.h"

#include "core/ops/kernels.h"

namespace ff {

Var attention(const Var& q, const Var& k, const Var& v, const Var& gate, const Var& bias,
              const Tensor& mask) {
  check(q.rank() == 4 && k.rank() == 4 && v.rank() == 4 && q.size(0) == k.size(0) &&
            q.size(2) == k.size(2) && q.size(3) == k.size(3) && k.size(1) == v.size(1) &&
            k.size(2) == v.size(2) && v.size(0) == k.size(0),
        "attention of q ", q.shape(), ", k ", k.shape(), ", v ", v.shape());
  check(!bias ||
            (bias.shape() == Dims{q.size(2), q.size(1), k.size(1)} && bias.value().stride(-1) == 1),
        "attention: bias ", bias.shape(), " for q ", q.shape(), ", k ", k.shape());
  check(!mask.defined() || mask.shape() == Dims{k.size(0), k.size(1)}, "attention: mask ",
        mask.shape(), " for k ", k.shape());
  const Tensor o = Tensor::empty({q.size(0), q.size(1), q.size(2), v.size(3)}, q.value().dtype(),
                                 q.value().device());
  check(!gate || gate.shape() == o.shape(), "attention: gate ", gate.shape(), " for ", o.shape());
  // The GPU's backward begins from the forward's log-sum-exp; the CPU's computes the softmax again.
  const bool keep = o.device().kind == Device::cuda && recording({&q, &k, &v, &gate, &bias});
  const Tensor lse =
      keep ? Tensor::empty({q.size(0), q.size(2), q.size(1)}, Dtype::f32, o.device()) : Tensor();
  kernels(o.device())
      .attention(q.value(), k.value(), v.value(), gate.value(), bias.value(), mask, o, lse);
  return result("attention", o, {&q, &k, &v, &gate, &bias}, [=](const Tensor& dy) {
    kernels(dy.device())
        .attention_backward(q.value(), k.value(), v.value(), gate.value(), bias.value(), mask, o,
                            lse, dy, q.grad_into(), k.grad_into(), v.grad_into(), gate.grad_into(),
                            bias.grad_into());
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
