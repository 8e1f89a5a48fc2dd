// Linear: y = act(x w + b).
#pragma once

#include "core/autograd/tape.h"

namespace ff {

enum class Activation { kNone, kRelu, kSigmoid };

/// y[..., o] = act(sum_c x[..., c] w[c, o] + b[o])
/// x  [..., c_in]   f32, bf16 or f64, last axis contiguous
/// w  [c_in, ...]   same dtype as x; further axes count as one c_out (heads x channels)
/// b  [c_out] (any shape of c_out elements) or undefined
/// Returns [..., c_out] contiguous in x's dtype. f32 accumulation for bf16.
/// Throws ff::Error on shape or dtype mismatch.
Var linear(const Var& x, const Var& w, const Var& b = {}, Activation act = Activation::kNone);

}  // namespace ff
