// Layer norm on the CPU: two passes over a row that stays in the cache.
#include "core/ops/cpu/table.h"

namespace ff::cpu::FF_ISA {
namespace {

constexpr double kEpsilon = 1e-5;

template <class A>
struct Statistics {
  A mean, rstd;
};

template <class T, class A = Acc<T>>
Statistics<A> statistics(const T* x, int64_t c) {
  using V = typename Simd<A>::V;
  V total{};
  A rest = 0;
  vector_loop<A>(
      c, [&](int64_t j) { total += load(x + j); }, [&](int64_t j) { rest += A(x[j]); });
  const A mean = (sum<A>(total) + rest) / A(c);
  V squares{};
  rest = 0;
  vector_loop<A>(
      c,
      [&](int64_t j) {
        const V d = load(x + j) - mean;
        squares += d * d;
      },
      [&](int64_t j) { rest += (A(x[j]) - mean) * (A(x[j]) - mean); });
  return {mean, 1 / std::sqrt((sum<A>(squares) + rest) / A(c) + A(kEpsilon))};
}

template <class T>
void normalise(const T* x, const Acc<T>* scale, const Acc<T>* offset, int64_t c, T* y) {
  using A = Acc<T>;
  using S = Simd<A>;
  const auto [mean, rstd] = statistics(x, c);
  vector_loop<A>(
      c,
      [&](int64_t j) {
        store(y + j, (load(x + j) - mean) * rstd * S::load(scale + j) + S::load(offset + j));
      },
      [&](int64_t j) { y[j] = T((A(x[j]) - mean) * rstd * scale[j] + offset[j]); });
}

}  // namespace

void layer_norm(const Tensor& x, const Tensor& scale, const Tensor& offset, const Tensor& y) {
  by_type(x, [&](auto t) {
    using T = decltype(t);
    const Rows<T> from(x), to(y);
    const Acc<T>*s = scale.data<Acc<T>>(), *o = offset.data<Acc<T>>();
#pragma omp parallel for
    for (int64_t r = 0; r < from.n; ++r) normalise<T>(from[r], s, o, from.c, to[r]);
  });
}

void layer_norm_backward(const Tensor& x, const Tensor& scale, const Tensor& dy, const Tensor& dx,
                         const Tensor& dscale, const Tensor& doffset) {
  by_type(x, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    using S = Simd<A>;
    using V = typename S::V;
    const Rows<T> from(x), d(dy), to(dx.defined() ? dx : dy);
    const int64_t c = from.c;
    const A* s = scale.data<A>();
    const bool wanted = dscale.defined() || doffset.defined();
    const bool writes = dx.defined() && dx.raw() == dy.raw();
    const std::vector<double> sums = sum_rows<A>(from.n, wanted ? 2 * c : 0, [&](int64_t r, A* ds) {
      const T *px = from[r], *pd = d[r];
      const Statistics<A> row = statistics(px, c);
      const A mean = row.mean, rstd = row.rstd;
      V g{}, gx{};
      A g_rest = 0, gx_rest = 0;
      A* db = ds + c;
      vector_loop<A>(
          c,
          [&](int64_t j) {
            const V dj = load(pd + j), h = (load(px + j) - mean) * rstd, w = dj * S::load(s + j);
            g += w;
            gx += w * h;
            if (!wanted) return;
            S::store(ds + j, S::load(ds + j) + dj * h);
            S::store(db + j, S::load(db + j) + dj);
          },
          [&](int64_t j) {
            const A dj = A(pd[j]), h = (A(px[j]) - mean) * rstd;
            g_rest += dj * s[j];
            gx_rest += dj * s[j] * h;
            if (!wanted) return;
            ds[j] += dj * h;
            db[j] += dj;
          });
      if (!dx.defined()) return;
      const A g_mean = (sum<A>(g) + g_rest) / A(c), gx_mean = (sum<A>(gx) + gx_rest) / A(c);
      T* q = to[r];
      vector_loop<A>(
          c,
          [&](int64_t j) {
            const V h = (load(px + j) - mean) * rstd;
            store(q + j, (writes ? V{} : load(q + j)) +
                             rstd * (load(pd + j) * S::load(s + j) - g_mean - h * gx_mean));
          },
          [&](int64_t j) {
            const A h = (A(px[j]) - mean) * rstd;
            q[j] = T((writes ? A(0) : A(q[j])) + rstd * (A(pd[j]) * s[j] - g_mean - h * gx_mean));
          });
    });
    for (int k = 0; k < 2; ++k)
      if (const Tensor& out = k ? doffset : dscale; out.defined())
        for (int64_t j = 0; j < c; ++j) out.data<A>()[j] += A(sums[size_t(k * c + j)]);
  });
}

void layer_norm_channels_first(const Tensor& x, const Tensor& scale, const Tensor& offset,
                               const Tensor& y) {
  by_type(x, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    const int64_t c = x.size(0), n = x.size(1), m = x.size(2);
    const A *s = scale.data<A>(), *o = offset.data<A>();
    constexpr int64_t kBlock =
        64;  // positions gathered at a time: whole cache lines of each channel
#pragma omp parallel for collapse(2)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j0 = 0; j0 < m; j0 += kBlock) {
        const int64_t width = m - j0 < kBlock ? m - j0 : kBlock;
        const T* from = x.data<T>() + i * x.stride(1) + j0;
        A mean[kBlock] = {}, rstd[kBlock] = {};
        for (int64_t k = 0; k < c; ++k)
          for (int64_t j = 0; j < width; ++j) mean[j] += A(from[k * x.stride(0) + j]);
        for (int64_t j = 0; j < width; ++j) mean[j] /= A(c);
        for (int64_t k = 0; k < c; ++k)
          for (int64_t j = 0; j < width; ++j) {
            const A d = A(from[k * x.stride(0) + j]) - mean[j];
            rstd[j] += d * d;
          }
        for (int64_t j = 0; j < width; ++j) rstd[j] = 1 / std::sqrt(rstd[j] / A(c) + A(kEpsilon));
        T* to = y.data<T>() + i * y.stride(0) + j0 * y.stride(1);
        for (int64_t k = 0; k < c; ++k)
          for (int64_t j = 0; j < width; ++j)
            to[j * y.stride(1) + k] =
                T((A(from[k * x.stride(0) + j]) - mean[j]) * rstd[j] * s[k] + o[k]);
      }
  });
}

void layer_norm_channels_first_backward(const Tensor& x, const Tensor& scale, const Tensor& dy,
                                        const Tensor& dx, const Tensor& dscale,
                                        const Tensor& doffset) {
  const auto channels_last = [](const Tensor& t) { return t.transpose(0, 1).transpose(1, 2); };
  const auto channels_first = [](const Tensor& t) { return t.transpose(1, 2).transpose(0, 1); };
  const Tensor last = dx.defined() ? Tensor::zeros(dy.shape(), dy.dtype()) : Tensor();
  layer_norm_backward(channels_last(x).contiguous(), scale, dy, last, dscale, doffset);
  if (dx.defined()) add(channels_first(last).contiguous(), dx);
}

}  // namespace ff::cpu::FF_ISA
