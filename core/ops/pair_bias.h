// Attention's bias from the pair representation in one kernel.
#pragma once

#include "core/ops/normed_layer.h"

namespace ff {

/// Whether there is a kernel for z and w [c, h], as pair_bias has them.
bool fuses_pair_bias(const Var& z, const Var& w);

/// bias[h, i, j] = LN(z[i, j]; scale, offset) . w[:, h] (Suppl. Alg. 7, 13 and 14, line 3 each), of
/// which z alone is kept. z [n, m, c] and w [c, h] are bf16, the bias f32: [h, n, m], or [h, m, n]
/// where it is `transposed`.
Var pair_bias(const Var& z, const NormedLayer& layer, bool transposed);

}  // namespace ff
