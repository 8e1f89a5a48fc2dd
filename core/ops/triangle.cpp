// Triangle multiplication: checks and dispatch.
#include "core/ops/triangle.h"

#include "core/ops/kernels.h"

namespace ff {

Var triangle_gate(const Var& proj, const Var& proj_bias, const Var& gate, const Var& gate_bias,
                  const Tensor& mask, const Var& out) {
  check(proj.shape() == gate.shape() && mask.numel() == proj.size(1) && mask.is_contiguous(),
        "triangle gate of ", proj.shape(), ", ", gate.shape(), ", mask ", mask.shape());
  const Tensor a =
      out ? out.value() : Tensor::empty(proj.shape(), proj.value().dtype(), proj.value().device());
  kernels(a.device())
      .triangle_gate(proj.value(), proj_bias.value(), gate.value(), gate_bias.value(), mask, a);
  return result("triangle_gate", a, {&proj, &proj_bias, &gate, &gate_bias});
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
  return result("triangle_product", p, {&a, &b});
}

}  // namespace ff
