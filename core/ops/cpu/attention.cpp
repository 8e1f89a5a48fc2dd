// Attention on the CPU: for each (row, head) keys and values are packed once, then tiles of queries
// pass through product, softmax and product with their logits in the cache. Memory: tile x n_key.
#include <vector>

#include "core/ops/cpu/table.h"

namespace ff::cpu::FF_ISA {
namespace {

template <class A>
struct Scratch {
  A *keys, *values, *logits, *keep, *query;
};

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

/// R queries against all keys: logits, softmax weights (not normalised; 1 / sum comes back) and
/// averages into out [R, value_stride].
template <int R, class A>
void attend(Scratch<A> s, int64_t c, int64_t n, int64_t padded, const A* const* bias,
            int64_t value_stride, A* out, A* inverse_sum) {
  using S = Simd<A>;
  using V = typename S::V;
  int64_t j = 0;
  for (; j + 4 * S::kWidth <= padded; j += 4 * S::kWidth)
    score_tile<R, 4>(s.query, c, s.keys + j, padded, s.logits + j);
  for (; j < padded; j += S::kWidth) score_tile<R, 1>(s.query, c, s.keys + j, padded, s.logits + j);
  // A masked key has the logit -1e9 whatever its score and bias are, so that a fully masked row
  // gives the plain mean, as in AlphaFold; padding never counts.
  const V zero{}, masked = S::broadcast(A(-1e9));
  for (int r = 0; r < R; ++r) {
    A* row = s.logits + r * padded;
    V high = S::broadcast(A(-3e38));
    for (int64_t i = 0; i < padded; i += S::kWidth) {
      V x = S::load(row + i);
      if (bias[r]) {
        if (i + S::kWidth <= n)
          x += S::load(bias[r] + i);
        else
          for (int64_t k = 0; k < n - i; ++k) x[k] += bias[r][i + k];
      }
      const V keep = S::load(s.keep + i);
      x = keep == zero ? masked : x;
      x = keep < zero ? S::broadcast(A(-3e38)) : x;
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
  int64_t v = 0;
  for (; v + 4 * S::kWidth <= value_stride; v += 4 * S::kWidth)
    average_tile<R, 4>(s.logits, padded, n, s.values + v, value_stride, out + v);
  for (; v + 2 * S::kWidth <= value_stride; v += 2 * S::kWidth)
    average_tile<R, 2>(s.logits, padded, n, s.values + v, value_stride, out + v);
  for (; v < value_stride; v += S::kWidth)
    average_tile<R, 1>(s.logits, padded, n, s.values + v, value_stride, out + v);
}

template <class A, class... Args>
void attend_some(int rows, Args... args) {
  switch (rows) {
    case 1:
      return attend<1, A>(args...);
    case 2:
      return attend<2, A>(args...);
    case 3:
      return attend<3, A>(args...);
    case 4:
      return attend<4, A>(args...);
    case 5:
      return attend<5, A>(args...);
    default:
      return attend<6, A>(args...);
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

template <class T>
void run(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate, const Tensor& bias,
         const Tensor& mask, const Tensor& o) {
  using A = Acc<T>;
  using S = Simd<A>;
  const int64_t batch = q.size(0), n_query = q.size(1), n_head = q.size(2), c = q.size(3);
  const int64_t n_key = k.size(1), c_v = v.size(3);
  const auto round_up = [](int64_t n) { return (n + S::kWidth - 1) / S::kWidth * S::kWidth; };
  const int64_t padded = round_up(n_key), value_stride = round_up(c_v);
  const A scale = 1 / std::sqrt(A(c));
  const View<T> qs(q), ks(k), vs(v), gates(gate), os(o);
  const A* biases = bias.defined() ? bias.data<A>() : nullptr;
  const int64_t bias_head = biases ? bias.stride(0) : 0, bias_row = biases ? bias.stride(1) : 0;
  const float* masks = mask.defined() ? mask.data<float>() : nullptr;
  const int64_t mask_batch = masks ? mask.stride(0) : 0, mask_key = masks ? mask.stride(1) : 0;
#pragma omp parallel
  {
    std::vector<A> pool(padded * (c + kTileRows + 1) + n_key * value_stride +
                        kTileRows * (c + value_stride) + 128);
    int64_t used = 0;
    Scratch<A> s;
    s.keys = aligned(pool, used, padded * c);
    s.values = aligned(pool, used, n_key * value_stride);
    s.logits = aligned(pool, used, padded * kTileRows);
    s.keep = aligned(pool, used, padded);
    s.query = aligned(pool, used, kTileRows * c);
    A* out = aligned(pool, used, kTileRows * value_stride);
    // A head's bias is used by every row: heads outermost keep it in the cache.
#pragma omp for collapse(2) schedule(static)
    for (int64_t h = 0; h < n_head; ++h)
      for (int64_t b = 0; b < batch; ++b) {
        for (int64_t j0 = 0; j0 < padded; j0 += S::kWidth) {
          // Transposed square by square; padding repeats the last key and is never kept.
          for (int64_t l0 = 0; l0 < c; l0 += S::kWidth) {
            const int64_t channels = c - l0 < S::kWidth ? c - l0 : S::kWidth;
            typename S::V square[S::kWidth];
            for (int i = 0; i < S::kWidth; ++i) {
              const T* pk = ks.at(b, j0 + i < n_key ? j0 + i : n_key - 1, h) + l0;
              if (channels == S::kWidth) {
                square[i] = load(pk);
              } else {
                A some[S::kWidth] = {};
                for (int64_t l = 0; l < channels; ++l) some[l] = A(pk[l]);
                square[i] = S::load(some);
              }
            }
            transpose<A>(square);
            for (int64_t l = 0; l < channels; ++l)
              S::store(s.keys + (l0 + l) * padded + j0, square[l]);
          }
        }
        for (int64_t j = 0; j < n_key; ++j) {
          const T* pv = vs.at(b, j, h);
          for (int64_t l = 0; l < c_v; ++l) s.values[j * value_stride + l] = A(pv[l]);
          s.keep[j] = masks ? A(masks[b * mask_batch + j * mask_key] != 0) : A(1);
        }
        for (int64_t j = n_key; j < padded; ++j) s.keep[j] = A(-1);
        for (int64_t i0 = 0; i0 < n_query; i0 += kTileRows) {
          const int rows = int(n_query - i0 < kTileRows ? n_query - i0 : kTileRows);
          const A* bias_rows[6] = {};
          for (int r = 0; r < rows; ++r) {
            const T* pq = qs.at(b, i0 + r, h);
            for (int64_t l = 0; l < c; ++l) s.query[r * c + l] = A(pq[l]) * scale;
            if (biases) bias_rows[r] = biases + h * bias_head + (i0 + r) * bias_row;
          }
          A inverse_sum[6];
          attend_some<A>(rows, s, c, n_key, padded, bias_rows, value_stride, out, inverse_sum);
          for (int r = 0; r < rows; ++r) {
            T* po = os.at(b, i0 + r, h);
            const A* from = out + r * value_stride;
            const T* pg = gates.base ? gates.at(b, i0 + r, h) : nullptr;
            vector_loop<A>(
                c_v,
                [&](int64_t l) {
                  auto x = S::load(from + l) * inverse_sum[r];
                  if (pg) x *= sigmoid(load(pg + l));
                  store(po + l, x);
                },
                [&](int64_t l) {
                  A x = from[l] * inverse_sum[r];
                  if (pg) x *= sigmoid(S::broadcast(A(pg[l])))[0];
                  po[l] = T(x);
                });
          }
        }
      }
  }
}

template <class T>
void run_global(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                const Tensor& mask, const Tensor& o) {
  using A = Acc<T>;
  const int64_t batch = k.size(0), n = k.size(1), n_head = q.size(1), c = q.size(2),
                c_v = v.size(2);
  const A scale = 1 / std::sqrt(A(c));
  const View<T> qs(q.unsqueeze(1)), ks(k.unsqueeze(2)), vs(v.unsqueeze(2)),
      gates(gate.unsqueeze(2)), os(o.unsqueeze(2));
  const float* masks = mask.data<float>();
  const int64_t mask_batch = mask.stride(0), mask_key = mask.stride(1);
#pragma omp parallel
  {
    std::vector<A> weights(n_head * n), average(n_head * c_v);
#pragma omp for
    for (int64_t b = 0; b < batch; ++b) {
      std::fill(average.begin(), average.end(), A(0));
      for (int64_t h = 0; h < n_head; ++h) {
        A* w = weights.data() + h * n;
        const T* pq = qs.at(b, 0, h);
        A top = A(-3e38), total = 0;
        for (int64_t s = 0; s < n; ++s) {
          const T* pk = ks.at(b, s, 0);
          A x = 0;
          for (int64_t l = 0; l < c; ++l) x += A(pq[l]) * scale * A(pk[l]);
          w[s] = masks[b * mask_batch + s * mask_key] != 0 ? x : A(-1e9);
          top = w[s] > top ? w[s] : top;
        }
        vector_loop<A>(
            n, [&](int64_t s) { Simd<A>::store(w + s, exp(Simd<A>::load(w + s) - top)); },
            [&](int64_t s) { w[s] = exp(Simd<A>::broadcast(w[s] - top))[0]; });
        for (int64_t s = 0; s < n; ++s) total += w[s];
        for (int64_t s = 0; s < n; ++s) {
          const T* pv = vs.at(b, s, 0);
          for (int64_t l = 0; l < c_v; ++l) average[h * c_v + l] += w[s] * A(pv[l]);
        }
        for (int64_t l = 0; l < c_v; ++l) average[h * c_v + l] /= total;
      }
      for (int64_t s = 0; s < n; ++s) {
        const T* pg = gates.at(b, s, 0);
        T* po = os.at(b, s, 0);
        vector_loop<A>(
            n_head * c_v,
            [&](int64_t l) {
              store(po + l, sigmoid(load(pg + l)) * Simd<A>::load(average.data() + l));
            },
            [&](int64_t l) { po[l] = T(sigmoid(Simd<A>::broadcast(A(pg[l])))[0] * average[l]); });
      }
    }
  }
}

}  // namespace

void attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
               const Tensor& bias, const Tensor& mask, const Tensor& o) {
  by_type(q, [&](auto t) { run<decltype(t)>(q, k, v, gate, bias, mask, o); });
}

void global_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                      const Tensor& mask, const Tensor& o) {
  by_type(q, [&](auto t) { run_global<decltype(t)>(q, k, v, gate, mask, o); });
}

}  // namespace ff::cpu::FF_ISA
