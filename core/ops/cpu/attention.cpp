// Attention on the CPU: for each (row, head) keys and values are packed once, then tiles of queries
// pass through product, softmax and product with their logits in the cache. Memory: tile x n_key.
#include <vector>

#include "core/ops/cpu/attention_tiles.h"

namespace ff::cpu::FF_ISA {
namespace {

template <class A>
struct Scratch {
  A *keys, *values, *logits, *keep, *query;
};

/// R queries against all keys: averages into out [R, value_stride], to be multiplied by
/// inverse_sum.
template <int R, class A>
void attend(Scratch<A> s, int64_t c, int64_t n, int64_t padded, const A* const* bias,
            int64_t value_stride, A* out, A* inverse_sum) {
  scores<R>(s.query, c, s.keys, padded, s.logits);
  softmax_tile<R>(s.logits, s.keep, n, padded, bias, inverse_sum);
  averages<R>(s.logits, padded, n, s.values, value_stride, out);
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
        pack_columns<T>([&](int64_t j) { return ks.at(b, j, h); }, n_key, c, padded, s.keys);
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
               const Tensor& bias, const Tensor& mask, const Tensor& o, const Tensor&) {
  by_type(q, [&](auto t) { run<decltype(t)>(q, k, v, gate, bias, mask, o); });
}

void global_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                      const Tensor& mask, const Tensor& o) {
  by_type(q, [&](auto t) { run_global<decltype(t)>(q, k, v, gate, mask, o); });
}

}  // namespace ff::cpu::FF_ISA
