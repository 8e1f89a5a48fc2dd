// Backward of attention on the CPU: the weights of a tile of queries are computed again from q and
// k, so that nothing of the size of the logits is kept but for the bias's gradient.
#include <cstring>
#include <vector>

#include "core/ops/cpu/attention_tiles.h"

namespace ff::cpu::FF_ISA {
namespace {

template <class A, class T>
A product(const T* x, const A* y, int64_t n) {
  A sum = 0;
  for (int64_t k = 0; k < n; ++k) sum += A(x[k]) * y[k];
  return sum;
}

/// Softmax of x in place.
template <class A>
void softmax(A* x, int64_t n) {
  A high = x[0], sum = 0;
  for (int64_t j = 1; j < n; ++j) high = x[j] > high ? x[j] : high;
  for (int64_t j = 0; j < n; ++j) sum += x[j] = exp(Simd<A>::broadcast(x[j] - high))[0];
  for (int64_t j = 0; j < n; ++j) x[j] /= sum;
}

/// to[l] += factor * from[l]
template <class A, class T, class F>
void add_scaled(const F* from, A factor, int64_t n, T* to) {
  for (int64_t l = 0; l < n; ++l) to[l] = T(A(to[l]) + factor * A(from[l]));
}

/// One head of one row of the batch: everything packed as the tiles read it.
template <class A>
struct HeadScratch {
  A *keys_t, *values_t, *keys, *values;   // [c, padded], [c_v, padded], [n, c'], [n, c_v']
  A *d_keys_t, *d_values_t;               // gradients, as keys_t and values_t
  A *query, *d_out, *weights, *d_logits;  // of a tile: [R, c], [R, c_v], [R, padded] twice
  A *out, *d_query, *keep;                // [R, c_v'], [R, c'], [padded]
};

/// out[l, :] += sum_r x[r, l] rows[r, :] for a tile's R rows.
template <int R, class A>
inline void add_outer(const A* x, int64_t c, const A* rows, int64_t padded, A* out) {
  using S = Simd<A>;
  for (int64_t j = 0; j < padded; j += S::kWidth) {
    typename S::V row[R];
    for (int r = 0; r < R; ++r) row[r] = S::load(rows + r * padded + j);
    for (int64_t l = 0; l < c; ++l) {
      typename S::V sum = S::load(out + l * padded + j);
      for (int r = 0; r < R; ++r) sum += x[r * c + l] * row[r];
      S::store(out + l * padded + j, sum);
    }
  }
}

/// From a tile's queries and d_out (of the ungated output) to everything but what is summed over
/// tiles elsewhere; `out` becomes the ungated output.
template <int R, class A>
void tile_backward(const HeadScratch<A>& s, int64_t c, int64_t c_v, int64_t n, int64_t padded,
                   int64_t key_stride, int64_t value_stride, const A* const* bias) {
  using S = Simd<A>;
  using V = typename S::V;
  A inverse_sum[R];
  scores<R>(s.query, c, s.keys_t, padded, s.weights);
  softmax_tile<R>(s.weights, s.keep, n, padded, bias, inverse_sum);
  scores<R>(s.d_out, c_v, s.values_t, padded, s.d_logits);
  for (int r = 0; r < R; ++r) {
    A *w = s.weights + r * padded, *d = s.d_logits + r * padded;
    V sums{};
    for (int64_t j = 0; j < padded; j += S::kWidth) {
      const V x = S::load(w + j) * inverse_sum[r];
      S::store(w + j, x);
      sums += x * S::load(d + j);
    }
    const A mean = sum<A>(sums);
    const V zero{};
    // A masked key's logit depends on nothing.
    for (int64_t j = 0; j < padded; j += S::kWidth)
      S::store(d + j, S::load(s.keep + j) > zero ? S::load(w + j) * (S::load(d + j) - mean) : zero);
  }
  averages<R>(s.weights, padded, n, s.values, value_stride, s.out);
  averages<R>(s.d_logits, padded, n, s.keys, key_stride, s.d_query);
  add_outer<R>(s.query, c, s.d_logits, padded, s.d_keys_t);
  add_outer<R>(s.d_out, c_v, s.weights, padded, s.d_values_t);
}

template <class A, class... Args>
void tile_of(int rows, const Args&... args) {
  switch (rows) {
    case 1:
      return tile_backward<1, A>(args...);
    case 2:
      return tile_backward<2, A>(args...);
    case 3:
      return tile_backward<3, A>(args...);
    case 4:
      return tile_backward<4, A>(args...);
    case 5:
      return tile_backward<5, A>(args...);
    default:
      return tile_backward<6, A>(args...);
  }
}

/// to(j)[l] += packed[l, j]
template <class T, class A, class To>
void unpack_add(const A* packed, int64_t padded, int64_t n, int64_t c, To to) {
  for (int64_t j = 0; j < n; ++j) {
    T* p = to(j);
    for (int64_t l = 0; l < c; ++l) p[l] = T(A(p[l]) + packed[l * padded + j]);
  }
}

/// The bias is shared by the batch, which is dealt out to at most so many sums; they are added in
/// order.
constexpr int64_t kBiasSums = 16;

template <class T>
void run_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                  const Tensor& bias, const Tensor& mask, const Tensor& dy, const Tensor& dq,
                  const Tensor& dk, const Tensor& dv, const Tensor& dgate, const Tensor& dbias) {
  using A = Acc<T>;
  using S = Simd<A>;
  const int64_t batch = q.size(0), n_query = q.size(1), n_head = q.size(2), c = q.size(3),
                n = k.size(1), c_v = v.size(3);
  const auto round_up = [](int64_t x) { return (x + S::kWidth - 1) / S::kWidth * S::kWidth; };
  const int64_t padded = round_up(n), key_stride = round_up(c), value_stride = round_up(c_v);
  const A scale = 1 / std::sqrt(A(c));
  const View<T> qs(q), ks(k), vs(v), gates(gate), dys(dy), dqs(dq), dks(dk), dvs(dv), dgates(dgate);
  const A* biases = bias.defined() ? bias.data<A>() : nullptr;
  const int64_t bias_head = biases ? bias.stride(0) : 0, bias_row = biases ? bias.stride(1) : 0;
  const float* masks = mask.defined() ? mask.data<float>() : nullptr;
  const int64_t mask_batch = masks ? mask.stride(0) : 0, mask_key = masks ? mask.stride(1) : 0;
  // Where the bias has no gradient every row of the batch is a part of its own.
  const int64_t parts = dbias.defined() && batch > kBiasSums ? kBiasSums : batch;
  const Tensor bias_sums = Tensor::zeros({dbias.defined() ? parts : 0, n_head, n_query, n},
                                         dbias.defined() ? dbias.dtype() : Dtype::f32);
  A* d_biases = dbias.defined() ? bias_sums.data<A>() : nullptr;
#pragma omp parallel
  {
    const int64_t columns = padded * (2 * (c + c_v) + 2 * kTileRows + 1);
    std::vector<A> pool(size_t(columns + n * (key_stride + value_stride) +
                               kTileRows * (c + c_v + key_stride + value_stride) + 256));
    int64_t used = 0;
    HeadScratch<A> s;
    s.keys_t = aligned(pool, used, padded * c);
    s.values_t = aligned(pool, used, padded * c_v);
    s.d_keys_t = aligned(pool, used, padded * c);
    s.d_values_t = aligned(pool, used, padded * c_v);
    s.keys = aligned(pool, used, n * key_stride);
    s.values = aligned(pool, used, n * value_stride);
    s.query = aligned(pool, used, kTileRows * c);
    s.d_out = aligned(pool, used, kTileRows * c_v);
    s.weights = aligned(pool, used, kTileRows * padded);
    s.d_logits = aligned(pool, used, kTileRows * padded);
    s.out = aligned(pool, used, kTileRows * value_stride);
    s.d_query = aligned(pool, used, kTileRows * key_stride);
    s.keep = aligned(pool, used, padded);
    const auto head = [&](int64_t b, int64_t h, A* bias_sum) {
      pack_columns<T>([&](int64_t j) { return ks.at(b, j, h); }, n, c, padded, s.keys_t);
      pack_columns<T>([&](int64_t j) { return vs.at(b, j, h); }, n, c_v, padded, s.values_t);
      for (int64_t j = 0; j < n; ++j) {
        const T *pk = ks.at(b, j, h), *pv = vs.at(b, j, h);
        for (int64_t l = 0; l < c; ++l) s.keys[j * key_stride + l] = A(pk[l]);
        for (int64_t l = 0; l < c_v; ++l) s.values[j * value_stride + l] = A(pv[l]);
        s.keep[j] = masks ? A(masks[b * mask_batch + j * mask_key] != 0) : A(1);
      }
      for (int64_t j = n; j < padded; ++j) s.keep[j] = A(-1);
      std::fill(s.d_keys_t, s.d_keys_t + padded * c, A(0));
      std::fill(s.d_values_t, s.d_values_t + padded * c_v, A(0));
      for (int64_t i0 = 0; i0 < n_query; i0 += kTileRows) {
        const int rows = int(n_query - i0 < kTileRows ? n_query - i0 : kTileRows);
        const A* bias_rows[6] = {};
        for (int r = 0; r < rows; ++r) {
          const T *pq = qs.at(b, i0 + r, h), *pd = dys.at(b, i0 + r, h);
          for (int64_t l = 0; l < c; ++l) s.query[r * c + l] = A(pq[l]) * scale;
          for (int64_t l = 0; l < c_v; ++l) s.d_out[r * c_v + l] = A(pd[l]);
          if (gates.base) {
            const T* pg = gates.at(b, i0 + r, h);
            A* d = s.d_out + r * c_v;
            vector_loop<A>(
                c_v, [&](int64_t l) { S::store(d + l, S::load(d + l) * sigmoid(load(pg + l))); },
                [&](int64_t l) { d[l] *= sigmoid(S::broadcast(A(pg[l])))[0]; });
          }
          if (biases) bias_rows[r] = biases + h * bias_head + (i0 + r) * bias_row;
        }
        tile_of<A>(rows, s, c, c_v, n, padded, key_stride, value_stride, &bias_rows[0]);
        for (int r = 0; r < rows; ++r) {
          if (dqs.base) {
            T* to = dqs.at(b, i0 + r, h);
            for (int64_t l = 0; l < c; ++l)
              to[l] = T(A(to[l]) + scale * s.d_query[r * key_stride + l]);
          }
          if (dgates.base) {
            const T *pd = dys.at(b, i0 + r, h), *pg = gates.at(b, i0 + r, h);
            T* to = dgates.at(b, i0 + r, h);
            const A* out = s.out + r * value_stride;
            const auto slope = [](auto g) { return g * (1 - g); };
            vector_loop<A>(
                c_v,
                [&](int64_t l) {
                  store(to + l, load(to + l) +
                                    load(pd + l) * S::load(out + l) * slope(sigmoid(load(pg + l))));
                },
                [&](int64_t l) {
                  to[l] =
                      T(A(to[l]) + A(pd[l]) * out[l] * slope(sigmoid(S::broadcast(A(pg[l])))[0]));
                });
          }
          if (bias_sum) {
            A* to = bias_sum + (i0 + r) * n;
            const A* d = s.d_logits + r * padded;
            for (int64_t j = 0; j < n; ++j) to[j] += d[j];
          }
        }
      }
      if (dks.base)
        unpack_add<T>(s.d_keys_t, padded, n, c, [&](int64_t j) { return dks.at(b, j, h); });
      if (dvs.base)
        unpack_add<T>(s.d_values_t, padded, n, c_v, [&](int64_t j) { return dvs.at(b, j, h); });
    };
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t h = 0; h < n_head; ++h)
      for (int64_t part = 0; part < parts; ++part)
        for (int64_t b = part * batch / parts; b < (part + 1) * batch / parts; ++b)
          head(b, h, d_biases ? d_biases + (part * n_head + h) * n_query * n : nullptr);
    if (d_biases) {
#pragma omp for collapse(2)
      for (int64_t h = 0; h < n_head; ++h)
        for (int64_t i = 0; i < n_query; ++i) {
          A* to = dbias.data<A>() + h * dbias.stride(0) + i * dbias.stride(1);
          for (int64_t part = 0; part < parts; ++part) {
            const A* from = d_biases + ((part * n_head + h) * n_query + i) * n;
            for (int64_t j = 0; j < n; ++j) to[j] += from[j];
          }
        }
    }
  }
}

}  // namespace

void attention_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                        const Tensor& bias, const Tensor& mask, const Tensor&, const Tensor&,
                        const Tensor& dy, const Tensor& dq, const Tensor& dk, const Tensor& dv,
                        const Tensor& dgate, const Tensor& dbias, const Tensor& fresh) {
  if (fresh) std::memset(fresh.raw(), 0, size_t(fresh.numel() * size_of(fresh.dtype())));
  by_type(q, [&](auto t) {
    run_backward<decltype(t)>(q, k, v, gate, bias, mask, dy, dq, dk, dv, dgate, dbias);
  });
}

void global_attention_backward(const Tensor& q, const Tensor& k, const Tensor& v,
                               const Tensor& gate, const Tensor& mask, const Tensor& dy,
                               const Tensor& dq, const Tensor& dk, const Tensor& dv,
                               const Tensor& dgate) {
  by_type(q, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    const int64_t n_head = q.size(1), n = k.size(1), c = q.size(2), c_v = v.size(2);
    const A scale = 1 / std::sqrt(A(c));
    const auto row = [](const Tensor& x, int64_t b, int64_t i) {
      return x.defined() ? x.data<T>() + b * x.stride(0) + i * x.stride(1) : nullptr;
    };
#pragma omp parallel for
    for (int64_t b = 0; b < q.size(0); ++b) {
      std::vector<A> query(static_cast<size_t>(c)), weights(static_cast<size_t>(n)),
          out(static_cast<size_t>(c_v)), d_out(static_cast<size_t>(c_v)),
          d_query(static_cast<size_t>(c)), d_keys(static_cast<size_t>(n * c)),
          d_values(static_cast<size_t>(n * c_v));
      const auto keeps = [&](int64_t s) {
        return mask.data<float>()[b * mask.stride(0) + s * mask.stride(1)] != 0;
      };
      for (int64_t h = 0; h < n_head; ++h) {
        const T* pq = row(q, b, h);
        for (int64_t l = 0; l < c; ++l) query[size_t(l)] = A(pq[l]) * scale;
        for (int64_t s = 0; s < n; ++s)
          weights[size_t(s)] = keeps(s) ? product(row(k, b, s), query.data(), c) : A(-1e9);
        softmax(weights.data(), n);
        std::fill(out.begin(), out.end(), A(0));
        std::fill(d_out.begin(), d_out.end(), A(0));
        for (int64_t s = 0; s < n; ++s)
          add_scaled(row(v, b, s), weights[size_t(s)], c_v, out.data());
        for (int64_t s = 0; s < n; ++s) {
          const T *pd = row(dy, b, s) + h * c_v, *pg = row(gate, b, s) + h * c_v;
          T* to = dgate.defined() ? row(dgate, b, s) + h * c_v : nullptr;
          for (int64_t l = 0; l < c_v; ++l) {
            const A g = sigmoid(Simd<A>::broadcast(A(pg[l])))[0];
            d_out[size_t(l)] += A(pd[l]) * g;
            if (to) to[l] = T(A(to[l]) + A(pd[l]) * out[size_t(l)] * g * (1 - g));
          }
        }
        // The average of v under the weights is what the ungated output is.
        const A mean = product(out.data(), d_out.data(), c_v);
        std::fill(d_query.begin(), d_query.end(), A(0));
        for (int64_t s = 0; s < n; ++s) {
          const A d = keeps(s)
                          ? weights[size_t(s)] * (product(row(v, b, s), d_out.data(), c_v) - mean)
                          : A(0);
          add_scaled(row(k, b, s), d * scale, c, d_query.data());
          add_scaled(query.data(), d, c, d_keys.data() + s * c);
          add_scaled(d_out.data(), weights[size_t(s)], c_v, d_values.data() + s * c_v);
        }
        if (dq.defined()) add_scaled(d_query.data(), A(1), c, row(dq, b, h));
      }
      for (int64_t s = 0; s < n; ++s) {
        if (dk.defined()) add_scaled(d_keys.data() + s * c, A(1), c, row(dk, b, s));
        if (dv.defined()) add_scaled(d_values.data() + s * c_v, A(1), c_v, row(dv, b, s));
      }
    }
  });
}

}  // namespace ff::cpu::FF_ISA
