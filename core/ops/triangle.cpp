// Triangle multiplication: checks and dispatch.
#include "core/ops/triangle.h"

#include "core/ops/gradient.h"
#include "core/ops/linear.h"

namespace ff {
namespace {

template <class F>
std::vector<NormedLinear> each(const std::vector<NormedLayer>& layers, F f) {
  std::vector<NormedLinear> made;
  for (const NormedLayer& l : layers) made.push_back(f(l));
  return made;
}

/// to = x y, or += where `add`; nothing where it is undefined.
void product_into(const Tensor& x, const Tensor& y, const Tensor& to, bool add) {
  if (to) kernels(to.device()).linear(x, y, {}, Activation::kNone, add ? to : Tensor(), to);
}

Tensor product_of(const Tensor& a, const Tensor& b, bool outgoing) {
  const Tensor p = Tensor::empty(a.shape(), a.dtype(), a.device());
  product_into(outgoing ? a : b.transpose(1, 2), outgoing ? b.transpose(1, 2) : a, p, false);
  return p;
}

/// The gradient of a (of = 0) or b (1) from dp, that of their product.
void product_gradient(const Tensor& a, const Tensor& b, const Tensor& dp, bool outgoing, int of,
                      const Tensor& to, bool add) {
  const Tensor d = of ? dp.transpose(1, 2) : dp, other = of ? a : b;
  product_into(outgoing ? d : other, outgoing ? other : d, to, add);
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
  const Tensor av = a.value(), bv = b.value();
  return result("triangle_product", product_of(av, bv, outgoing), {&a, &b}, [=](const Tensor& dp) {
    for (const int of : {0, 1})
      into_gradient(of ? b : a, [&](const Tensor& to, bool add) {
        product_gradient(av, bv, dp, outgoing, of, to, add);
      });
  });
}

Var triangle_product(const Var& ab, bool outgoing) {
  const int64_t c = ab.size(0) / 2;
  check(ab.rank() == 3 && ab.size(0) == 2 * c, "triangle product of ", ab.shape());
  const Tensor a = ab.value().narrow(0, 0, c), b = ab.value().narrow(0, c, c);
  return result("triangle_product", product_of(a, b, outgoing), {&ab}, [=](const Tensor& dp) {
    into_gradient(ab, [&](const Tensor& dab, bool add) {
      if (!dab) return;
      for (const int of : {0, 1})
        product_gradient(a, b, dp, outgoing, of, dab.narrow(0, of * c, c), add);
    });
  });
}

bool fuses_triangle(const Var& z, int64_t channels) {
  const Tensor& t = z.value();
  return kernels(t.device()).triangle_sides && t.dtype() == Dtype::bf16 && t.is_contiguous() &&
         reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0 && fuses_triangle(z.size(2), channels);
}

Var triangle_sides(const Var& z, const Tensor& mask, const std::vector<NormedLayer>& layers) {
  check(mask.numel() == z.size(0) * z.size(1) && mask.is_contiguous(), "triangle sides of ",
        z.shape(), ", mask ", mask.shape());
  const size_t count = layers.size();
  check(count == 2 || count == 4, "triangle sides of ", count, " layers");
  const NormedLayer &first = layers[0], &gate = layers[1], &second = layers[count - 2],
                    &last = layers[count - 1];
  const Tensor a = Tensor::empty({first.w.size(1) * int64_t(count / 2), z.size(0), z.size(1)},
                                 z.value().dtype(), z.value().device());
  kernels(a.device()).triangle_sides(z.value(), mask, each(layers, values), a);
  return result("triangle_sides", a,
                {&z, &first.scale, &first.offset, &first.w, &first.b, &gate.w, &gate.b, &second.w,
                 &second.b, &last.w, &last.b},
                [=](const Tensor& da) {
                  into_gradient(z, [&](const Tensor& dz, bool add) {
                    kernels(da.device())
                        .triangle_sides_backward(z.value(), mask, each(layers, values), da, dz, add,
                                                 each(layers, gradients));
                  });
                });
}

Var triangle_end(const Var& z, const Var& p, const Tensor& factors, const NormedLayer& proj,
                 const NormedLayer& gate) {
  check(p.rank() == 3 && p.size(1) == z.size(0) && p.size(2) == z.size(1) &&
            p.value().is_contiguous(),
        "triangle end of ", z.shape(), " and ", p.shape());
  const Tensor out = place_for_result(z);
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
