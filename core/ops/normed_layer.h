// A linear layer of what a layer norm gives, as fused kernels take it.
#pragma once

#include "core/autograd/tape.h"
#include "core/ops/kernels.h"

namespace ff {

/// LN(x; scale, offset) w + b; b may be undefined.
struct NormedLayer {
  Var scale, offset, w, b;
};

inline NormedLinear values(const NormedLayer& l) {
  return {l.scale.value(), l.offset.value(), l.w.value(), l.b.value()};
}
inline NormedLinear gradients(const NormedLayer& l) {
  return {l.scale.grad_into(), l.offset.grad_into(), l.w.grad_into(), l.b.grad_into()};
}

}  // namespace ff
