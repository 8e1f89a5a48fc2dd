// The optimizer's passes over all parameters, in fixed pieces that threads share.
#include "core/train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace ff {
namespace {

constexpr int64_t kPiece = 1 << 15;

/// Part of one array.
template <class T>
struct Piece {
  const T* from;
  T* to;
  int64_t n;
};

const Tensor& partner(const Arrays& arrays, const std::string& name, const Tensor& like,
                      Dtype dtype) {
  const auto found = arrays.find(name);
  check(found != arrays.end() && found->second.shape() == like.shape() &&
            found->second.dtype() == dtype && found->second.is_contiguous(),
        "optimizer: no ", name_of(dtype), " array of shape ", like.shape(), " for '", name, "'");
  return found->second;
}

/// All of `from`, with its place in `to`, in pieces of one size.
template <class T = float>
std::vector<Piece<T>> pieces(const Arrays& from, const Arrays& to) {
  std::vector<Piece<T>> out;
  for (const auto& [name, t] : from) {
    const T* source = partner(from, name, t, dtype_of<T>()).template data<T>();
    T* target = partner(to, name, t, dtype_of<T>()).template data<T>();
    for (int64_t i = 0; i < t.numel(); i += kPiece)
      out.push_back({source + i, target + i, std::min(kPiece, t.numel() - i)});
  }
  return out;
}

template <class T>
double norm_of(const std::vector<Piece<T>>& all) {
  std::vector<double> sums(all.size());
#pragma omp parallel for
  for (size_t k = 0; k < all.size(); ++k) {
    const T* x = all[k].from;
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < all[k].n; ++i) sum += double(x[i]) * double(x[i]);
    sums[k] = sum;
  }
  double sum = 0;
  for (const double s : sums) sum += s;
  return std::sqrt(sum);
}

}  // namespace

double learning_rate(const OptimConfig& c, int64_t samples) {
  double rate = c.lr;
  if (samples < c.warmup_samples) rate *= double(samples) / double(c.warmup_samples);
  if (c.decay_after_samples > 0 && samples > c.decay_after_samples) rate *= c.decay;
  return rate;
}

Arrays zeros_like(const Arrays& like, Dtype dtype) {
  Arrays out;
  for (const auto& [name, t] : like) out.emplace(name, Tensor::zeros(t.shape(), dtype));
  return out;
}

double global_norm(const Arrays& arrays) { return norm_of(pieces(arrays, arrays)); }

namespace {

template <class T>
Clipped add_clipped_of(Arrays& sum, const Arrays& gradient, double limit) {
  const std::vector<Piece<T>> all = pieces<T>(gradient, sum);
  Clipped out;
  out.norm = norm_of(all);
  out.finite = std::isfinite(out.norm);
  if (!out.finite) return out;
  out.clipped = limit > 0 && out.norm > limit;
  const T scale = out.clipped ? T(limit / out.norm) : 1;
#pragma omp parallel for
  for (size_t k = 0; k < all.size(); ++k) {
    const auto [from, to, n] = all[k];
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) to[i] += scale * from[i];
  }
  return out;
}

}  // namespace

Clipped add_clipped(Arrays& sum, const Arrays& gradient, double limit) {
  check(sum.size() == gradient.size(), "a gradient of ", gradient.size(), " arrays added to ",
        sum.size());
  const bool f64 = !sum.empty() && sum.begin()->second.dtype() == Dtype::f64;
  return f64 ? add_clipped_of<double>(sum, gradient, limit)
             : add_clipped_of<float>(sum, gradient, limit);
}

void adam_step(const OptimConfig& c, const AdamArrays& a, const Arrays& gradient, double scale,
               double rate, int64_t t) {
  check(t >= 1, "Adam's first step is 1, not ", t);
  const std::vector<Piece<float>> p = pieces(gradient, a.params), m = pieces(gradient, a.m),
                                  v = pieces(gradient, a.v);
  const std::vector<Piece<float>> ema =
      a.ema.empty() ? std::vector<Piece<float>>{} : pieces(gradient, a.ema);
  const auto b1 = float(c.betas[0]), b2 = float(c.betas[1]), eps = float(c.eps);
  const auto keep1 = float(1 - c.betas[0]), keep2 = float(1 - c.betas[1]);
  const auto step = float(rate / (1 - std::pow(c.betas[0], double(t))));
  const auto root = float(1 / std::sqrt(1 - std::pow(c.betas[1], double(t))));
  const auto mean = float(scale), follow = float(1 - c.ema);
#pragma omp parallel for
  for (size_t k = 0; k < p.size(); ++k) {
    const float* from = p[k].from;
    float *params = p[k].to, *first = m[k].to, *second = v[k].to;
    const int64_t n = p[k].n;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const float g = mean * from[i];
      first[i] = b1 * first[i] + keep1 * g;
      second[i] = b2 * second[i] + keep2 * (g * g);
      params[i] -= step * first[i] / (std::sqrt(second[i]) * root + eps);
    }
    if (ema.empty()) continue;
    float* average = ema[k].to;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) average[i] += follow * (params[i] - average[i]);
  }
}

}  // namespace ff
