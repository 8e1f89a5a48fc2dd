// What is computed in the type of its tensors, f32 or f64.
#pragma once

#include "core/tensor/tensor.h"

namespace ff {

/// Calls f with a zero of the tensor's type: f32 or f64.
template <class F>
auto by_real_type(const Tensor& t, F f) {
  check(t.dtype() == Dtype::f32 || t.dtype() == Dtype::f64, "a loss of ", name_of(t.dtype()));
  return t.dtype() == Dtype::f64 ? f(double()) : f(float());
}

}  // namespace ff
