// Attention: gated, with pair bias and mask; and the global form of the extra-MSA stack. The logits
// of more than a few queries never exist in memory.
#pragma once

#include "core/autograd/tape.h"

namespace ff {

/// Gated attention with pair bias. Jumper et al. 2021, Suppl. Alg. 7 lines 2-6, 8, 13, 14, 17.
///   o[b,i,h,:] = sigmoid(gate[b,i,h,:]) * sum_j softmax_j(q.k / sqrt(c) + bias[h,i,j]) v[b,j,h,:]
/// - q: [batch, n_query, n_head, c] f32, bf16 or f64, last axis contiguous, any other strides
/// - k, v: [batch, n_key, n_head, c], [batch, n_key, n_head, c_v]
/// - gate: [batch, n_query, n_head, c_v] before the sigmoid, or undefined
/// - bias: [n_head, n_query, n_key] f32 (f64 for f64), shared by the batch, or undefined
/// - mask: [batch, n_key] f32, 0 = the key's logit becomes -1e9 (AlphaFold's rule: a row whose keys
///   are all masked averages them evenly), or undefined
///
/// Returns [batch, n_query, n_head, c_v]. Softmax and sums in f32 (f64 for f64). Where `along` is
/// 0, the first two axes of q, k, v, gate and of the result are the other way round. Under NoGrad
/// the result takes the queries' place if it has their shape: they are lost, k, v and gate must be
/// beside them, and no memory is asked for. Else it is contiguous.
Var attention(const Var& q, const Var& k, const Var& v, const Var& gate, const Var& bias,
              const Tensor& mask, int along = 1);

/// The same of query, key, value and gate beside each other, [.., .., 4, n_head, c].
Var attention(const Var& qkvg, const Var& bias, const Tensor& mask, int along = 1);

/// Global attention. Suppl. Alg. 19 lines 4-7: one query a batch element, keys and values shared by
/// heads.
/// - q: [batch, n_head, c]
/// - k, v: [batch, n, c], [batch, n, c_v]
/// - gate: [batch, n, n_head * c_v] before the sigmoid
/// - mask: [batch, n] f32
///
/// Returns [batch, n, n_head * c_v] contiguous.
Var global_attention(const Var& q, const Var& k, const Var& v, const Var& gate, const Tensor& mask);

/// Mean over s of x [batch, s, c] under mask [batch, s] f32, with 1e-10 added to the count. Returns
/// [batch, c].
Var masked_mean(const Var& x, const Tensor& mask);

}  // namespace ff
