// Tiles of attention: queries against packed keys and values, for the forward and the backward.
#pragma once

#include <vector>

#include "core/ops/cpu/table.h"

namespace ff::cpu::FF_ISA {

template <class A>
A* aligned(std::vector<A>& pool, int64_t& used, int64_t n) {
  A* p = pool.data() + used;
  used += (n + 15) / 16 * 16;
  return p;
}

/// logits[r, j] = q[r] . keys[:, j] for R queries and kV vectors of keys.
template <int R, int kV, class A>
inline void score_tile(const A* q, int64_t c, const A* keys, int64_t stride, A* logits) {
  using S = Simd<A>;
  typename S::V acc[R][kV] = {};
  for (int64_t k = 0; k < c; ++k) {
    typename S::V b[kV];
    for (int v = 0; v < kV; ++v) b[v] = S::load(keys + k * stride + v * S::kWidth);
    for (int r = 0; r < R; ++r) {
      const typename S::V a = S::broadcast(q[r * c + k]);
      for (int v = 0; v < kV; ++v) acc[r][v] += a * b[v];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < kV; ++v) S::store(logits + r * stride + v * S::kWidth, acc[r][v]);
}

/// out[r, :] = sum_j p[r, j] values[j, :] for R queries and kV vectors of channels.
template <int R, int kV, class A>
inline void average_tile(const A* p, int64_t stride, int64_t n, const A* values,
                         int64_t value_stride, A* out) {
  using S = Simd<A>;
  typename S::V acc[R][kV] = {};
  for (int64_t j = 0; j < n; ++j) {
    typename S::V b[kV];
    for (int v = 0; v < kV; ++v) b[v] = S::load(values + j * value_stride + v * S::kWidth);
    for (int r = 0; r < R; ++r) {
      const typename S::V a = S::broadcast(p[r * stride + j]);
      for (int v = 0; v < kV; ++v) acc[r][v] += a * b[v];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < kV; ++v) S::store(out + r * value_stride + v * S::kWidth, acc[r][v]);
}

/// out[r, j] = q[r] . keys[:, j] for R queries and all keys.
template <int R, class A>
inline void scores(const A* q, int64_t c, const A* keys, int64_t padded, A* out) {
  using S = Simd<A>;
  int64_t j = 0;
  for (; j + 4 * S::kWidth <= padded; j += 4 * S::kWidth)
    score_tile<R, 4>(q, c, keys + j, padded, out + j);
  for (; j < padded; j += S::kWidth) score_tile<R, 1>(q, c, keys + j, padded, out + j);
}

/// out[r, :] = sum_j p[r, j] values[j, :] for R queries and all channels.
template <int R, class A>
inline void averages(const A* p, int64_t padded, int64_t n, const A* values, int64_t value_stride,
                     A* out) {
  using S = Simd<A>;
  int64_t v = 0;
  for (; v + 4 * S::kWidth <= value_stride; v += 4 * S::kWidth)
    average_tile<R, 4>(p, padded, n, values + v, value_stride, out + v);
  for (; v + 2 * S::kWidth <= value_stride; v += 2 * S::kWidth)
    average_tile<R, 2>(p, padded, n, values + v, value_stride, out + v);
  for (; v < value_stride; v += S::kWidth)
    average_tile<R, 1>(p, padded, n, values + v, value_stride, out + v);
}

/// exp(logits + bias - their maximum) in place; 1 / their sum comes back. keep: 1, 0 for a masked
/// key, -1 for padding.
template <int R, class A>
inline void softmax_tile(A* logits, const A* keep, int64_t n, int64_t padded, const A* const* bias,
                         A* inverse_sum) {
  using S = Simd<A>;
  using V = typename S::V;
  // A masked key has the logit -1e9 whatever its score and bias are, so that a fully masked row
  // gives the plain mean, as in AlphaFold; padding never counts.
  const V zero{}, masked = S::broadcast(A(-1e9));
  for (int r = 0; r < R; ++r) {
    A* row = logits + r * padded;
    V high = S::broadcast(A(-3e38));
    for (int64_t i = 0; i < padded; i += S::kWidth) {
      V x = S::load(row + i);
      if (bias[r]) {
        if (i + S::kWidth <= n)
          x += S::load(bias[r] + i);
        else
          for (int64_t k = 0; k < n - i; ++k) x[k] += bias[r][i + k];
      }
      const V k = S::load(keep + i);
      x = k == zero ? masked : x;
      x = k < zero ? S::broadcast(A(-3e38)) : x;
      S::store(row + i, x);
      high = x > high ? x : high;
    }
    A top = high[0];
    for (int i = 1; i < S::kWidth; ++i) top = high[i] > top ? high[i] : top;
    V total{};
    for (int64_t i = 0; i < padded; i += S::kWidth) {
      const V e = exp(S::load(row + i) - top);  // zero for padding
      S::store(row + i, e);
      total += e;
    }
    inverse_sum[r] = 1 / sum<A>(total);
  }
}

/// keys [n, c] (element [j, 0] at from(j)) to packed[l, j]; padding repeats the last key.
/// Transposed square by square.
template <class T, class A, class From>
inline void pack_columns(From from, int64_t n, int64_t c, int64_t padded, A* packed) {
  using S = Simd<A>;
  for (int64_t j0 = 0; j0 < padded; j0 += S::kWidth)
    for (int64_t l0 = 0; l0 < c; l0 += S::kWidth) {
      const int64_t channels = c - l0 < S::kWidth ? c - l0 : S::kWidth;
      typename S::V square[S::kWidth];
      for (int i = 0; i < S::kWidth; ++i) {
        const T* pk = from(j0 + i < n ? j0 + i : n - 1) + l0;
        if (channels == S::kWidth) {
          square[i] = load(pk);
        } else {
          A some[S::kWidth] = {};
          for (int64_t l = 0; l < channels; ++l) some[l] = A(pk[l]);
          square[i] = S::load(some);
        }
      }
      transpose<A>(square);
      for (int64_t l = 0; l < channels; ++l) S::store(packed + (l0 + l) * padded + j0, square[l]);
    }
}

/// Where element [b, i, h, 0] of a [batch, n, n_head, c] tensor stands.
template <class T>
struct View {
  explicit View(const Tensor& t)
      : base(t.defined() ? t.data<T>() : nullptr),
        batch(base ? t.stride(0) : 0),
        row(base ? t.stride(1) : 0),
        head(base ? t.stride(2) : 0) {}
  T* at(int64_t b, int64_t i, int64_t h) const { return base + b * batch + i * row + h * head; }
  T* base;
  int64_t batch, row, head;
};

}  // namespace ff::cpu::FF_ISA
