// Dropout as AlphaFold has it: a mask that all rows of axis 0 share, drawn from counters, so that
// any number of threads or ranks, a replay and a restart drop the same.
#pragma once

#include "core/autograd/tape.h"

namespace ff {

/// Names the masks of one pass over one sample. As it is made it drops nothing.
struct DropoutStream {
  bool active = false;
  uint64_t seed = 0, step = 0, sample = 0;
  uint64_t recycle = 0, stack = 0, block = 0;

  /// [n, c], f32 (f64 for `dtype` f64): 0 with probability `rate`, else 1 / (1 - rate). An element
  /// follows from this name, `place` and its own index j c + k alone. Undefined where nothing is
  /// dropped.
  Tensor factors(double rate, uint64_t place, int64_t n, int64_t c, Dtype dtype,
                 Device device = {}) const;
};

/// x [.., n, c] times factors [n, c]; x itself for undefined factors. Keeps the factors alone.
Var dropout(const Var& x, const Tensor& factors);

/// residual + x times factors; under NoGrad written into residual itself. Keeps the factors alone.
/// Where `along` is 0 the factors [n, c] are those of x [n, .., c].
Var dropout_add(const Var& residual, const Var& x, const Tensor& factors, int along = 1);

}  // namespace ff
