// Cross-entropies, and the sum of everything.
#include <algorithm>
#include <cmath>

#include "core/loss/losses.h"
#include "core/loss/node.h"

namespace ff {

Var cross_entropy(const Var& logits, const std::vector<int32_t>& classes,
                  const std::vector<double>& weights, double total) {
  const int64_t n = logits.size(logits.rank() - 1), rows = logits.value().numel() / n;
  check(int64_t(classes.size()) == rows && int64_t(weights.size()) == rows, "cross-entropy of ",
        logits.shape(), " with ", classes.size(), " classes");
  const double norm = 1 / total;
  LossNode node("cross-entropy loss", logits.shape());
  const Device device = logits.value().device();
  const Tensor d = node.gradient(logits), x = logits.value().contiguous(),
               loss = Tensor::empty({1}, Dtype::f64, device);
  kernels(device).cross_entropy(x, Tensor::of<int32_t>({rows}, classes.data()).to(device),
                                Tensor::of<double>({rows}, weights.data()).to(device), norm, loss,
                                d);
  return node.done(loss.item(), x.dtype());
}

Var binary_cross_entropy(const Var& logits, const Tensor& labels, const Tensor& weights) {
  check(labels.shape() == logits.shape() && weights.shape() == logits.shape(), "cross-entropy of ",
        logits.shape(), " with labels ", labels.shape());
  LossNode node("cross-entropy loss", logits.shape());
  const Tensor d = node.gradient(logits), x = logits.value().contiguous(),
               truth = labels.to(Dtype::f64).contiguous(), w = weights.to(Dtype::f64).contiguous();
  double count = 0, sum = 0;
  for (int64_t i = 0; i < w.numel(); ++i) count += w.data<double>()[i];
  const double norm = 1 / (1e-8 + count);
  by_real_type(x, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t i = 0; i < x.numel(); ++i) {
      const double l = double(x.data<T>()[i]), y = truth.data<double>()[i],
                   weight = w.data<double>()[i] * norm;
      // -y log s(l) - (1 - y) log s(-l), each without overflow.
      const double softplus = std::max(l, 0.0) + std::log1p(std::exp(-std::abs(l)));
      sum += weight * (softplus - y * l);
      if (d.defined()) d.data<T>()[i] = T(weight * (1 / (1 + std::exp(-l)) - y));
    }
    return 0;
  });
  return node.done(sum, x.dtype());
}

Var weighted_sum(const std::vector<std::pair<double, Var>>& terms) {
  check(!terms.empty(), "the sum of no losses");
  const Dtype dtype = terms[0].second.value().dtype();
  LossNode node("sum of losses");
  double sum = 0;
  for (const auto& [weight, x] : terms) {
    const Tensor d = node.gradient(x);
    by_real_type(x.value(), [&, w = weight](auto zero) {
      using T = decltype(zero);
      sum += w * double(*x.value().template data<T>());
      if (d.defined()) *d.data<T>() = T(w);
      return 0;
    });
  }
  return node.done(sum, dtype);
}

}  // namespace ff
