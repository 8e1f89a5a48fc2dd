// Invariant point attention: scalars, points and pairs of all residues, read in every residue's
// frame.
#pragma once

#include "core/autograd/tape.h"

namespace ff {

/// Projections are as the linear layers leave them: heads outermost in the last axis, points with
/// all x, then all y, then all z. One dtype, f32 or f64; contiguous but for z's leading axes. The
/// queries may be some of the residues: a rank's own rows of z.
struct IpaInputs {
  Var q_scalar;       ///< [n_query, n_head * c_qk]
  Var kv_scalar;      ///< [n_res, n_head * (c_qk + c_v)]; a head's key, then its value
  Var q_point;        ///< [n_query, 3 * n_head * p_qk] in the global frame
  Var kv_point;       ///< [n_res, 3 * n_head * (p_qk + p_v)] in the global frame
  Var affine;         ///< [n_query, 7] the queries' unit quaternions and translations
  Var bias;           ///< [n_query, n_res, n_head]
  Var z;              ///< [n_query, n_res, c_z], layer-normed
  Var point_weights;  ///< [n_head], before the softplus
  Tensor query_mask;  ///< [n_query] of the same dtype, 1 = keep
  Tensor mask;        ///< [n_res]
};

/// Jumper et al. 2021, Suppl. Alg. 22, lines 7-11:
///   a[h,i,j] = softmax_j(sqrt(1/(3 c_qk)) q.k + sqrt(1/3) bias[i,j,h]
///              - 1/2 softplus(w[h]) sqrt(1/(13.5 p_qk)) sum_p |q_p - k_p|^2 - 1e5 (1 - m[i] m[j]))
/// Returns [n_query, n_head * (c_v + 4 p_v + c_z)], each part with its heads outermost:
///   sum_j a v, then the points sum_j a v_p in residue i's frame (all x, all y, all z), then their
///   norms sqrt(1e-8 + |.|^2), then sum_j a z[i,j].
/// Throws ff::Error on shape or dtype mismatch.
Var invariant_point_attention(const IpaInputs& in);

}  // namespace ff
