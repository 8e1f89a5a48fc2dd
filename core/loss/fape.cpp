// Frame aligned point error: every frame against every point, nothing of that size kept.
#include <algorithm>
#include <cmath>

#include "core/loss/losses.h"
#include "core/loss/node.h"

namespace ff {
namespace {

/// Frames are dealt out to so many sums, which are added in order.
constexpr int64_t kSums = 16;

template <class T>
struct Fape {
  int64_t n_frame, n_point;
  const T *frames, *target_frames, *frame_mask;
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

}  // namespace

Var fape(const Var& frames, const Var& points, const FapeTarget& target, double clamp,
         double clamped, double scale) {
  const int64_t n_frame = frames.size(0), n_point = points.size(0);
  const Dtype dtype = frames.value().dtype();
  check(frames.shape() == Dims{n_frame, 12} && points.shape() == Dims{n_point, 3} &&
            target.frames.shape() == frames.shape() && target.points.shape() == points.shape() &&
            target.frame_mask.shape() == Dims{n_frame} &&
            target.point_mask.shape() == Dims{n_point} && points.value().dtype() == dtype,
        "FAPE of frames ", frames.shape(), " and points ", points.shape());
  LossNode node("FAPE loss");
  const Tensor d_frames = node.gradient(frames), d_points = node.gradient(points);
  const double value = by_real_type(frames.value(), [&](auto zero) {
    using T = decltype(zero);
    const auto plain = [&](const Tensor& t) { return t.to(dtype).contiguous(); };
    const Tensor f = plain(frames.value()), x = plain(points.value()), tf = plain(target.frames),
                 tx = plain(target.points), fm = plain(target.frame_mask),
                 xm = plain(target.point_mask), columns = Tensor::empty({7, n_point}, dtype);
    T* c = columns.data<T>();
    for (int64_t j = 0; j < n_point; ++j) {
      for (int k = 0; k < 3; ++k) {
        c[k * n_point + j] = x.data<T>()[3 * j + k];
        c[(3 + k) * n_point + j] = tx.data<T>()[3 * j + k];
      }
      c[6 * n_point + j] = xm.data<T>()[j];
    }
    const double norm = 1 / (scale * (1e-4 + total<T>(fm) * total<T>(xm)));
    Fape<T> all{n_frame, n_point,  f.data<T>(),    tf.data<T>(), fm.data<T>(),
                c,       T(clamp), T(1 - clamped), T(norm)};
    Tensor d_columns;
    if (d_points.defined()) d_columns = Tensor::zeros({kSums, 3, n_point}, dtype);
    double sums[kSums] = {};
#pragma omp parallel for schedule(dynamic)
    for (int64_t s = 0; s < kSums; ++s)
      for (int64_t i = s; i < n_frame; i += kSums) {
        const T mask = fm.data<T>()[i];
        if (mask == 0) continue;
        Fape<T> one = all;
        one.factor *= mask;
        sums[s] += double(mask) *
                   one.frame(i, d_frames.defined() ? d_frames.data<T>() + 12 * i : nullptr,
                             d_points.defined() ? d_columns.data<T>() + s * 3 * n_point : nullptr);
      }
    if (d_points.defined())
      for (int64_t s = 0; s < kSums; ++s)
        for (int64_t j = 0; j < n_point; ++j)
          for (int k = 0; k < 3; ++k)
            d_points.data<T>()[3 * j + k] += d_columns.data<T>()[(s * 3 + k) * n_point + j];
    double sum = 0;
    for (const double part : sums) sum += part;
    return sum * norm;
  });
  return node.done(value, dtype);
}

}  // namespace ff
