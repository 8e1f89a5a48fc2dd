// The optimizer: Adam, its learning rate counted in samples, clipping of each example's gradient
// and the moving average of the parameters (Suppl. 1.11.3). Everything is f32 by parameter name,
// and gives the same bits for any number of threads.
#pragma once

#include <array>
#include <cstdint>

#include "core/tensor/arrays.h"

namespace ff {

struct OptimConfig {
  double lr = 1e-3;  ///< the highest
  std::array<double, 2> betas{0.9, 0.999};
  double eps = 1e-6;
  int64_t warmup_samples = 128'000;         ///< 0: none
  int64_t decay_after_samples = 6'400'000;  ///< 0: never
  double decay = 0.95;
  double clip_per_example = 0.1;  ///< global norm; 0: not clipped
  double ema = 0.999;
};

/// The rate of the step that brings the count of samples to `samples`: linear up to warmup_samples,
/// then lr, and lr * decay beyond decay_after_samples.
double learning_rate(const OptimConfig& config, int64_t samples);

/// Tensors of zeros with the names and shapes of `like`, on its device, in one piece of memory.
Arrays zeros_like(const Arrays& like, Dtype dtype = Dtype::f32);

/// The norm over all values of all arrays: squares in f64, added in a fixed order.
double global_norm(const Arrays& arrays);

/// Adds one example's gradient to `sum`, scaled to the norm `limit` where it is longer (0: never).
/// Where its loss [] or its norm is not finite it is not added, and skipped [1] grows by 1. Names,
/// shapes and type (f32 or, for tests, f64) must be those of `sum`. Returns the norm before
/// clipping, [1] f64; a GPU's host waits for nothing.
Tensor add_clipped(Arrays& sum, const Arrays& gradient, const Tensor& loss, double limit,
                   const Tensor& skipped);

/// One step of Adam (Kingma and Ba 2015, Alg. 1) and of the moving average, in one pass:
///   g = scale * gradient;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
///   p -= rate * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps);  ema += (1 - d) (p - ema)
/// `scale` turns a batch's sum into its mean. All arrays have the names and shapes of `params`; an
/// empty `ema` is left out. Changes nothing where skipped [1] f32 is not 0.
struct AdamArrays {
  Arrays &params, &m, &v, &ema;
};
void adam_step(const OptimConfig& config, const AdamArrays& arrays, const Arrays& gradient,
               double scale, double rate, int64_t t, const Tensor& skipped);

}  // namespace ff
