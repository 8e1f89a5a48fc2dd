// Losses of the torsion angles.
#include "core/geometry/residue_constants.h"
#include "core/loss/losses.h"
#include "core/loss/node.h"

namespace ff {

Var chi_loss(const std::vector<Var>& angles, const Tensor& chi, const Tensor& mask,
             const Tensor& aatype) {
  const int64_t n = chi.size(0), layers = int64_t(angles.size());
  check(layers > 0 && angles[0].shape() == Dims{n, 7, 2} && chi.shape() == Dims{n, 4} &&
            mask.shape() == Dims{n, 4} && aatype.shape() == Dims{n},
        "chi loss of ", chi.shape());
  const Dtype dtype = angles[0].value().dtype();
  const Device device = angles[0].value().device();
  const Tensor periodic = Tensor::empty({n, 4}, Dtype::f64);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < 4; ++k)
      periodic.data<double>()[4 * i + k] =
          residue_constants().chi_pi_periodic[aatype.data<int32_t>()[i]][k];
  const auto there = [&](const Tensor& t) { return t.to(Dtype::f64).contiguous().to(device); };
  const Tensor truth = there(chi), keep = there(mask), turns = there(periodic),
               loss = Tensor::zeros({1}, Dtype::f64, device);
  LossNode node("chi loss");
  for (const Var& layer : angles) {
    const Tensor d = node.gradient(layer);
    kernels(device).chi_loss(layer.value().contiguous(), truth, keep, turns, layers, loss, d);
  }
  return node.done(loss, dtype);
}

Var angle_norm_loss(const std::vector<Var>& unnormalized, const Tensor& seq_mask) {
  const int64_t n = seq_mask.size(0), layers = int64_t(unnormalized.size());
  check(layers > 0 && unnormalized[0].value().numel() == 14 * n, "angle norm loss of ", layers,
        " layers");
  const Device device = unnormalized[0].value().device();
  const Tensor keep = seq_mask.to(Dtype::f64).contiguous().to(device),
               loss = Tensor::zeros({1}, Dtype::f64, device);
  LossNode node("angle norm loss");
  for (const Var& layer : unnormalized) {
    const Tensor d = node.gradient(layer);
    kernels(device).angle_norm_loss(layer.value().contiguous(), keep, layers, loss, d);
  }
  return node.done(loss, unnormalized[0].value().dtype());
}

}  // namespace ff
