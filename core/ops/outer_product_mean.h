// Outer product mean. Suppl. Alg. 10.
#pragma once

#include "core/autograd/tape.h"

namespace ff {

/// residual[i,j,:] + (sum_{c,d} (sum_s left[s,i,c] right[s,j,d]) w[c,d,:] + b) / (1e-3 + norm[i,j])
/// left      [n_seq, n_i, c]   right [n_seq, n_j, d]   already masked
/// w         [c, d, c_z]       same dtype;  b [c_z] f32
/// norm      [n_i, n_j]        f32 (f64): sum_s mask[s,i] mask[s,j]
/// residual  [n_i, n_j, c_z]   under NoGrad overwritten
/// The sides are both or, in one tensor, [n_seq, n, 2, c].
/// The [n_i, n_j, c, d] product exists a few rows, on a GPU columns, at a time; where a GPU makes
/// it at once, it is kept for the gradient of w.
Var outer_product_mean(const Var& residual, const Vars& sides, const Var& w, const Var& b,
                       const Tensor& norm);

/// sum_s left[s,i] right[s,j]: [n_i, n_j] of masks [n_seq, n_i] and [n_seq, n_j], in f32 (f64 where
/// `dtype` is f64).
Tensor pair_count(const Tensor& left, const Tensor& right, Dtype dtype);

}  // namespace ff
