// Backward of attention on the CPU: the weights of one query are computed again from q and k, so
// that nothing of the size of the logits is kept.
#include <vector>

#include "core/ops/cpu/table.h"

namespace ff::cpu::FF_ISA {
namespace {

/// Element [b, i, h, 0] of a tensor with four axes; nullptr for none.
template <class T>
T* at(const Tensor& t, int64_t b, int64_t i, int64_t h) {
  return t.defined() ? t.data<T>() + b * t.stride(0) + i * t.stride(1) + h * t.stride(2) : nullptr;
}

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

/// What the gradients of one query (b, i, h) are made of.
template <class T>
struct Query {
  using A = Acc<T>;
  const Tensor &q, &k, &v, &gate, &bias, &mask, &dy;
  std::vector<A> query, weights, d_out, d_logits, out;

  Query(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate, const Tensor& bias,
        const Tensor& mask, const Tensor& dy)
      : q(q),
        k(k),
        v(v),
        gate(gate),
        bias(bias),
        mask(mask),
        dy(dy),
        query(size_t(q.size(3))),
        weights(size_t(k.size(1))),
        d_out(size_t(v.size(3))),
        d_logits(size_t(k.size(1))),
        out(size_t(v.size(3))) {}

  A scale() const { return 1 / std::sqrt(A(q.size(3))); }
  bool keeps(int64_t b, int64_t j) const {
    return !mask.defined() || mask.data<float>()[b * mask.stride(0) + j * mask.stride(1)] != 0;
  }

  /// Fills weights, the gradient of the ungated output and that of the logits (zero where masked:
  /// there they do not depend on q, k or bias).
  void compute(int64_t b, int64_t i, int64_t h) {
    const int64_t n = k.size(1), c = q.size(3), c_v = v.size(3);
    const T* pq = at<T>(q, b, i, h);
    for (int64_t l = 0; l < c; ++l) query[size_t(l)] = A(pq[l]) * scale();
    const A* pb =
        bias.defined() ? bias.data<A>() + h * bias.stride(0) + i * bias.stride(1) : nullptr;
    for (int64_t j = 0; j < n; ++j)
      weights[size_t(j)] =
          keeps(b, j) ? product(at<T>(k, b, j, h), query.data(), c) + (pb ? pb[j] : A(0)) : A(-1e9);
    softmax(weights.data(), n);
    const T *pd = at<T>(dy, b, i, h), *pg = at<T>(gate, b, i, h);
    for (int64_t l = 0; l < c_v; ++l)
      d_out[size_t(l)] = A(pd[l]) * (pg ? sigmoid(Simd<A>::broadcast(A(pg[l])))[0] : A(1));
    A mean = 0;
    for (int64_t j = 0; j < n; ++j) {
      d_logits[size_t(j)] = product(at<T>(v, b, j, h), d_out.data(), c_v);
      mean += weights[size_t(j)] * d_logits[size_t(j)];
    }
    for (int64_t j = 0; j < n; ++j)
      d_logits[size_t(j)] = keeps(b, j) ? weights[size_t(j)] * (d_logits[size_t(j)] - mean) : A(0);
  }

  void add_gate(int64_t b, int64_t i, int64_t h, const Tensor& dgate) {
    const int64_t n = k.size(1), c_v = v.size(3);
    std::fill(out.begin(), out.end(), A(0));
    for (int64_t j = 0; j < n; ++j) {
      const T* pv = at<T>(v, b, j, h);
      for (int64_t l = 0; l < c_v; ++l) out[size_t(l)] += weights[size_t(j)] * A(pv[l]);
    }
    const T *pd = at<T>(dy, b, i, h), *pg = at<T>(gate, b, i, h);
    T* to = at<T>(dgate, b, i, h);
    for (int64_t l = 0; l < c_v; ++l) {
      const A s = sigmoid(Simd<A>::broadcast(A(pg[l])))[0];
      to[l] = T(A(to[l]) + A(pd[l]) * out[size_t(l)] * s * (1 - s));
    }
  }
};

/// to[l] += factor * from[l]
template <class A, class T, class F>
void add_scaled(const F* from, A factor, int64_t n, T* to) {
  for (int64_t l = 0; l < n; ++l) to[l] = T(A(to[l]) + factor * A(from[l]));
}

}  // namespace

void attention_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                        const Tensor& bias, const Tensor& mask, const Tensor& dy, const Tensor& dq,
                        const Tensor& dk, const Tensor& dv, const Tensor& dgate,
                        const Tensor& dbias) {
  by_type(q, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    const int64_t batch = q.size(0), n_query = q.size(1), n_head = q.size(2), n = k.size(1);
    const int64_t c = q.size(3), c_v = v.size(3);
#pragma omp parallel
    {
      Query<T> one(q, k, v, gate, bias, mask, dy);
      if (dq.defined() || dk.defined() || dv.defined() || dgate.defined()) {
#pragma omp for collapse(2)
        for (int64_t b = 0; b < batch; ++b)
          for (int64_t h = 0; h < n_head; ++h)
            for (int64_t i = 0; i < n_query; ++i) {
              one.compute(b, i, h);
              if (dgate.defined()) one.add_gate(b, i, h, dgate);
              for (int64_t j = 0; j < n; ++j) {
                const A d = one.d_logits[size_t(j)];
                if (dq.defined())
                  add_scaled(at<T>(k, b, j, h), d * one.scale(), c, at<T>(dq, b, i, h));
                if (dk.defined()) add_scaled(one.query.data(), d, c, at<T>(dk, b, j, h));
                if (dv.defined())
                  add_scaled(one.d_out.data(), one.weights[size_t(j)], c_v, at<T>(dv, b, j, h));
              }
            }
      }
      // The bias is shared by the batch: its rows are summed over the batch in order.
      if (dbias.defined()) {
#pragma omp for collapse(2)
        for (int64_t h = 0; h < n_head; ++h)
          for (int64_t i = 0; i < n_query; ++i)
            for (int64_t b = 0; b < batch; ++b) {
              one.compute(b, i, h);
              add_scaled(one.d_logits.data(), A(1), n,
                         dbias.data<A>() + h * dbias.stride(0) + i * dbias.stride(1));
            }
      }
    }
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
          d_logits(static_cast<size_t>(n));
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
        A mean = 0;
        for (int64_t s = 0; s < n; ++s) {
          d_logits[size_t(s)] = product(row(v, b, s), d_out.data(), c_v);
          mean += weights[size_t(s)] * d_logits[size_t(s)];
        }
        for (int64_t s = 0; s < n; ++s) {
          const A d = keeps(s) ? weights[size_t(s)] * (d_logits[size_t(s)] - mean) : A(0);
          if (dq.defined()) add_scaled(row(k, b, s), d * scale, c, row(dq, b, h));
          if (dk.defined()) add_scaled(query.data(), d, c, row(dk, b, s));
          if (dv.defined()) add_scaled(d_out.data(), weights[size_t(s)], c_v, row(dv, b, s));
        }
      }
    }
  });
}

}  // namespace ff::cpu::FF_ISA
