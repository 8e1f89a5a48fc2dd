// Pair embedding of input, relative position and recycled distances. Suppl. Alg. 3 lines 2-3, Alg.
// 4, Alg. 32.
#pragma once

#include "core/autograd/tape.h"

namespace ff {

/// z[i,j,:] = left[i] + right[j] + relpos[clip(r_i - r_j + k, 0, 2k)] + dgram[bin(|x_i - x_j|)]
/// left           [n_row, c_z]  f32, bf16 or f64, contiguous: rows first_row, ... of all residues
/// right          [n_res, c_z]
/// residue_index  [n_res]       i32
/// relpos         [2k + 1, c_z] rows of the one-hot product, the bias added
/// beta           [n_res, 3]    f32, recycled pseudo-beta positions in angstrom, or undefined
/// dgram          [bins, c_z]   rows of the one-hot product; its bias is in relpos
/// breaks         [bins]        f32, squared lower edges in angstrom^2; a distance on no side of an
///                              edge has no bin
/// Returns [n_row, n_res, c_z].
Var pair_embed(const Var& left, const Var& right, const Tensor& residue_index, const Var& relpos,
               const Tensor& beta, const Var& dgram, const Tensor& breaks, int64_t first_row = 0);

}  // namespace ff
