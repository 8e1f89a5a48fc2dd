// Dropout: the masks, checks and dispatch.
#include "core/ops/dropout.h"

#include "core/base/rng.h"
#include "core/ops/gradient.h"

namespace ff {
namespace {

/// y = base, if any, + x times factors, [n, c] of the last two axes, or where `along` is 0 of the
/// first and last.
void add_dropped(const Tensor& x, const Tensor& factors, int along, const Tensor& base,
                 const Tensor& y) {
  const auto turn = [along](const Tensor& t) { return along == 0 && t ? t.transpose(0, 1) : t; };
  check(x.rank() >= 2 && factors.shape() == Dims{x.size(along == 0 ? 0 : -2), x.size(-1)},
        "dropout of ", x.shape(), " with factors ", factors.shape());
  kernels(y.device()).add_dropped(turn(x), factors, turn(base), turn(y));
}

/// The backward of x's side: dx += dy times factors.
void dropout_backward(const Var& x, const Tensor& factors, int along, const Tensor& dy) {
  into_gradient(x, [&](const Tensor& dx, bool add) {
    if (dx) add_dropped(dy, factors, along, add ? dx : Tensor(), dx);
  });
}

}  // namespace

Tensor DropoutStream::factors(double rate, uint64_t place, int64_t n, int64_t c, Dtype dtype,
                              Device device) const {
  if (!active || rate == 0) return {};
  check(rate > 0 && rate < 1, "a dropout rate of ", rate);
  const Tensor all = Tensor::empty({n, c}, dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32, device);
  kernels(device).draw_dropout(Rng(seed, {step, sample, recycle, stack, block, place}), rate, all);
  return all;
}

Var dropout(const Var& x, const Tensor& factors) {
  if (!factors.defined()) return x;
  const Tensor y = Tensor::empty(x.shape(), x.value().dtype(), x.value().device());
  add_dropped(x.value(), factors, 1, {}, y);
  return result("dropout", y, {&x}, [factors, to = x.gradient_only()](const Tensor& dy) {
    dropout_backward(to, factors, 1, dy);
  });
}

Var dropout_add(const Var& residual, const Var& x, const Tensor& factors, int along) {
  check(residual.shape() == x.shape(), "add ", x.shape(), " to ", residual.shape());
  const Tensor y = place_for_result(residual);
  add_dropped(x.value(), factors, along, residual.value(), y);
  return result(
      "dropout_add", y, {&residual, &x},
      [factors, along, r = residual.gradient_only(), to = x.gradient_only()](const Tensor& dy) {
        dropout_backward(to, factors, along, dy);
        hand_over(r, dy);
      });
}

}  // namespace ff
