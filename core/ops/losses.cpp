// The losses on the CPU. Sums run in a fixed order, whatever the number of threads.
#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "core/ops/plain_kernels.h"
#include "core/ops/real_type.h"

namespace ff::cpu {
namespace {

/// Frames are dealt out to so many sums, which are added in order.
constexpr int64_t kSums = 16;

constexpr int64_t kAtoms = 14;

template <class T>
struct Fape {
  int64_t n_point;
  const T *frames, *target_frames;
  const T* points;  // [7, n_point]: predicted x, y, z, true x, y, z, mask
  T clamp, unclamped, factor;

  /// Sum over the points of one frame; adds to d_frame [12] and d_points [3, n_point] if given.
  double frame(int64_t f, T* d_frame, T* d_points) const {
    const T *a = frames + 12 * f, *b = target_frames + 12 * f, *p = points;
    const int64_t n = n_point;
    T sum = 0, dr[9] = {}, dt[3] = {};
    T &r0 = dr[0], &r1 = dr[1], &r2 = dr[2], &r3 = dr[3], &r4 = dr[4], &r5 = dr[5], &r6 = dr[6],
      &r7 = dr[7], &r8 = dr[8], &t0 = dt[0], &t1 = dt[1], &t2 = dt[2];
    const bool gradient = d_frame || d_points;
#pragma omp simd reduction(+ : sum, r0, r1, r2, r3, r4, r5, r6, r7, r8, t0, t1, t2)
    for (int64_t j = 0; j < n; ++j) {
      const T x = p[j] - a[9], y = p[n + j] - a[10], z = p[2 * n + j] - a[11];
      const T u = p[3 * n + j] - b[9], v = p[4 * n + j] - b[10], w = p[5 * n + j] - b[11];
      const T e0 = a[0] * x + a[3] * y + a[6] * z - (b[0] * u + b[3] * v + b[6] * w);
      const T e1 = a[1] * x + a[4] * y + a[7] * z - (b[1] * u + b[4] * v + b[7] * w);
      const T e2 = a[2] * x + a[5] * y + a[8] * z - (b[2] * u + b[5] * v + b[8] * w);
      const T error = std::sqrt(e0 * e0 + e1 * e1 + e2 * e2 + T(1e-4)), mask = p[6 * n + j];
      const bool inside = error < clamp;
      sum += mask * (inside ? error : clamp + unclamped * (error - clamp));
      if (!gradient) continue;
      const T g = factor * mask * (inside ? T(1) : unclamped) / error;
      const T g0 = g * e0, g1 = g * e1, g2 = g * e2;
      const T w0 = a[0] * g0 + a[1] * g1 + a[2] * g2, w1 = a[3] * g0 + a[4] * g1 + a[5] * g2,
              w2 = a[6] * g0 + a[7] * g1 + a[8] * g2;
      r0 += x * g0;
      r1 += x * g1;
      r2 += x * g2;
      r3 += y * g0;
      r4 += y * g1;
      r5 += y * g2;
      r6 += z * g0;
      r7 += z * g1;
      r8 += z * g2;
      t0 -= w0;
      t1 -= w1;
      t2 -= w2;
      if (d_points) {
        d_points[j] += w0;
        d_points[n + j] += w1;
        d_points[2 * n + j] += w2;
      }
    }
    if (d_frame) {
      for (int k = 0; k < 9; ++k) d_frame[k] += dr[k];
      for (int k = 0; k < 3; ++k) d_frame[9 + k] += dt[k];
    }
    return double(sum);
  }
};

template <class T>
double total(const Tensor& t) {
  double sum = 0;
  for (int64_t i = 0; i < t.numel(); ++i) sum += double(t.data<T>()[i]);
  return sum;
}

double distance2(const double* a, const double* b) {
  double sum = 0;
  for (int k = 0; k < 3; ++k) sum += (a[k] - b[k]) * (a[k] - b[k]);
  return sum;
}

/// R^T (x - t) of a frame of 12.
void to_local(const double* frame, const double* x, double* out) {
  for (int k = 0; k < 3; ++k) {
    out[k] = 0;
    for (int r = 0; r < 3; ++r) out[k] += frame[3 * r + k] * (x[r] - frame[9 + r]);
  }
}

/// f(i, j): what of a pair is counted in breaks.
template <class F>
void classify_pairs(const Tensor& mask, const Tensor& breaks, int64_t first_row,
                    const Tensor& classes, const Tensor& weights, F f) {
  const int64_t rows = classes.size(0), n = classes.size(1);
  const double *first = breaks.data<double>(), *keep = mask.data<double>();
#pragma omp parallel for
  for (int64_t i = first_row; i < first_row + rows; ++i)
    for (int64_t j = 0; j < n; ++j) {
      const int64_t at = (i - first_row) * n + j;
      classes.data<int32_t>()[at] =
          int32_t(std::lower_bound(first, first + breaks.numel(), f(i, j)) - first);
      weights.data<double>()[at] = keep[i] * keep[j];
    }
}

}  // namespace

void fape(const FapeTensors& in, double clamp, double unclamped, double scale, const Tensor& loss,
          const Tensor& dframes, const Tensor& dpoints) {
  const int64_t n_frame = in.frames.size(0), n_point = in.points.size(0);
  by_real_type(in.frames, [&](auto zero) {
    using T = decltype(zero);
    const Tensor columns = Tensor::empty({7, n_point}, in.frames.dtype());
    T* c = columns.data<T>();
    for (int64_t j = 0; j < n_point; ++j) {
      for (int k = 0; k < 3; ++k) {
        c[k * n_point + j] = in.points.data<T>()[3 * j + k];
        c[(3 + k) * n_point + j] = in.target_points.data<T>()[3 * j + k];
      }
      c[6 * n_point + j] = in.point_mask.data<T>()[j];
    }
    const T* frame_mask = in.frame_mask.data<T>();
    const double norm = 1 / (scale * (1e-4 + total<T>(in.frame_mask) * total<T>(in.point_mask)));
    const Fape<T> all{
        n_point, in.frames.data<T>(), in.target_frames.data<T>(), c, T(clamp), T(unclamped),
        T(norm)};
    Tensor d_columns;
    if (dpoints.defined()) d_columns = Tensor::zeros({kSums, 3, n_point}, in.frames.dtype());
    double sums[kSums] = {};
#pragma omp parallel for schedule(dynamic)
    for (int64_t s = 0; s < kSums; ++s)
      for (int64_t i = s; i < n_frame; i += kSums) {
        const T mask = frame_mask[i];
        if (mask == 0) continue;
        Fape<T> one = all;
        one.factor *= mask;
        sums[s] += double(mask) *
                   one.frame(i, dframes.defined() ? dframes.data<T>() + 12 * i : nullptr,
                             dpoints.defined() ? d_columns.data<T>() + s * 3 * n_point : nullptr);
      }
    if (dpoints.defined())
      for (int64_t s = 0; s < kSums; ++s)
        for (int64_t j = 0; j < n_point; ++j)
          for (int k = 0; k < 3; ++k)
            dpoints.data<T>()[3 * j + k] += d_columns.data<T>()[(s * 3 + k) * n_point + j];
    double sum = 0;
    for (const double part : sums) sum += part;
    *loss.data<double>() = sum * norm;
  });
}

void chi_loss(const Tensor& angles, const Tensor& chi, const Tensor& mask, const Tensor& periodic,
              int64_t layers, const Tensor& loss, const Tensor& dangles) {
  const int64_t n = chi.size(0);
  const double* keep = mask.data<double>();
  double count = 0, &sum = *loss.data<double>();
  for (int64_t i = 0; i < 4 * n; ++i) count += keep[i];
  const double norm = 1 / (count * double(layers) + 1e-10);
  by_real_type(angles, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t i = 0; i < n; ++i)
      for (int k = 0; k < 4; ++k) {
        const double weight = keep[4 * i + k] * norm;
        if (weight == 0) continue;
        const double angle = chi.data<double>()[4 * i + k];
        const T* at = angles.data<T>() + 14 * i + 6 + 2 * k;
        const double s = double(at[0]) - std::sin(angle), c = double(at[1]) - std::cos(angle);
        const double s2 = double(at[0]) + std::sin(angle), c2 = double(at[1]) + std::cos(angle);
        const bool turned =
            periodic.data<double>()[4 * i + k] != 0 && s2 * s2 + c2 * c2 < s * s + c * c;
        const double ds = turned ? s2 : s, dc = turned ? c2 : c;
        sum += weight * (ds * ds + dc * dc);
        if (!dangles.defined()) continue;
        dangles.data<T>()[14 * i + 6 + 2 * k] += T(2 * weight * ds);
        dangles.data<T>()[14 * i + 7 + 2 * k] += T(2 * weight * dc);
      }
  });
}

void angle_norm_loss(const Tensor& angles, const Tensor& mask, int64_t layers, const Tensor& loss,
                     const Tensor& dangles) {
  const int64_t n = mask.size(0);
  const double* keep = mask.data<double>();
  double count = 0, &sum = *loss.data<double>();
  for (int64_t i = 0; i < n; ++i) count += keep[i];
  const double norm = 1 / (count * double(7 * layers) + 1e-10);
  by_real_type(angles, [&](auto zero) {
    using T = decltype(zero);
    const T* x = angles.data<T>();
    for (int64_t i = 0; i < 7 * n; ++i) {
      const double weight = keep[i / 7] * norm;
      const double a = double(x[2 * i]), b = double(x[2 * i + 1]);
      const double length = std::sqrt(a * a + b * b + 1e-6);
      sum += weight * std::abs(length - 1);
      if (!dangles.defined()) continue;
      const double g = weight * (length > 1 ? 1 : length < 1 ? -1 : 0) / length;
      dangles.data<T>()[2 * i] += T(g * a);
      dangles.data<T>()[2 * i + 1] += T(g * b);
    }
  });
}

void binary_cross_entropy(const Tensor& logits, const Tensor& labels, const Tensor& weights,
                          double norm, const Tensor& loss, const Tensor& gradient) {
  double sum = 0;
  by_real_type(logits, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t i = 0; i < logits.numel(); ++i) {
      const double l = double(logits.data<T>()[i]), y = labels.data<double>()[i],
                   weight = weights.data<double>()[i] * norm;
      // -y log s(l) - (1 - y) log s(-l), each without overflow.
      const double softplus = std::max(l, 0.0) + std::log1p(std::exp(-std::abs(l)));
      sum += weight * (softplus - y * l);
      if (gradient.defined()) gradient.data<T>()[i] += T(weight * (1 / (1 + std::exp(-l)) - y));
    }
  });
  *loss.data<double>() = sum;
}

void weighted_sum(TensorList terms, std::span<const double> weights, const Tensor& loss) {
  double sum = 0;
  for (size_t k = 0; k < terms.size(); ++k)
    by_real_type(terms[k],
                 [&](auto zero) { sum += weights[k] * double(*terms[k].data<decltype(zero)>()); });
  *loss.data<double>() = sum;
}

void distance_classes(const Tensor& points, const Tensor& mask, const Tensor& breaks,
                      int64_t first_row, const Tensor& classes, const Tensor& weights) {
  const Tensor wide = points.to(Dtype::f64);
  const double* x = wide.data<double>();
  classify_pairs(mask, breaks, first_row, classes, weights,
                 [&](int64_t i, int64_t j) { return distance2(x + 3 * i, x + 3 * j); });
}

void aligned_error_classes(const Tensor& frames, const Tensor& truth, const Tensor& mask,
                           const Tensor& breaks, int64_t first_row, const Tensor& classes,
                           const Tensor& weights) {
  const Tensor wide = frames.to(Dtype::f64);
  const double *ours = wide.data<double>(), *real = truth.data<double>();
  classify_pairs(mask, breaks, first_row, classes, weights, [&](int64_t i, int64_t j) {
    double a[3], b[3];
    to_local(ours + 12 * i, ours + 12 * j + 9, a);
    to_local(real + 12 * i, real + 12 * j + 9, b);
    return i == j ? -1.0 : distance2(a, b);
  });
}

void lddt(const Tensor& points, const Tensor& truth, const Tensor& mask, const Tensor& score) {
  const Tensor wide = points.to(Dtype::f64);
  const double *x = wide.data<double>(), *y = truth.data<double>(), *keep = mask.data<double>();
  const int64_t n = score.numel();
#pragma omp parallel for
  for (int64_t i = 0; i < n; ++i) {
    float count = 1e-10f, sum = 1e-10f;
    for (int64_t j = 0; j < n; ++j) {
      const double real = std::sqrt(1e-10 + distance2(y + 3 * i, y + 3 * j));
      if (i == j || real >= 15 || keep[i] * keep[j] == 0) continue;
      const double gap = std::abs(real - std::sqrt(1e-10 + distance2(x + 3 * i, x + 3 * j)));
      count += 1;
      for (const double bound : {0.5, 1.0, 2.0, 4.0}) sum += gap < bound ? 0.25f : 0;
    }
    // Scores are quarters over counts and often fall on a bin's edge (2.5 of 25 contacts, 50 bins):
    // there the side is f32's rounding, operation by operation as AlphaFold has it.
    const float norm = 1 / count;
    score.data<double>()[i] = double(norm * sum);
  }
}

void score_classes(const Tensor& score, int64_t bins, const Tensor& classes) {
  for (int64_t i = 0; i < score.numel(); ++i)
    classes.data<int32_t>()[i] =
        std::min(int32_t(bins) - 1, int32_t(score.data<double>()[i] * double(bins)));
}

void alternative_is_better(const Tensor& atoms, const Tensor& truth, const Tensor& alternative,
                           const Tensor& exists, const Tensor& ambiguous, const Tensor& better) {
  const Tensor wide = atoms.to(Dtype::f64);
  const double *there = exists.data<double>(), *double_named = ambiguous.data<double>();
  const int64_t n = better.numel();
#pragma omp parallel for schedule(dynamic, 4)
  for (int64_t i = 0; i < n; ++i) {
    double sum = 0, alternative_sum = 0;
    for (int64_t a = i * kAtoms; a < (i + 1) * kAtoms; ++a) {
      if (there[a] * double_named[a] == 0) continue;
      for (int64_t b = 0; b < n * kAtoms; ++b) {
        const double weight = there[b] * (1 - double_named[b]);
        if (weight == 0) continue;
        const auto distance = [&](const Tensor& p) {
          return std::sqrt(1e-10 + distance2(p.data<double>() + 3 * a, p.data<double>() + 3 * b));
        };
        const double here = distance(wide), gap = here - distance(truth),
                     other = here - distance(alternative);
        sum += weight * std::sqrt(1e-10 + gap * gap);
        alternative_sum += weight * std::sqrt(1e-10 + other * other);
      }
    }
    better.data<float>()[i] = alternative_sum < sum ? 1 : 0;
  }
}

void choose_rows(const Tensor& choose, const Tensor& a, const Tensor& b, const Tensor& out) {
  out.copy_from(a);
  for (int64_t i = 0; i < choose.numel(); ++i)
    if (choose.data<float>()[i] != 0) out.select(0, i).copy_from(b.select(0, i));
}

}  // namespace ff::cpu
