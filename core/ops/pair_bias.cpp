// Attention's bias from the pair representation: checks and dispatch.
#include "core/ops/pair_bias.h"

#include "core/ops/gradient.h"

namespace ff {

bool fuses_pair_bias(const Var& z, const Var& w) {
  const Tensor& t = z.value();
  return kernels(t.device()).pair_bias && t.dtype() == Dtype::bf16 && t.rank() == 3 &&
         t.size(2) > 0 && t.size(2) <= 128 && w.size(1) <= 8 &&
         t.size(0) * t.size(1) <= INT32_MAX &&
         // Rows in packs of 16 bytes.
         reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0 && t.stride(2) == 1 && t.size(2) % 8 == 0 &&
         t.stride(0) % 8 == 0 && t.stride(1) % 8 == 0;
}

Var pair_bias(const Var& z, const NormedLayer& layer, bool transposed) {
  const int64_t n = z.size(0), m = z.size(1), h = layer.w.size(1);
  const auto as_pairs = [=](const Tensor& t) { return transposed ? t.transpose(1, 2) : t; };
  const Tensor bias =
      Tensor::empty(transposed ? Dims{h, m, n} : Dims{h, n, m}, Dtype::f32, z.value().device());
  kernels(bias.device()).pair_bias(z.value(), values(layer), as_pairs(bias));
  return result("pair_bias", bias, {&z, &layer.scale, &layer.offset, &layer.w},
                [=](const Tensor& dbias) {
                  into_gradient(z, [&](const Tensor& dz, bool add) {
                    kernels(dbias.device())
                        .pair_bias_backward(z.value(), values(layer), as_pairs(dbias), dz, add,
                                            gradients(layer));
                  });
                });
}

}  // namespace ff
