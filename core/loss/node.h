// How a loss becomes a Var: its gradient is made beside its value and scaled in the backward.
#pragma once

#include <utility>
#include <vector>

#include "core/autograd/tape.h"
#include "core/base/error.h"
#include "core/ops/kernels.h"

namespace ff {

/// Calls f with a zero of the tensor's type: f32 or f64.
template <class F>
auto by_real_type(const Tensor& t, F f) {
  check(t.dtype() == Dtype::f32 || t.dtype() == Dtype::f64, "a loss of ", name_of(t.dtype()));
  return t.dtype() == Dtype::f64 ? f(double()) : f(float());
}

class LossNode {
 public:
  explicit LossNode(const char* name, const Dims& logits = {}) : name_(name) {
    if (FiniteWatch::active())
      FiniteWatch::place() = logits.size() ? cat("logits ", logits) : std::string();
  }
  /// Contiguous zeros for d loss / d x, undefined where it is not wanted.
  Tensor gradient(const Var& x) {
    if (!recording({&x})) return {};
    const Tensor g = Tensor::zeros(x.shape(), x.value().dtype(), x.value().device());
    grads_.emplace_back(x.gradient_only(), g);
    return g;
  }

  Var done(double value, Dtype dtype) {
    Vars out{Var(Tensor::zeros({}, dtype))};
    by_real_type(out[0].value(), [&](auto t) {
      using T = decltype(t);
      *out[0].value().data<T>() = T(value);
      return 0;
    });
    if (FiniteWatch* watch = FiniteWatch::active()) watch->value(name_, out[0].value());
    if (grads_.empty()) return out[0];
    Tape::current()->record(
        out,
        [grads = std::move(grads_)](const std::vector<Tensor>& dy) {
          const double factor = dy[0].item();
          for (const auto& [x, g] : grads) {
            // Every row of g times the same number.
            const Tensor rows = g.rank() ? g.view({-1, g.size(-1)}) : g.view({1, 1}),
                         one = Tensor::of<double>({1}, &factor).to(g.dtype()).to(g.device());
            kernels(g.device()).scale_rows(one.expand(0, rows.size(0)), rows);
            const Tensor to = x.grad_into();  // the kernel wants an axis
            if (to.rank() == 0)
              kernels(g.device()).add(g.view({1}), to.view({1}));
            else
              kernels(g.device()).add(g, to);
          }
        },
        name_);
    return out[0];
  }

 private:
  const char* name_;
  std::vector<std::pair<Var, Tensor>> grads_;
};

}  // namespace ff
