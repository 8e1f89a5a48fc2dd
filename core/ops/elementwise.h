// Element-wise operations, and the residual additions that end a module.
#pragma once

#include "core/autograd/tape.h"

namespace ff {

/// residual + x; under NoGrad written into residual itself. Same shape, last axes contiguous.
Var add(const Var& residual, const Var& x);

/// residual + x sigmoid(gate); under NoGrad written into residual itself.
Var add_gated(const Var& residual, const Var& x, const Var& gate);

/// Each row of x [..., c] times mask [...] (f32). Under NoGrad x is overwritten.
Var scale_rows(const Var& x, const Tensor& mask);

}  // namespace ff
