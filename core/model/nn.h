// The layers that every module is made of, reading their parameters from a scope.
#pragma once

#include "core/model/params.h"
#include "core/ops/layer_norm.h"
#include "core/ops/linear.h"

namespace ff {

/// Linear layer with parameters `weights` and `bias` of `scope`.
inline Var linear(const Scope& scope, const Var& x, Activation act = Activation::kNone) {
  return linear(x, scope["weights"], scope["bias"], act);
}

/// Layer norm with parameters `scale` and `offset` of `scope`.
inline Var layer_norm(const Scope& scope, const Var& x) {
  return layer_norm(x, scope["scale"], scope["offset"]);
}

/// The same for a linear layer, which makes it itself where x is narrow.
inline Normed normed(const Scope& scope, const Var& x) {
  if (x.size(-1) > kNarrow) return layer_norm(scope, x);
  return {x, scope["scale"], scope["offset"]};
}

inline Var layer_norm_again(const Scope& scope, const Var& x) {
  return layer_norm_again(x, scope["scale"], scope["offset"]);
}

}  // namespace ff
