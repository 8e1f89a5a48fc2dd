// Triangle multiplication: checks and dispatch.
#include "core/ops/triangle.h"

#include "core/ops/gradient.h"
#include "core/ops/linear.h"

namespace ff {
namespace {

NormedLinear values(const NormedLayer& l) {
  return {l.scale.value(), l.offset.value(), l.w.value(), l.b.value()};
}
NormedLinear gradients(const NormedLayer& l) {
  return {l.scale.grad_into(), l.offset.grad_into(), l.w.grad_into(), l.b.grad_into()};
}

/// f(dx, add) adds to dx or writes it, contiguous; undefined where x's gradient is not wanted.
template <class F>
void into_gradient(const Var& x, F f) {
  const bool wanted = x.requires_grad();
  const Tensor dx = wanted && !has_room(x) ? x.grad_into() : Tensor();
  if (!wanted || (dx && dx.is_contiguous() && dx.dtype() == x.value().dtype()))
    return f(dx, wanted);
  const Tensor own = Tensor::empty(x.shape(), x.value().dtype(), x.value().device());
  f(own, false);
  x.add_grad(own);
}

}  // namespace

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
      if (to) kernels(dp.device()).linear(x, y, {}, Activation::kNone, to, to);
    };
    const Tensor dpt = dp.transpose(1, 2);
    add_product(outgoing ? dp : bv, outgoing ? bv : dp, a.grad_into());
    add_product(outgoing ? dpt : av, outgoing ? av : dpt, b.grad_into());
  });
}

bool fuses_triangle(const Var& z, int64_t channels) {
  const Tensor& t = z.value();
  return kernels(t.device()).triangle_side && t.dtype() == Dtype::bf16 && t.is_contiguous() &&
         reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0 && fuses_triangle(z.size(2), channels);
}

Var triangle_side(const Var& z, const Tensor& mask, const NormedLayer& proj,
                  const NormedLayer& gate) {
  check(mask.numel() == z.size(0) * z.size(1) && mask.is_contiguous(), "triangle side of ",
        z.shape(), ", mask ", mask.shape());
  const Tensor a =
      Tensor::empty({proj.w.size(1), z.size(0), z.size(1)}, z.value().dtype(), z.value().device());
  kernels(a.device()).triangle_side(z.value(), mask, values(proj), values(gate), a);
  return result("triangle_side", a,
                {&z, &proj.scale, &proj.offset, &proj.w, &proj.b, &gate.w, &gate.b},
                [=](const Tensor& da) {
                  into_gradient(z, [&](const Tensor& dz, bool add) {
                    kernels(da.device())
                        .triangle_side_backward(z.value(), mask, values(proj), values(gate), da, dz,
                                                add, gradients(proj), gradients(gate));
                  });
                });
}

Var triangle_end(const Var& z, const Var& p, const Tensor& factors, const NormedLayer& proj,
                 const NormedLayer& gate) {
  check(p.rank() == 3 && p.size(1) == z.size(0) && p.size(2) == z.size(1) &&
            p.value().is_contiguous(),
        "triangle end of ", z.shape(), " and ", p.shape());
  check(!NoGrad::active() || !z.requires_grad(), "a recorded tensor would be overwritten");
  const Tensor out = NoGrad::active()
                         ? z.value()
                         : Tensor::empty(z.shape(), z.value().dtype(), z.value().device());
  kernels(out.device())
      .triangle_end(z.value(), p.value(), factors, values(proj), values(gate), out);
  return result(
      "triangle_end", out,
      {&z, &p, &proj.scale, &proj.offset, &proj.w, &proj.b, &gate.scale, &gate.offset, &gate.w,
       &gate.b},
      [=](const Tensor& dout) {
        into_gradient(p, [&](const Tensor& dp, bool add) {
          // The kernel writes dp; what was there before it is rare.
          const Tensor own = add ? Tensor::empty(dp.shape(), dp.dtype(), dp.device()) : dp;
          const auto run = [&](const Tensor& dz, bool add_z) {
            kernels(dout.device())
                .triangle_end_backward(z.value(), p.value(), factors, values(proj), values(gate),
                                       dout, dz, add_z, own, gradients(proj), gradients(gate));
          };
          if (has_room(z) && dout.is_contiguous()) {
            run(dout, false);  // the node's own: it becomes z's gradient
            z.add_grad(dout);
          } else {
            into_gradient(z, run);
          }
          if (add) kernels(dp.device()).add(own, dp);
        });
      });
}

}  // namespace ff
