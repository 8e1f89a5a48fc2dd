// Invariant point attention on the CPU: keys and values are packed once with the residues along the
// vectors; then each query row makes its logits, weights and averages alone. Memory beyond the
// operands: the packed keys and values, and [n_head, n_res] for each thread. The backward makes the
// weights again and keeps them and the logits' gradients for all queries, 2 [n_query, n_head,
// n_res], so that what belongs to keys and values is summed over the queries in order.
#include <omp.h>

#include "core/ops/cpu/rigid.h"

namespace ff::cpu::FF_ISA {
namespace {

struct IpaSizes {
  int64_t n_query, n, padded, h, qk, v, point_qk, point_v, c_z;
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
  const T *q, *q_point, *keys, *values, *affine, *bias, *z, *query_mask, *mask, *point_weights;
  int64_t z_stride_i, z_stride_j;

  T scalar_weight() const { return T(__builtin_sqrt(1.0 / (3.0 * double(s.qk)))); }
  static T bias_weight() { return T(__builtin_sqrt(1.0 / 3.0)); }
  const T* query_point(int64_t i, int64_t h, int64_t x) const {
    return q_point + ((i * 3 + x) * s.h + h) * s.point_qk;
  }
  const T* key_point(int64_t h, int64_t x, int64_t p) const {
    return keys + (h * s.keys() + s.qk + x * s.point_qk + p) * s.padded;
  }

  /// The weights [n_head, padded] of query i.
  void attend(int64_t i, T* weights) const {
    using S = Simd<T>;
    using V = typename S::V;
    for (int64_t h = 0; h < s.h; ++h) {
      const T* key = keys + h * s.keys() * s.padded;
      const T* qs = q + (i * s.h + h) * s.qk;
      T* row = weights + h * s.padded;
      for (int64_t j = 0; j < s.padded; j += S::kWidth) {
        V dot{}, dist2{};
        for (int64_t c = 0; c < s.qk; ++c)
          dot += (scalar_weight() * qs[c]) * S::load(key + c * s.padded + j);
        for (int64_t x = 0; x < 3; ++x)
          for (int64_t p = 0; p < s.point_qk; ++p) {
            const V d = query_point(i, h, x)[p] - S::load(key_point(h, x, p) + j);
            dist2 += d * d;
          }
        S::store(row + j, dot - T(0.5) * point_weights[h] * dist2);
      }
      for (int64_t j = 0; j < s.n; ++j)
        row[j] = row[j] + bias_weight() * bias[(i * s.n + j) * s.h + h] -
                 T(1e5) * (1 - query_mask[i] * mask[j]);
      to_weights(row, s);
    }
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

/// The operands as the rows read them: keys and values packed, point weights after the softplus.
template <class T>
struct IpaOperands {
  Tensor keys, values, point_weights;
  IpaRows<T> rows;

  explicit IpaOperands(const IpaTensors& in) {
    IpaSizes s;
    s.n_query = in.z.size(0);
    s.n = in.z.size(1);
    s.padded = (s.n + Simd<T>::kWidth - 1) / Simd<T>::kWidth * Simd<T>::kWidth;
    s.h = in.bias.size(2);
    s.qk = in.q_scalar.size(1) / s.h;
    s.v = in.kv_scalar.size(1) / s.h - s.qk;
    s.point_qk = in.q_point.size(1) / (3 * s.h);
    s.point_v = in.kv_point.size(1) / (3 * s.h) - s.point_qk;
    s.c_z = in.z.size(2);

    const Dtype dtype = in.z.dtype();
    keys = Tensor::empty({s.h, s.keys(), s.padded}, dtype);
    values = Tensor::empty({s.h, s.values(), s.padded}, dtype);
    point_weights = Tensor::empty({s.h}, dtype);
    for (int64_t h = 0; h < s.h; ++h) {
      // softplus(w) sqrt(2 / (27 n_point)), see the header.
      const double w = double(in.point_weights.data<T>()[h]);
      const double softplus = (w > 0 ? w : 0) + __builtin_log1p(__builtin_exp(-__builtin_fabs(w)));
      point_weights.data<T>()[h] = T(softplus * point_scale(s));
    }
    each_packed(
        s, [&](const T* x, int64_t stride, T* packed) { pack(x, stride, s, packed); },
        in.kv_scalar.data<T>(), in.kv_point.data<T>(), keys.data<T>(), values.data<T>());
    rows = {s,
            in.q_scalar.data<T>(),
            in.q_point.data<T>(),
            keys.data<T>(),
            values.data<T>(),
            in.affine.data<T>(),
            in.bias.data<T>(),
            in.z.data<T>(),
            in.query_mask.data<T>(),
            in.mask.data<T>(),
            point_weights.data<T>(),
            in.z.stride(0),
            in.z.stride(1)};
  }

  static double point_scale(const IpaSizes& s) {
    return __builtin_sqrt(1.0 / (13.5 * double(s.point_qk)));
  }

  /// f(x, stride, packed) for every row of the packed keys and values: element j is x[j * stride].
  /// Either of scalar and point may be nullptr: its rows are left out.
  template <class P, class F>
  static void each_packed(const IpaSizes& s, F f, P* scalar, P* point, T* keys, T* values) {
    const int64_t scalars = s.qk + s.v, points = s.point_qk + s.point_v;
#pragma omp parallel for
    for (int64_t h = 0; h < s.h; ++h) {
      T* key = keys + h * s.keys() * s.padded;
      T* value = values + h * s.values() * s.padded;
      for (int64_t c = 0; c < scalars && scalar; ++c)
        f(scalar + h * scalars + c, s.h * scalars,
          c < s.qk ? key + c * s.padded : value + (c - s.qk) * s.padded);
      for (int64_t x = 0; x < 3 && point; ++x)
        for (int64_t p = 0; p < points; ++p)
          f(point + (x * s.h + h) * points + p, 3 * s.h * points,
            p < s.point_qk ? key + (s.qk + x * s.point_qk + p) * s.padded
                           : value + (s.v + x * s.point_v + p - s.point_qk) * s.padded);
    }
  }
};

template <class T>
void attend(const IpaTensors& in, const Tensor& out) {
  const IpaOperands<T> operands(in);
  const IpaRows<T>& rows = operands.rows;
  const IpaSizes& s = rows.s;
  const Tensor scratch = Tensor::empty({omp_get_max_threads(), s.h, s.padded}, out.dtype());
  T *to = out.data<T>(), *room = scratch.data<T>();
  const int64_t width = out.size(1);
#pragma omp parallel for
  for (int64_t i = 0; i < s.n_query; ++i) {
    T* weights = room + omp_get_thread_num() * s.h * s.padded;
    rows.attend(i, weights);
    rows.averages(i, weights, to + i * width);
  }
}

template <class T>
T* start(const Tensor& t) {
  return t.defined() ? t.data<T>() : nullptr;
}

/// The gradients that belong to one query.
template <class T>
struct IpaRowGradients {
  using S = Simd<T>;
  const IpaRows<T>& rows;
  const IpaSizes& s;
  T *d_query, *d_query_point, *d_affine, *d_bias, *d_z;
  int64_t dz_stride_i, dz_stride_j;

  /// out and d_out: row i of the forward's output and of its gradient. Fills query i's weights,
  /// d_logits [n_head, padded], the gradient of its averages in the global frame d_average
  /// [n_head, values], and d_weight [n_head], its part of the point weights' gradient.
  void row(int64_t i, const T* out, const T* d_out, T* weights, T* d_logits, T* d_average,
           T* d_weight) const {
    rows.attend(i, weights);
    averages(i, out, d_out, d_average);
    const int64_t points = s.h * s.point_v;
    const T* d_pair = d_out + s.h * s.v + 4 * points;
    for (int64_t h = 0; h < s.h; ++h) {
      T* d = d_logits + h * s.padded;
      for (int64_t j = 0; j < s.padded; j += S::kWidth) {
        typename S::V sum{};
        for (int64_t c = 0; c < s.values(); ++c)
          sum += d_average[h * s.values() + c] *
                 S::load(rows.values + (h * s.values() + c) * s.padded + j);
        S::store(d + j, sum);
      }
    }
    for (int64_t j = 0; j < s.n; ++j) {
      const T* z = rows.z + i * rows.z_stride_i + j * rows.z_stride_j;
      T* dz = d_z ? d_z + i * dz_stride_i + j * dz_stride_j : nullptr;
      for (int64_t h = 0; h < s.h; ++h) {
        const T *d = d_pair + h * s.c_z, weight = weights[h * s.padded + j];
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < s.c_z; ++c) sum += d[c] * z[c];
        d_logits[h * s.padded + j] += sum;
        if (!dz) continue;
#pragma omp simd
        for (int64_t c = 0; c < s.c_z; ++c) dz[c] += weight * d[c];
      }
    }
    for (int64_t h = 0; h < s.h; ++h)
      logits(i, h, weights + h * s.padded, d_logits + h * s.padded, d_weight + h);
  }

 private:
  /// From the output's gradient to that of the averages before they went into the local frame.
  void averages(int64_t i, const T* out, const T* d_out, T* d_average) const {
    const int64_t points = s.h * s.point_v;
    const T *local = out + s.h * s.v, *norm = local + 3 * points;
    const T *d_local = d_out + s.h * s.v, *d_norm = d_local + 3 * points;
    T r[9], dr[9] = {}, dt[3] = {};
    quat_to_rot(rows.affine + 7 * i, r);
    for (int64_t h = 0; h < s.h; ++h) {
      for (int64_t c = 0; c < s.v; ++c) d_average[h * s.values() + c] = d_out[h * s.v + c];
      for (int64_t k = 0; k < s.point_v; ++k) {
        const int64_t p = h * s.point_v + k;
        T l[3], dl[3];
        for (int x = 0; x < 3; ++x) {
          l[x] = local[x * points + p];
          dl[x] = d_local[x * points + p] + d_norm[p] * l[x] / norm[p];
        }
        for (int x = 0; x < 3; ++x) {
          const T from_origin = r[3 * x] * l[0] + r[3 * x + 1] * l[1] + r[3 * x + 2] * l[2];
          const T dg = r[3 * x] * dl[0] + r[3 * x + 1] * dl[1] + r[3 * x + 2] * dl[2];
          d_average[h * s.values() + s.v + x * s.point_v + k] = dg;
          dt[x] -= dg;
          for (int y = 0; y < 3; ++y) dr[3 * x + y] += from_origin * dl[y];
        }
      }
    }
    if (!d_affine) return;
    quat_to_rot_backward(rows.affine + 7 * i, dr, d_affine + 7 * i);
    for (int x = 0; x < 3; ++x) d_affine[7 * i + 4 + x] += dt[x];
  }

  /// Through the softmax of head h, then to the query and the bias. d: of the weights, in place to
  /// that of the logits.
  void logits(int64_t i, int64_t h, const T* weights, T* d, T* d_weight) const {
    typename S::V sums{};
    for (int64_t j = 0; j < s.padded; j += S::kWidth) sums += S::load(weights + j) * S::load(d + j);
    const T total = sum<T>(sums);
    for (int64_t j = 0; j < s.padded; j += S::kWidth)
      S::store(d + j, S::load(weights + j) * (S::load(d + j) - total));
    if (d_bias)
      for (int64_t j = 0; j < s.n; ++j)
        d_bias[(i * s.n + j) * s.h + h] += rows.bias_weight() * d[j];
    if (d_query)
      for (int64_t c = 0; c < s.qk; ++c) {
        const T* key = rows.keys + (h * s.keys() + c) * s.padded;
        typename S::V dot{};
        for (int64_t j = 0; j < s.padded; j += S::kWidth) dot += S::load(d + j) * S::load(key + j);
        d_query[(i * s.h + h) * s.qk + c] += rows.scalar_weight() * sum<T>(dot);
      }
    typename S::V squares{};
    for (int64_t x = 0; x < 3; ++x)
      for (int64_t p = 0; p < s.point_qk; ++p) {
        const T query = rows.query_point(i, h, x)[p];
        const T* key = rows.key_point(h, x, p);
        typename S::V gaps{};
        for (int64_t j = 0; j < s.padded; j += S::kWidth) {
          const typename S::V gap = query - S::load(key + j), weighted = S::load(d + j) * gap;
          gaps += weighted;
          squares += weighted * gap;
        }
        if (d_query_point)
          d_query_point[((i * 3 + x) * s.h + h) * s.point_qk + p] -=
              rows.point_weights[h] * sum<T>(gaps);
      }
    *d_weight = T(-0.5) * sum<T>(squares);
  }
};

/// packed[j] = sum_i scale[i * stride] d[i, j], in the order of i.
template <class T>
void sum_queries(const IpaSizes& s, const T* d, const T* scale, int64_t stride, T factor,
                 T* packed) {
  using S = Simd<T>;
  for (int64_t j = 0; j < s.padded; j += S::kWidth) {
    typename S::V sum{};
    for (int64_t i = 0; i < s.n_query; ++i)
      sum += scale[i * stride] * S::load(d + i * s.h * s.padded + j);
    S::store(packed + j, factor * sum);
  }
}

template <class T>
void attend_backward(const IpaTensors& in, const Tensor& out, const Tensor& dout,
                     const IpaTensors& grads) {
  using S = Simd<T>;
  const IpaOperands<T> operands(in);
  const IpaRows<T>& rows = operands.rows;
  const IpaSizes& s = rows.s;
  const auto room = [&](const Dims& shape) { return Tensor::empty(shape, out.dtype()); };
  const int64_t n = s.n_query;
  const Tensor weights = room({n, s.h, s.padded}), d_logits = room({n, s.h, s.padded}),
               d_average = room({n, s.h, s.values()}), d_weight = room({n, s.h}),
               d_keys = room(operands.keys.shape()), d_values = room(operands.values.shape());
  const IpaRowGradients<T> gradients{rows,
                                     s,
                                     start<T>(grads.q_scalar),
                                     start<T>(grads.q_point),
                                     start<T>(grads.affine),
                                     start<T>(grads.bias),
                                     start<T>(grads.z),
                                     grads.z.defined() ? grads.z.stride(0) : 0,
                                     grads.z.defined() ? grads.z.stride(1) : 0};
  T *w = weights.data<T>(), *d = d_logits.data<T>(), *average = d_average.data<T>();
  const int64_t width = out.size(1);
#pragma omp parallel for
  for (int64_t i = 0; i < n; ++i)
    gradients.row(i, out.data<T>() + i * width, dout.data<T>() + i * width, w + i * s.h * s.padded,
                  d + i * s.h * s.padded, average + i * s.h * s.values(),
                  d_weight.data<T>() + i * s.h);

#pragma omp parallel for
  for (int64_t h = 0; h < s.h; ++h) {
    const T *dh = d + h * s.padded, *wh = w + h * s.padded;
    T* key = d_keys.data<T>() + h * s.keys() * s.padded;
    T* value = d_values.data<T>() + h * s.values() * s.padded;
    for (int64_t c = 0; c < s.qk; ++c)
      sum_queries(s, dh, rows.q + h * s.qk + c, s.h * s.qk, rows.scalar_weight(),
                  key + c * s.padded);
    for (int64_t x = 0; x < 3; ++x)
      for (int64_t p = 0; p < s.point_qk; ++p) {
        const T* k = rows.key_point(h, x, p);
        for (int64_t j = 0; j < s.padded; j += S::kWidth) {
          typename S::V sum{};
          for (int64_t i = 0; i < n; ++i)
            sum += S::load(dh + i * s.h * s.padded + j) *
                   (rows.query_point(i, h, x)[p] - S::load(k + j));
          S::store(key + (s.qk + x * s.point_qk + p) * s.padded + j, rows.point_weights[h] * sum);
        }
      }
    for (int64_t c = 0; c < s.values(); ++c)
      sum_queries(s, wh, average + h * s.values() + c, s.h * s.values(), T(1),
                  value + c * s.padded);
  }
  IpaOperands<T>::each_packed(
      s,
      [&](T* x, int64_t stride, const T* packed) {
        for (int64_t j = 0; j < s.n; ++j) x[j * stride] += packed[j];
      },
      start<T>(grads.kv_scalar), start<T>(grads.kv_point), d_keys.data<T>(), d_values.data<T>());
  if (T* to = start<T>(grads.point_weights))
    for (int64_t h = 0; h < s.h; ++h) {
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) sum += double(d_weight.data<T>()[i * s.h + h]);
      const double slope = 1 / (1 + __builtin_exp(-double(in.point_weights.data<T>()[h])));
      to[h] += T(sum * slope * IpaOperands<T>::point_scale(s));
    }
}

}  // namespace

void invariant_point_attention(const IpaTensors& in, const Tensor& out) {
  if (out.dtype() == Dtype::f64) return attend<double>(in, out);
  attend<float>(in, out);
}

void invariant_point_attention_backward(const IpaTensors& in, const Tensor& out, const Tensor& dout,
                                        const IpaTensors& grads) {
  if (out.dtype() == Dtype::f64) return attend_backward<double>(in, out, dout, grads);
  attend_backward<float>(in, out, dout, grads);
}

}  // namespace ff::cpu::FF_ISA
