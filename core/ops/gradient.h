// Room for the gradients that a backward kernel adds to.
#pragma once

#include "core/autograd/tape.h"
#include "core/ops/kernels.h"

namespace ff {

/// Whether x's gradient is wanted, all of a tensor, and nothing was added to it yet.
inline bool has_room(const Var& x) {
  return x.requires_grad() && !x.slot()->owner().base && x.slot()->untouched();
}

/// Adds dy, a backward function's own that nobody reads afterwards, where x's gradient is wanted:
/// it becomes that gradient where there was none.
inline void hand_over(const Var& x, const Tensor& dy) {
  if (!x.requires_grad()) return;
  if (has_room(x) && dy.dtype() == x.slot()->dtype && dy.is_contiguous() &&
      dy.shape() == x.slot()->shape)
    return x.add_grad(dy);
  const Tensor dx = x.grad_into(), from = dy.to(dx.dtype());
  if (dx.rank() == 0)  // the kernel wants an axis
    kernels(dx.device()).add(from.view({1}), dx.view({1}));
  else
    kernels(dx.device()).add(from, dx);
}

/// f(dx, add) adds to dx or writes it, contiguous; undefined where x's gradient is not wanted.
template <class F>
void into_gradient(const Var& x, F f) {
  const bool wanted = x.requires_grad();
  const Tensor dx = wanted && !has_room(x) ? x.grad_into() : Tensor();
  if (!wanted || (dx && dx.is_contiguous())) return f(dx, wanted);
  const Tensor own = Tensor::empty(x.slot()->shape, x.slot()->dtype, x.slot()->device);
  f(own, false);
  x.add_grad(own);
}

/// Contiguous zeros for a kernel that needs its gradients contiguous, or adds to them more than
/// once: f32 where x's are bf16. At the end of its life they are handed over to x's; they are x's
/// own from the start where that is f32 and was still zero. Undefined where x's gradient is not
/// wanted.
class Gradient {
 public:
  explicit Gradient(const Var& x) : to_(x.gradient_only()) {
    if (!x.requires_grad()) return;
    const GradSlot& slot = *x.slot();
    const bool zero = slot.untouched(), half = slot.dtype == Dtype::bf16;
    if (!half) room_ = x.grad_into();
    own_ = !half && zero && room_.is_contiguous();
    if (!own_) room_ = Tensor::zeros(slot.shape, half ? Dtype::f32 : slot.dtype, slot.device);
  }
  ~Gradient() {
    if (room_.defined() && !own_) hand_over(to_, room_.to(to_.slot()->dtype));
  }
  Gradient(const Gradient&) = delete;
  Gradient& operator=(const Gradient&) = delete;
  operator const Tensor&() const { return room_; }

 private:
  Var to_;
  Tensor room_;
  bool own_ = false;
};

}  // namespace ff
