// Layer normalisation: checks and dispatch.
#include "core/ops/layer_norm.h"

#include "core/ops/gradient.h"

namespace ff {
namespace {

void check_norm(int64_t c, const Var& x, const Var& scale, const Var& offset) {
  check(scale.value().numel() == c && offset.value().numel() == c, "layer norm of ", x.shape(),
        " with scale ", scale.shape());
  check(x.value().stride(-1) == 1 || x.size(-1) == 1, "layer norm needs a contiguous last axis");
}

Tensor normed(const Var& x, const Var& scale, const Var& offset) {
  const Tensor& xv = x.value();
  const Tensor y = Tensor::empty(xv.shape(), xv.dtype(), xv.device());
  kernels(xv.device()).layer_norm(xv, scale.value(), offset.value(), y);
  return y;
}

Var recorded(const Tensor& y, const Var& x, const Var& scale, const Var& offset) {
  return result("layer_norm", y, {&x, &scale, &offset}, [=](const Tensor& dy) {
    // Where nothing was added to dx yet it takes the place of dy, which is the node's own:
    // zeros are neither filled nor read.
    const bool first = has_room(x) && x.slot()->dtype == dy.dtype() && dy.is_contiguous();
    kernels(dy.device())
        .layer_norm_backward(x.value(), scale.value(), dy, first ? dy : x.grad_into(),
                             scale.grad_into(), offset.grad_into());
    if (first) x.add_grad(dy);
  });
}

/// y, whose value a backward makes again instead of keeping it.
Var made_again(const Var& y, const Var& x, const Var& scale, const Var& offset) {
  if (y.requires_grad()) y.slot()->again = [=] { return normed(x, scale, offset); };
  return y;
}

}  // namespace

Var layer_norm(const Var& x, const Var& scale, const Var& offset) {
  check_norm(x.size(-1), x, scale, offset);
  return recorded(normed(x, scale, offset), x, scale, offset);
}

Var layer_norm_again(const Var& x, const Var& scale, const Var& offset) {
  return made_again(layer_norm(x, scale, offset), x, scale, offset);
}

Var layer_norm_later(const Var& x, const Var& scale, const Var& offset) {
  check_norm(x.size(-1), x, scale, offset);
  // x has the shape, dtype and device.
  return made_again(recorded(x.value(), x, scale, offset), x, scale, offset).gradient_only();
}

Var layer_norm_channels_first(const Var& x, const Var& scale, const Var& offset) {
  const Tensor& xv = x.value();
  check_norm(xv.size(0), x, scale, offset);
  const Tensor y = Tensor::empty({xv.size(1), xv.size(2), xv.size(0)}, xv.dtype(), xv.device());
  kernels(xv.device()).layer_norm_channels_first(xv, scale.value(), offset.value(), y);
  return result("layer_norm_channels_first", y, {&x, &scale, &offset}, [=](const Tensor& dy) {
    kernels(dy.device())
        .layer_norm_channels_first_backward(x.value(), scale.value(), dy, x.grad_into(),
                                            scale.grad_into(), offset.grad_into());
  });
}

}  // namespace ff
