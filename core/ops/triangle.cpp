// Triangle multiplication: checks and dispatch.
#include "core/ops/triangle.h"

#include "core/ops/kernels.h"
#include "core/ops/linear.h"

namespace ff {

Var triangle_gate(const Var& proj, const Var& proj_bias, const Var& gate, const Var& gate_bias,
                  const Tensor& mask, const Var& out) {
  check(proj.shape() == gate.shape() && mask.numel() == proj.size(1) && mask.is_contiguous(),
        "triangle gate of ", proj.shape(), ", ", gate.shape(), ", mask ", mask.shape());
  check(!out || NoGrad::active(), "triangle gate: a recorded result cannot be written elsewhere");
  const Tensor a =
      out ? out.value() : Tensor::empty(proj.shape(), proj.value().dtype(), proj.value().device());
  kernels(a.device())
      .triangle_gate(proj.value(), proj_bias.value(), gate.value(), gate_bias.value(), mask, a);
  return result("triangle_gate", a, {&proj, &proj_bias, &gate, &gate_bias}, [=](const Tensor& da) {
    kernels(da.device())
        .triangle_gate_backward(proj.value(), proj_bias.value(), gate.value(), gate_bias.value(),
                                mask, da, proj.grad_into(), proj_bias.grad_into(), gate.grad_into(),
                                gate_bias.grad_into());
  });
}

Var triangle_product(const Var& a, const Var& b, bool outgoing) {
  check(a.shape() == b.shape() && a.rank() == 3, "triangle product of ", a.shape(), " and ",
        b.shape());
  const Tensor p = Tensor::empty(a.shape(), a.value().dtype(), a.value().device());
  const Tensor av = a.value(), bv = b.value();
  const Kernels& table = kernels(p.device());
  if (outgoing)
    table.matmul(av, bv.transpose(1, 2), p);
  else
    table.matmul(bv.transpose(1, 2), av, p);
  return result("triangle_product", p, {&a, &b}, [=](const Tensor& dp) {
    const auto add_product = [&](const Tensor& x, const Tensor& y, const Tensor& to) {
      if (to) kernels(dp.device()).linear(x, y, {}, Activation::kNone, true, to);
    };
    const Tensor dpt = dp.transpose(1, 2);
    add_product(outgoing ? dp : bv, outgoing ? bv : dp, a.grad_into());
    add_product(outgoing ? dpt : av, outgoing ? av : dpt, b.grad_into());
  });
}

}  // namespace ff
