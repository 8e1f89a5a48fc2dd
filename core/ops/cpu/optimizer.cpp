// The optimizer's passes over all parameters on the CPU, in fixed pieces that threads share.
#include <algorithm>
#include <cmath>
#include <vector>

#include "core/ops/cpu/table.h"

namespace ff::cpu::FF_ISA {
namespace {

/// The same part of the lists' arrays.
template <class T, size_t N>
struct Piece {
  T* p[N];
  int64_t n;
};

template <class T, size_t N>
std::vector<Piece<T, N>> pieces(const std::array<TensorList, N>& lists) {
  constexpr int64_t kPiece = 1 << 15;
  std::vector<Piece<T, N>> out;
  for (size_t a = 0; a < lists[0].size(); ++a)
    for (int64_t i = 0; i < lists[0][a].numel(); i += kPiece) {
      Piece<T, N> piece{{}, std::min(kPiece, lists[0][a].numel() - i)};
      for (size_t k = 0; k < N; ++k)
        piece.p[k] = lists[k].empty() ? nullptr : lists[k][a].template data<T>() + i;
      out.push_back(piece);
    }
  return out;
}

template <class T>
double norm_of(TensorList arrays) {
  const auto all = pieces<T, 1>({arrays});
  std::vector<double> sums(all.size());
#pragma omp parallel for
  for (size_t k = 0; k < all.size(); ++k) {
    const T* x = all[k].p[0];
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < all[k].n; ++i) sum += double(x[i]) * double(x[i]);
    sums[k] = sum;
  }
  double sum = 0;
  for (const double s : sums) sum += s;
  return std::sqrt(sum);
}

template <class T>
void add_scaled(TensorList gradient, double length, const Tensor& loss, double limit,
                TensorList sum, const Tensor& skipped) {
  if (!std::isfinite(length) || !std::isfinite(*loss.data<T>())) {
    *skipped.data<T>() += 1;
    return;
  }
  const T scale = T(limit > 0 && length > limit ? limit / length : 1);
  const auto all = pieces<T, 2>({gradient, sum});
#pragma omp parallel for
  for (size_t k = 0; k < all.size(); ++k) {
    const T* from = all[k].p[0];
    T* to = all[k].p[1];
#pragma omp simd
    for (int64_t i = 0; i < all[k].n; ++i) to[i] += scale * from[i];
  }
}

bool in_f64(TensorList arrays) { return !arrays.empty() && arrays[0].dtype() == Dtype::f64; }

}  // namespace

void global_norm(TensorList arrays, const Tensor& norm) {
  *norm.data<double>() = in_f64(arrays) ? norm_of<double>(arrays) : norm_of<float>(arrays);
}

void add_clipped(TensorList gradient, const Tensor& norm, const Tensor& loss, double limit,
                 TensorList sum, const Tensor& skipped) {
  const double length = *norm.data<double>();
  in_f64(gradient) ? add_scaled<double>(gradient, length, loss, limit, sum, skipped)
                   : add_scaled<float>(gradient, length, loss, limit, sum, skipped);
}

void adam_step(const AdamNumbers& c, const AdamLists& lists, const Tensor& skipped) {
  if (*skipped.data<float>() != 0) return;
  const auto all = pieces<float, 5>({lists.gradient, lists.params, lists.m, lists.v, lists.ema});
#pragma omp parallel for
  for (size_t k = 0; k < all.size(); ++k) {
    const float* from = all[k].p[0];
    float *params = all[k].p[1], *first = all[k].p[2], *second = all[k].p[3],
          *average = all[k].p[4];
    const int64_t n = all[k].n;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const float g = c.mean * from[i];
      first[i] = c.beta1 * first[i] + c.keep1 * g;
      second[i] = c.beta2 * second[i] + c.keep2 * (g * g);
      params[i] -= c.step * first[i] / (std::sqrt(second[i]) * c.root + c.eps);
    }
    if (!average) continue;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) average[i] += c.follow * (params[i] - average[i]);
  }
}

}  // namespace ff::cpu::FF_ISA
