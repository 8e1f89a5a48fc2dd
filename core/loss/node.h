// How a loss becomes a Var: its gradient is made beside its value and scaled in the backward.
#pragma once

#include <utility>
#include <vector>

#include "core/autograd/tape.h"
#include "core/base/error.h"
#include "core/ops/gradient.h"
#include "core/ops/real_type.h"

namespace ff {

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

  Var done(double value, Dtype dtype) { return done(Tensor::of<double>({1}, &value), dtype); }
  /// value [1] f64, where the loss is.
  Var done(const Tensor& value, Dtype dtype) {
    Vars out{Var(value.view({}).to(dtype))};
    if (FiniteWatch* watch = FiniteWatch::active()) watch->value(name_, out[0].value());
    if (grads_.empty()) return out[0];
    Tape::current()->record(
        out,
        [grads = std::move(grads_)](const std::vector<Tensor>& dy) {
          for (const auto& [x, g] : grads) {
            // Every row of g times the same number.
            const Tensor rows = g.rank() ? g.view({-1, g.size(-1)}) : g.view({1, 1}),
                         one = dy[0].view({1}).to(g.dtype()).to(g.device());
            kernels(g.device()).scale_rows(one.expand(0, rows.size(0)), rows);
            hand_over(x, g);
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
