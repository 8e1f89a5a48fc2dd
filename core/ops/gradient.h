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
/// once: f32 where x's are bf16. At the end of its life they are added to x's, which may be a view;
/// they are x's own where that was still zero. Undefined where x's gradient is not wanted.
class Gradient {
 public:
  explicit Gradient(const Var& x) {
    const bool zero = x.requires_grad() && x.slot()->untouched();
    to_ = x.grad_into();
    if (!to_.defined()) return;
    own_ = zero && to_.dtype() != Dtype::bf16 && to_.is_contiguous();
    room_ = own_ ? to_
                 : Tensor::zeros(to_.shape(), to_.dtype() == Dtype::bf16 ? Dtype::f32 : to_.dtype(),
                                 to_.device());
  }
  ~Gradient() {
    if (to_.defined() && !own_) kernels(to_.device()).add(room_.to(to_.dtype()), to_);
  }
  Gradient(const Gradient&) = delete;
  Gradient& operator=(const Gradient&) = delete;
  operator const Tensor&() const { return room_; }

 private:
  Tensor to_, room_;
  bool own_ = false;
};

}  // namespace ff
