// The optimizer's checks and numbers; its passes over all parameters are kernels.
#include "core/train/optimizer.h"

#include <cmath>
#include <vector>

#include "core/ops/kernels.h"

namespace ff {
namespace {

/// The arrays of `like`'s names, in its order, where each has its counterpart's shape, dtype and
/// device.
std::vector<Tensor> list(const Arrays& arrays, const Arrays& like) {
  std::vector<Tensor> out;
  // Names mostly come in the same order: hundreds of long ones need not be looked for.
  auto next = arrays.begin();
  for (const auto& [name, t] : like) {
    const auto found = next != arrays.end() && next->first == name ? next : arrays.find(name);
    check(found != arrays.end() && found->second.shape() == t.shape() &&
              found->second.device() == t.device() && found->second.dtype() == t.dtype() &&
              found->second.is_contiguous(),
          "optimizer: no ", name_of(t.dtype()), " array of shape ", t.shape(), " for '", name, "'");
    out.push_back(found->second);
    next = std::next(found);
  }
  return out;
}

Device device_of(const std::vector<Tensor>& arrays) {
  return arrays.empty() ? Device{} : arrays[0].device();
}

/// The norm, on the arrays' device.
Tensor norm_of(const std::vector<Tensor>& arrays) {
  const Tensor norm = Tensor::empty({1}, Dtype::f64, device_of(arrays));
  kernels(norm.device()).global_norm(arrays, norm);
  return norm;
}

}  // namespace

double learning_rate(const OptimConfig& c, int64_t samples) {
  double rate = c.lr;
  if (samples < c.warmup_samples) rate *= double(samples) / double(c.warmup_samples);
  if (c.decay_after_samples > 0 && samples > c.decay_after_samples) rate *= c.decay;
  return rate;
}

Arrays zeros_like(const Arrays& like, Dtype dtype) {
  // One allocation and one fill: a GPU would start hundreds of them, one an array. Each begins on
  // 64 bytes.
  const auto room = [](const Tensor& t) { return (t.numel() + 15) / 16 * 16; };
  int64_t size = 0;
  for (const auto& [name, t] : like) size += room(t);
  const Device device = like.empty() ? Device{} : like.begin()->second.device();
  const Tensor all = Tensor::zeros({size}, dtype, device);
  Arrays out;
  int64_t at = 0;
  for (const auto& [name, t] : like) {
    out.emplace(name, all.narrow(0, at, t.numel()).view(t.shape()));
    at += room(t);
  }
  return out;
}

double global_norm(const Arrays& arrays) { return norm_of(list(arrays, arrays)).item(); }

Tensor add_clipped(Arrays& sum, const Arrays& gradient, const Tensor& loss, double limit,
                   const Tensor& skipped) {
  check(sum.size() == gradient.size(), "a gradient of ", gradient.size(), " arrays added to ",
        sum.size());
  const std::vector<Tensor> from = list(gradient, gradient), to = list(sum, gradient);
  const Tensor norm = norm_of(from);
  kernels(norm.device()).add_clipped(from, norm, loss, limit, to, skipped);
  return norm;
}

void adam_step(const OptimConfig& c, const AdamArrays& a, const Arrays& gradient, double scale,
               double rate, int64_t t, const Tensor& skipped) {
  check(t >= 1, "Adam's first step is 1, not ", t);
  const std::vector<Tensor> g = list(gradient, gradient), p = list(a.params, gradient),
                            m = list(a.m, gradient), v = list(a.v, gradient),
                            ema = a.ema.empty() ? std::vector<Tensor>{} : list(a.ema, gradient);
  const AdamNumbers numbers{
      .beta1 = float(c.betas[0]),
      .beta2 = float(c.betas[1]),
      .keep1 = float(1 - c.betas[0]),
      .keep2 = float(1 - c.betas[1]),
      .step = float(rate / (1 - std::pow(c.betas[0], double(t)))),
      .root = float(1 / std::sqrt(1 - std::pow(c.betas[1], double(t)))),
      .eps = float(c.eps),
      .mean = float(scale),
      .follow = float(1 - c.ema),
  };
  kernels(device_of(g)).adam_step(numbers, {g, p, m, v, ema}, skipped);
}

}  // namespace ff
