// Layer normalisation over the channels (AlphaFold's epsilon, 1e-5).
#pragma once

#include "core/autograd/tape.h"

namespace ff {

/// y = (x - mean) / sqrt(var + 1e-5) * scale + offset, two-pass variance, statistics in f32 (f64
/// for f64).
/// - x: [..., c] f32, bf16 or f64, any leading strides, last axis contiguous
/// - scale, offset: [c] f32 (f64 for f64)
///
/// Returns a contiguous tensor of x's dtype. Saves x; the backward takes mean and 1/std of it
/// again.
Var layer_norm(const Var& x, const Var& scale, const Var& offset);

/// The same, which linear layers make again in their backward instead of keeping it: for a large x
/// whose norm's time is small beside that of what follows.
Var layer_norm_again(const Var& x, const Var& scale, const Var& offset);

/// The same for an operation that reads x and normalises its rows itself: the Var has no value,
/// which that operation's backward asks for. Undefined where none of the three's gradient is
/// wanted.
Var layer_norm_later(const Var& x, const Var& scale, const Var& offset);

/// The same over axis 0 of x [c, n, m] (last axis contiguous). Returns [n, m, c] contiguous.
Var layer_norm_channels_first(const Var& x, const Var& scale, const Var& offset);

}  // namespace ff
