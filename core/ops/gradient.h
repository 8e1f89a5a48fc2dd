// Room for the gradients that a backward kernel adds to.
#pragma once

#include "core/autograd/tape.h"
#include "core/ops/kernels.h"

namespace ff {

/// Contiguous zeros for a kernel that needs its gradients contiguous, or adds to them more than
/// once: f32 where x's are bf16. At the end of its life they are added to x's, which may be a view.
/// Undefined where x's gradient is not wanted.
class Gradient {
 public:
  explicit Gradient(const Var& x) : to_(x.grad_into()) {
    if (to_.defined())
      room_ = Tensor::zeros(to_.shape(), to_.dtype() == Dtype::bf16 ? Dtype::f32 : to_.dtype(),
                            to_.device());
  }
  ~Gradient() {
    if (to_.defined()) kernels(to_.device()).add(room_.to(to_.dtype()), to_);
  }
  Gradient(const Gradient&) = delete;
  Gradient& operator=(const Gradient&) = delete;
  operator const Tensor&() const { return room_; }

 private:
  Tensor to_, room_;
};

}  // namespace ff
