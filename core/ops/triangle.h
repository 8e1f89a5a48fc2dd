// Triangle multiplication, between its projections and its output. Suppl. Alg. 11 and 12.
#pragma once

#include "core/autograd/tape.h"

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

}  // namespace ff
