// Losses of the torsion angles.
#include <cmath>

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
  const Tensor truth = chi.to(Dtype::f64).contiguous(), keep = mask.to(Dtype::f64).contiguous();
  double count = 0, sum = 0;
  for (int64_t i = 0; i < 4 * n; ++i) count += keep.data<double>()[i];
  const double norm = 1 / (count * double(layers) + 1e-10);
  LossNode node("chi loss");
  for (const Var& layer : angles) {
    const Tensor d = node.gradient(layer), x = layer.value().contiguous();
    by_real_type(x, [&](auto zero) {
      using T = decltype(zero);
      for (int64_t i = 0; i < n; ++i)
        for (int k = 0; k < 4; ++k) {
          const double weight = keep.data<double>()[4 * i + k] * norm;
          if (weight == 0) continue;
          const double angle = truth.data<double>()[4 * i + k];
          const T* at = x.data<T>() + 14 * i + 6 + 2 * k;
          const double s = double(at[0]) - std::sin(angle), c = double(at[1]) - std::cos(angle);
          const double s2 = double(at[0]) + std::sin(angle), c2 = double(at[1]) + std::cos(angle);
          const int type = aatype.data<int32_t>()[i];
          const bool turned = residue_constants().chi_pi_periodic[type][k] != 0 &&
                              s2 * s2 + c2 * c2 < s * s + c * c;
          const double ds = turned ? s2 : s, dc = turned ? c2 : c;
          sum += weight * (ds * ds + dc * dc);
          if (!d.defined()) continue;
          d.data<T>()[14 * i + 6 + 2 * k] += T(2 * weight * ds);
          d.data<T>()[14 * i + 7 + 2 * k] += T(2 * weight * dc);
        }
      return 0;
    });
  }
  return node.done(sum, dtype);
}

Var angle_norm_loss(const std::vector<Var>& unnormalized, const Tensor& seq_mask) {
  const int64_t n = seq_mask.size(0), layers = int64_t(unnormalized.size());
  check(layers > 0 && unnormalized[0].value().numel() == 14 * n, "angle norm loss of ", layers,
        " layers");
  const Tensor keep = seq_mask.to(Dtype::f64).contiguous();
  double count = 0, sum = 0;
  for (int64_t i = 0; i < n; ++i) count += keep.data<double>()[i];
  const double norm = 1 / (count * double(7 * layers) + 1e-10);
  LossNode node("angle norm loss");
  for (const Var& layer : unnormalized) {
    const Tensor d = node.gradient(layer), x = layer.value().contiguous();
    by_real_type(x, [&](auto zero) {
      using T = decltype(zero);
      for (int64_t i = 0; i < 7 * n; ++i) {
        const double weight = keep.data<double>()[i / 7] * norm;
        const double a = double(x.data<T>()[2 * i]), b = double(x.data<T>()[2 * i + 1]);
        const double length = std::sqrt(a * a + b * b + 1e-6);
        sum += weight * std::abs(length - 1);
        if (!d.defined()) continue;
        const double g = weight * (length > 1 ? 1 : length < 1 ? -1 : 0) / length;
        d.data<T>()[2 * i] += T(g * a);
        d.data<T>()[2 * i + 1] += T(g * b);
      }
      return 0;
    });
  }
  return node.done(sum, unnormalized[0].value().dtype());
}

}  // namespace ff
