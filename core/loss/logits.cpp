// Cross-entropies, and the sum of everything.
#include "core/loss/losses.h"
#include "core/loss/node.h"

namespace ff {

Var cross_entropy(const Var& logits, const Tensor& classes, const Tensor& weights, double total) {
  const int64_t n = logits.size(logits.rank() - 1), rows = logits.value().numel() / n;
  check(classes.numel() == rows && weights.numel() == rows, "cross-entropy of ", logits.shape(),
        " with ", classes.numel(), " classes");
  LossNode node("cross-entropy loss", logits.shape());
  const Device device = logits.value().device();
  const Tensor d = node.gradient(logits), x = logits.value().contiguous(),
               loss = Tensor::empty({1}, Dtype::f64, device);
  kernels(device).cross_entropy(x, classes.to(device), weights.to(device), 1 / total, loss, d);
  return node.done(loss, x.dtype());
}

Var cross_entropy(const Var& logits, const std::vector<int32_t>& classes,
                  const std::vector<double>& weights, double total) {
  return cross_entropy(logits, Tensor::of<int32_t>({int64_t(classes.size())}, classes.data()),
                       Tensor::of<double>({int64_t(weights.size())}, weights.data()), total);
}

Var binary_cross_entropy(const Var& logits, const Tensor& labels, const Tensor& weights) {
  check(labels.shape() == logits.shape() && weights.shape() == logits.shape(), "cross-entropy of ",
        logits.shape(), " with labels ", labels.shape());
  LossNode node("cross-entropy loss", logits.shape());
  const Device device = logits.value().device();
  const Tensor d = node.gradient(logits), x = logits.value().contiguous(),
               truth = labels.to(Dtype::f64).contiguous(), w = weights.to(Dtype::f64).contiguous(),
               loss = Tensor::empty({1}, Dtype::f64, device);
  double count = 0;
  for (int64_t i = 0; i < w.numel(); ++i) count += w.data<double>()[i];
  kernels(device).binary_cross_entropy(x, truth.to(device), w.to(device), 1 / (1e-8 + count), loss,
                                       d);
  return node.done(loss, x.dtype());
}

Var weighted_sum(const std::vector<std::pair<double, Var>>& terms) {
  check(!terms.empty(), "the sum of no losses");
  const Tensor& first = terms[0].second.value();
  LossNode node("sum of losses");
  std::vector<Tensor> values;
  std::vector<double> weights;
  for (const auto& [weight, x] : terms) {
    values.push_back(x.value());
    weights.push_back(weight);
    if (const Tensor d = node.gradient(x)) d.copy_from(Tensor::of<double>({}, &weight));
  }
  const Tensor loss = Tensor::empty({1}, Dtype::f64, first.device());
  kernels(first.device()).weighted_sum(values, weights, loss);
  return node.done(loss, first.dtype());
}

}  // namespace ff
