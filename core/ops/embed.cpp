// Pair embedding: checks and dispatch.
#include "core/ops/embed.h"

#include "core/ops/gradient.h"

namespace ff {

Var pair_embed(const Var& left, const Var& right, const Tensor& residue_index, const Var& relpos,
               const Tensor& beta, const Var& dgram, const Tensor& breaks, int64_t first_row) {
  const int64_t rows = left.size(0), n = right.size(0), c = left.size(1);
  check(right.size(1) == c && first_row >= 0 && first_row + rows <= n &&
            residue_index.shape() == Dims{n} && relpos.size(1) == c && dgram.size(1) == c &&
            breaks.shape() == Dims{dgram.size(0)} &&
            (!beta.defined() || beta.shape() == Dims{n, 3}),
        "pair embedding of ", left.shape(), " and ", right.shape());
  const Tensor z = Tensor::empty({rows, n, c}, left.value().dtype(), left.value().device());
  kernels(z.device())
      .pair_embed(left.value(), right.value(), residue_index, relpos.value(), beta, dgram.value(),
                  breaks, first_row, z);
  return result("pair_embed", z, {&left, &right, &relpos, &dgram}, [=](const Tensor& dz) {
    const Gradient dl(left), dr(right), dp(relpos), dg(dgram);
    kernels(dz.device())
        .pair_embed_backward(residue_index, beta, breaks, first_row, dz, dl, dr, dp, dg);
  });
}

}  // namespace ff
