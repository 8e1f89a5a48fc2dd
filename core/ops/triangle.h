// Triangle multiplication, between its projections and its output. Suppl. Alg. 11 and 12.
#pragma once

#include "core/ops/normed_layer.h"

namespace ff {

/// a[c, r] = mask[r] (proj[c, r] + proj_bias[c]) sigmoid(gate[c, r] + gate_bias[c])   (line 2)
/// proj, gate [c, rows] contiguous rows; biases [c] f32 (f64); mask [rows] f32 contiguous.
/// Returns [c, rows], written into `out` (any stride of its first axis) when that is given, under
/// NoGrad.
Var triangle_gate(const Var& proj, const Var& proj_bias, const Var& gate, const Var& gate_bias,
                  const Tensor& mask, const Var& out = {});

/// Every channel's product of a, b [c, n, n] (line 4):
/// outgoing: p[c,i,j] = sum_k a[c,i,k] b[c,j,k];   incoming: p[c,i,j] = sum_k a[c,k,j] b[c,k,i].
Var triangle_product(const Var& a, const Var& b, bool outgoing);

/// The same of ab [2 c, n, n]: a, then b.
Var triangle_product(const Var& ab, bool outgoing);

/// Whether there are fused kernels for z's channels and those of the product.
constexpr bool fuses_triangle(int64_t c, int64_t channels) {
  return c == channels && (c == 64 || c == 128);
}

/// Whether the two operations below serve this z: a GPU's, in bf16, contiguous.
bool fuses_triangle(const Var& z, int64_t channels);

/// a[c, i, j] = mask[i, j] proj(z[i, j])[c] sigmoid(gate(z[i, j]))[c] in one kernel, which keeps z
/// alone (lines 1 and 2), of a side's layers {proj, gate} or of both sides' {proj, gate, proj,
/// gate}, which follow each other in a; all have the norm of the first. mask [n, m] f32 contiguous.
Var triangle_sides(const Var& z, const Tensor& mask, const std::vector<NormedLayer>& layers);

/// z + factors proj(p) sigmoid(gate(z)) in one kernel, which keeps z and p (lines 3 and 4; the
/// module's dropout and residual). p [c, n, m]; factors [m, c] f32 or undefined. Under NoGrad
/// written into z itself.
Var triangle_end(const Var& z, const Var& p, const Tensor& factors, const NormedLayer& proj,
                 const NormedLayer& gate);

}  // namespace ff
