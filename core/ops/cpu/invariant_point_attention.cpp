// Invariant point attention on the CPU: keys and values are packed once with the residues along the
// vectors; then each query row makes its logits, weights and averages alone. Memory beyond the
// operands: the packed keys and values, and [n_head, n_res] for each thread.
#include <omp.h>

#include "core/ops/cpu/rigid.h"

namespace ff::cpu::FF_ISA {
namespace {

struct IpaSizes {
  int64_t n, padded, h, qk, v, point_qk, point_v, c_z;
  int64_t keys() const { return qk + 3 * point_qk; }
  int64_t values() const { return v + 3 * point_v; }
};

/// x [n, ...] with element (j, offset) to packed[offset-th row][j]; the padding becomes zero.
template <class T>
void pack(const T* x, int64_t stride, const IpaSizes& s, T* packed) {
  for (int64_t j = 0; j < s.n; ++j) packed[j] = x[j * stride];
  for (int64_t j = s.n; j < s.padded; ++j) packed[j] = 0;
}

/// out[r, 0 : kV vectors] = sum_j p[r, j] z[j, :] for R heads.
template <int R, int kV, class T>
inline void average_pairs(const T* p, int64_t padded, int64_t n, const T* z, int64_t z_stride,
                          int64_t c_z, T* out) {
  using S = Simd<T>;
  typename S::V acc[R][kV] = {};
  for (int64_t j = 0; j < n; ++j) {
    typename S::V b[kV];
    for (int v = 0; v < kV; ++v) b[v] = S::load(z + j * z_stride + v * S::kWidth);
    for (int r = 0; r < R; ++r) {
      const typename S::V a = S::broadcast(p[r * padded + j]);
      for (int v = 0; v < kV; ++v) acc[r][v] += a * b[v];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < kV; ++v) S::store(out + r * c_z + v * S::kWidth, acc[r][v]);
}

template <int R, class T>
inline void average_pair_rows(const T* p, const IpaSizes& s, const T* z, int64_t z_stride, T* out) {
  constexpr int kWidth = Simd<T>::kWidth;
  int64_t c = 0;
  for (; c + 4 * kWidth <= s.c_z; c += 4 * kWidth)
    average_pairs<R, 4>(p, s.padded, s.n, z + c, z_stride, s.c_z, out + c);
  for (; c + kWidth <= s.c_z; c += kWidth)
    average_pairs<R, 1>(p, s.padded, s.n, z + c, z_stride, s.c_z, out + c);
  for (; c < s.c_z; ++c)
    for (int r = 0; r < R; ++r) {
      T sum = 0;
      for (int64_t j = 0; j < s.n; ++j) sum += p[r * s.padded + j] * z[j * z_stride + c];
      out[r * s.c_z + c] = sum;
    }
}

template <class T>
void to_weights(T* row, const IpaSizes& s) {
  using S = Simd<T>;
  T high = row[0];
  for (int64_t j = 1; j < s.n; ++j) high = row[j] > high ? row[j] : high;
  for (int64_t j = s.n; j < s.padded; ++j) row[j] = T(-1e30);
  typename S::V total{};
  for (int64_t j = 0; j < s.padded; j += S::kWidth) {
    const typename S::V e = exp(S::load(row + j) - high);
    S::store(row + j, e);
    total += e;
  }
  const T scale = 1 / sum<T>(total);
  for (int64_t j = 0; j < s.padded; j += S::kWidth) S::store(row + j, S::load(row + j) * scale);
}

template <class T>
struct IpaRows {
  IpaSizes s;
  const T *q, *q_point, *keys, *values, *affine, *bias, *z, *mask, *point_weights;
  int64_t z_stride_i, z_stride_j;

  void row(int64_t i, T* weights, T* out) const {
    using S = Simd<T>;
    using V = typename S::V;
    const T scalar_weight = T(__builtin_sqrt(1.0 / (3.0 * double(s.qk))));
    const T bias_weight = T(__builtin_sqrt(1.0 / 3.0));
    for (int64_t h = 0; h < s.h; ++h) {
      const T* key = keys + h * s.keys() * s.padded;
      const T* qs = q + (i * s.h + h) * s.qk;
      T* row = weights + h * s.padded;
      for (int64_t j = 0; j < s.padded; j += S::kWidth) {
        V dot{}, dist2{};
        for (int64_t c = 0; c < s.qk; ++c)
          dot += (scalar_weight * qs[c]) * S::load(key + c * s.padded + j);
        for (int64_t x = 0; x < 3; ++x)
          for (int64_t p = 0; p < s.point_qk; ++p) {
            const T point = q_point[((i * 3 + x) * s.h + h) * s.point_qk + p];
            const V d = point - S::load(key + (s.qk + x * s.point_qk + p) * s.padded + j);
            dist2 += d * d;
          }
        S::store(row + j, dot - T(0.5) * point_weights[h] * dist2);
      }
      for (int64_t j = 0; j < s.n; ++j)
        row[j] =
            row[j] + bias_weight * bias[(i * s.n + j) * s.h + h] - T(1e5) * (1 - mask[i] * mask[j]);
      to_weights(row, s);
    }
    averages(i, weights, out);
  }

  void averages(int64_t i, const T* weights, T* out) const {
    using S = Simd<T>;
    using V = typename S::V;
    const int64_t points = s.h * s.point_v;
    T *scalar = out, *local = out + s.h * s.v, *norm = local + 3 * points, *pair = norm + points;
    for (int64_t h = 0; h < s.h; ++h)
      for (int64_t c = 0; c < s.values(); ++c) {
        const T* value = values + (h * s.values() + c) * s.padded;
        V acc{};
        for (int64_t j = 0; j < s.padded; j += S::kWidth)
          acc += S::load(weights + h * s.padded + j) * S::load(value + j);
        const int64_t x = (c - s.v) / s.point_v, p = (c - s.v) % s.point_v;
        (c < s.v ? scalar[h * s.v + c] : local[x * points + h * s.point_v + p]) = sum<T>(acc);
      }
    T r[9];
    quat_to_rot(affine + 7 * i, r);
    const T* origin = affine + 7 * i + 4;
    for (int64_t p = 0; p < points; ++p) {
      const T g[3] = {local[p] - origin[0], local[points + p] - origin[1],
                      local[2 * points + p] - origin[2]};
      T square = T(1e-8);
      for (int x = 0; x < 3; ++x) {
        const T l = r[x] * g[0] + r[3 + x] * g[1] + r[6 + x] * g[2];
        local[x * points + p] = l;
        square += l * l;
      }
      norm[p] = T(__builtin_sqrt(square));
    }
    int64_t h = 0;
    const T* row = z + i * z_stride_i;
    for (; h + kTileRows <= s.h; h += kTileRows)
      average_pair_rows<kTileRows>(weights + h * s.padded, s, row, z_stride_j, pair + h * s.c_z);
    for (; h < s.h; ++h)
      average_pair_rows<1>(weights + h * s.padded, s, row, z_stride_j, pair + h * s.c_z);
  }
};

template <class T>
void attend(const IpaTensors& in, const Tensor& out) {
  IpaSizes s;
  s.n = in.z.size(0);
  s.padded = (s.n + Simd<T>::kWidth - 1) / Simd<T>::kWidth * Simd<T>::kWidth;
  s.h = in.bias.size(2);
  s.qk = in.q_scalar.size(1) / s.h;
  s.v = in.kv_scalar.size(1) / s.h - s.qk;
  s.point_qk = in.q_point.size(1) / (3 * s.h);
  s.point_v = in.kv_point.size(1) / (3 * s.h) - s.point_qk;
  s.c_z = in.z.size(2);

  const Tensor keys = Tensor::empty({s.h, s.keys(), s.padded}, out.dtype());
  const Tensor values = Tensor::empty({s.h, s.values(), s.padded}, out.dtype());
  const Tensor rows = Tensor::empty({omp_get_max_threads(), s.h, s.padded}, out.dtype());
  const Tensor point_weights = Tensor::empty({s.h}, out.dtype());
  T *packed_keys = keys.data<T>(), *packed_values = values.data<T>(), *scratch = rows.data<T>();
  const T *kv = in.kv_scalar.data<T>(), *kv_point = in.kv_point.data<T>();
  const int64_t scalars = s.qk + s.v, points = s.point_qk + s.point_v;
  for (int64_t h = 0; h < s.h; ++h) {
    // softplus(w) sqrt(2 / (27 n_point)), see the header.
    const double w = double(in.point_weights.data<T>()[h]);
    const double softplus = (w > 0 ? w : 0) + __builtin_log1p(__builtin_exp(-__builtin_fabs(w)));
    point_weights.data<T>()[h] = T(softplus * __builtin_sqrt(1.0 / (13.5 * double(s.point_qk))));
  }
#pragma omp parallel for
  for (int64_t h = 0; h < s.h; ++h) {
    T* key = packed_keys + h * s.keys() * s.padded;
    T* value = packed_values + h * s.values() * s.padded;
    for (int64_t c = 0; c < scalars; ++c)
      pack(kv + h * scalars + c, s.h * scalars, s,
           c < s.qk ? key + c * s.padded : value + (c - s.qk) * s.padded);
    for (int64_t x = 0; x < 3; ++x)
      for (int64_t p = 0; p < points; ++p)
        pack(kv_point + (x * s.h + h) * points + p, 3 * s.h * points, s,
             p < s.point_qk ? key + (s.qk + x * s.point_qk + p) * s.padded
                            : value + (s.v + x * s.point_v + p - s.point_qk) * s.padded);
  }
  const IpaRows<T> all{s,
                       in.q_scalar.data<T>(),
                       in.q_point.data<T>(),
                       packed_keys,
                       packed_values,
                       in.affine.data<T>(),
                       in.bias.data<T>(),
                       in.z.data<T>(),
                       in.mask.data<T>(),
                       point_weights.data<T>(),
                       in.z.stride(0),
                       in.z.stride(1)};
  T* to = out.data<T>();
  const int64_t width = out.size(1);
#pragma omp parallel for
  for (int64_t i = 0; i < s.n; ++i)
    all.row(i, scratch + omp_get_thread_num() * s.h * s.padded, to + i * width);
}

}  // namespace

void invariant_point_attention(const IpaTensors& in, const Tensor& out) {
  if (out.dtype() == Dtype::f64) return attend<double>(in, out);
  attend<float>(in, out);
}

}  // namespace ff::cpu::FF_ISA
