// Element-wise kernels on the CPU, and the masked mean.
#include "core/ops/cpu/table.h"

namespace ff::cpu::FF_ISA {

void masked_mean(const Tensor& x, const Tensor& mask, const Tensor& y) {
  by_type(x, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    const int64_t c = x.size(2), n = x.size(1);
#pragma omp parallel for
    for (int64_t b = 0; b < x.size(0); ++b) {
      const float* pm = mask.data<float>() + b * mask.stride(0);
      A total = A(1e-10);
      for (int64_t s = 0; s < n; ++s) total += A(pm[s * mask.stride(1)]);
      T* to = y.data<T>() + b * y.stride(0);
      constexpr int64_t kBlock = 64;
      for (int64_t c0 = 0; c0 < c; c0 += kBlock) {
        const int64_t width = c - c0 < kBlock ? c - c0 : kBlock;
        A acc[kBlock] = {};
        for (int64_t s = 0; s < n; ++s) {
          const T* row = x.data<T>() + b * x.stride(0) + s * x.stride(1) + c0;
          const A m = A(pm[s * mask.stride(1)]);
          for (int64_t l = 0; l < width; ++l) acc[l] += m * A(row[l]);
        }
        for (int64_t l = 0; l < width; ++l) to[c0 + l] = T(acc[l] / total);
      }
    }
  });
}

void masked_mean_backward(const Tensor& mask, const Tensor& dy, const Tensor& dx) {
  by_type(dy, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    const Rows<T> from(dy), to(dx);
#pragma omp parallel for
    for (int64_t b = 0; b < dx.size(0); ++b) {
      const float* m = mask.data<float>() + b * mask.stride(0);
      A total = A(1e-10);
      for (int64_t s = 0; s < dx.size(1); ++s) total += A(m[s * mask.stride(1)]);
      for (int64_t s = 0; s < dx.size(1); ++s) {
        const A factor = A(m[s * mask.stride(1)]) / total;
        T* q = to[b * dx.size(1) + s];
        for (int64_t c = 0; c < from.c; ++c) q[c] = T(A(q[c]) + factor * A(from[b][c]));
      }
    }
  });
}

void triangle_gate_backward(const Tensor& proj, const Tensor& proj_bias, const Tensor& gate,
                            const Tensor& gate_bias, const Tensor& mask, const Tensor& da,
                            const Tensor& dproj, const Tensor& dproj_bias, const Tensor& dgate,
                            const Tensor& dgate_bias) {
  by_type(proj, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    using S = Simd<A>;
    using V = typename S::V;
    const Rows<T> ps(proj), gs(gate), d(da), to_p(dproj.defined() ? dproj : da),
        to_g(dgate.defined() ? dgate : da);
    const float* m = mask.data<float>();
#pragma omp parallel for
    for (int64_t c = 0; c < ps.n; ++c) {
      const T *p = ps[c], *g = gs[c], *pd = d[c];
      T *qp = to_p[c], *qg = to_g[c];
      const A pb = proj_bias.data<A>()[c], gb = gate_bias.data<A>()[c];
      double sum_p = 0, sum_g = 0;
      constexpr int64_t kFew = 1024;  // of them sums in A, these in f64
      for (int64_t j0 = 0; j0 < ps.c; j0 += kFew) {
        V few_p{}, few_g{};
        vector_loop<A>(
            std::min(kFew, ps.c - j0),
            [&](int64_t k) {
              const int64_t j = j0 + k;
              V keep;
              for (int i = 0; i < S::kWidth; ++i) keep[i] = A(m[j + i]);
              const V s = sigmoid(load(g + j) + gb), dp = load(pd + j) * keep * s,
                      dg = dp * (load(p + j) + pb) * (1 - s);
              if (dproj.defined()) store(qp + j, load(qp + j) + dp);
              if (dgate.defined()) store(qg + j, load(qg + j) + dg);
              few_p += dp;
              few_g += dg;
            },
            [&](int64_t k) {
              const int64_t j = j0 + k;
              const A s = sigmoid(S::broadcast(A(g[j]) + gb))[0];
              const A dp = A(pd[j]) * A(m[j]) * s, dg = dp * (A(p[j]) + pb) * (1 - s);
              if (dproj.defined()) qp[j] = T(A(qp[j]) + dp);
              if (dgate.defined()) qg[j] = T(A(qg[j]) + dg);
              sum_p += double(dp);
              sum_g += double(dg);
            });
        sum_p += double(sum<A>(few_p));
        sum_g += double(sum<A>(few_g));
      }
      if (dproj_bias.defined()) dproj_bias.data<A>()[c] += A(sum_p);
      if (dgate_bias.defined()) dgate_bias.data<A>()[c] += A(sum_g);
    }
  });
}

void triangle_gate(const Tensor& proj, const Tensor& proj_bias, const Tensor& gate,
                   const Tensor& gate_bias, const Tensor& mask, const Tensor& a) {
  by_type(proj, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    using S = Simd<A>;
    const int64_t n = proj.size(1);
    const float* m = mask.data<float>();
#pragma omp parallel for
    for (int64_t c = 0; c < proj.size(0); ++c) {
      const T *p = proj.data<T>() + c * proj.stride(0), *g = gate.data<T>() + c * gate.stride(0);
      T* to = a.data<T>() + c * a.stride(0);
      const A pb = proj_bias.data<A>()[c], gb = gate_bias.data<A>()[c];
      vector_loop<A>(
          n,
          [&](int64_t j) {
            typename S::V keep;
            for (int i = 0; i < S::kWidth; ++i) keep[i] = A(m[j + i]);
            store(to + j, keep * (load(p + j) + pb) * sigmoid(load(g + j) + gb));
          },
          [&](int64_t j) {
            to[j] = T(A(m[j]) * (A(p[j]) + pb) * sigmoid(S::broadcast(A(g[j]) + gb))[0]);
          });
    }
  });
}

void add(const Tensor& x, const Tensor& y) {
  by_type(x, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    const Rows<T> from(x), to(y);
#pragma omp parallel for
    for (int64_t r = 0; r < from.n; ++r) {
      const T* p = from[r];
      T* q = to[r];
      vector_loop<A>(
          from.c, [&](int64_t j) { store(q + j, load(q + j) + load(p + j)); },
          [&](int64_t j) { q[j] = T(A(q[j]) + A(p[j])); });
    }
  });
}

void add_gated(const Tensor& x, const Tensor& gate, const Tensor& y) {
  by_type(x, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    const Rows<T> from(x), gates(gate), to(y);
#pragma omp parallel for
    for (int64_t r = 0; r < from.n; ++r) {
      const T *p = from[r], *g = gates[r];
      T* q = to[r];
      vector_loop<A>(
          from.c,
          [&](int64_t j) { store(q + j, load(q + j) + load(p + j) * sigmoid(load(g + j))); },
          [&](int64_t j) {
            q[j] = T(A(q[j]) + A(p[j]) * sigmoid(Simd<A>::broadcast(A(g[j])))[0]);
          });
    }
  });
}

void add_gated_backward(const Tensor& x, const Tensor& gate, const Tensor& dy, const Tensor& dx,
                        const Tensor& dgate) {
  by_type(x, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    const Rows<T> xs(x), gates(gate), d(dy), to_x(dx.defined() ? dx : dy),
        to_gate(dgate.defined() ? dgate : dy);
#pragma omp parallel for
    for (int64_t r = 0; r < xs.n; ++r) {
      const T *px = xs[r], *pg = gates[r], *pd = d[r];
      T *qx = to_x[r], *qg = to_gate[r];
      vector_loop<A>(
          xs.c,
          [&](int64_t j) {
            const auto s = sigmoid(load(pg + j)), g = load(pd + j) * s;
            if (dx.defined()) store(qx + j, load(qx + j) + g);
            if (dgate.defined()) store(qg + j, load(qg + j) + g * load(px + j) * (1 - s));
          },
          [&](int64_t j) {
            const A s = sigmoid(Simd<A>::broadcast(A(pg[j])))[0], g = A(pd[j]) * s;
            if (dx.defined()) qx[j] = T(A(qx[j]) + g);
            if (dgate.defined()) qg[j] = T(A(qg[j]) + g * A(px[j]) * (1 - s));
          });
    }
  });
}

void activation_backward(const Tensor& y, Activation act, const Tensor& dy) {
  by_type(y, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    const Rows<T> ys(y), d(dy);
#pragma omp parallel for
    for (int64_t r = 0; r < ys.n; ++r) {
      const T* p = ys[r];
      T* q = d[r];
      for (int64_t j = 0; j < ys.c; ++j) {
        const A v = A(p[j]);
        q[j] = T(A(q[j]) * (act == Activation::kRelu ? A(v > 0) : v * (1 - v)));
      }
    }
  });
}

void add_column_sums(const Tensor& x, const Tensor& sums) {
  by_type(x, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    const Rows<T> from(x);
    const std::vector<double> all = sum_rows<A>(from.n, from.c, [&](int64_t r, A* few) {
      const T* p = from[r];
      vector_loop<A>(
          from.c, [&](int64_t j) { Simd<A>::store(few + j, Simd<A>::load(few + j) + load(p + j)); },
          [&](int64_t j) { few[j] += A(p[j]); });
    });
    for (int64_t j = 0; j < from.c; ++j) sums.data<A>()[j] += A(all[size_t(j)]);
  });
}

void add_columns(const Tensor& x, TensorList parts) {
  for (size_t i = 0; i < parts.size(); ++i)
    if (const Tensor& to = parts[i]) add(x.narrow(1, int64_t(i) * to.size(1), to.size(1)), to);
}

void scale_rows(const Tensor& mask, const Tensor& y) {
  by_type(y, [&](auto t) {
    using T = decltype(t);
    const Rows<T> to(y);
    const auto scale = [&](auto m) {
      // A mask of rank r over y of rank r + 1: the same walk with a last axis of one.
      const Rows<decltype(m)> factors(mask.unsqueeze(-1));
#pragma omp parallel for
      for (int64_t r = 0; r < to.n; ++r) {
        const Acc<T> f = Acc<T>(*factors[r]);
        T* q = to[r];
        if (f != 1)
          for (int64_t j = 0; j < to.c; ++j) q[j] = T(Acc<T>(q[j]) * f);
      }
    };
    mask.dtype() == Dtype::f64 ? scale(double{}) : scale(float{});
  });
}

namespace {

/// Row of the relative positions' table.
int64_t relative_position(int64_t i, int64_t j, int64_t far) {
  const int64_t d = i - j + far;
  return d < 0 ? 0 : d > 2 * far ? 2 * far : d;
}

/// Bin of the distance between pseudo-beta positions i and j; -1 for none.
int64_t distance_bin(const Tensor& beta, const Tensor& breaks, int64_t i, int64_t j) {
  if (!beta.defined()) return -1;
  const int64_t bins = breaks.size(0);
  const float *edges = breaks.data<float>(), *a = beta.data<float>() + 3 * i,
              *b = beta.data<float>() + 3 * j;
  const float dist2 =
      (a[0] - b[0]) * (a[0] - b[0]) + (a[1] - b[1]) * (a[1] - b[1]) + (a[2] - b[2]) * (a[2] - b[2]);
  for (int64_t k = bins - 1; k >= 0; --k)
    if (dist2 > edges[k] && dist2 < (k + 1 < bins ? edges[k + 1] : 1e8f)) return k;
  return -1;
}

}  // namespace

void pair_embed_backward(const Tensor& residue_index, const Tensor& beta, const Tensor& breaks,
                         int64_t first_row, const Tensor& dz, const Tensor& dleft,
                         const Tensor& dright, const Tensor& drelpos, const Tensor& ddgram) {
  by_type(dz, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    const int64_t rows = dz.size(0), n = dz.size(1), c = dz.size(2);
    const int64_t far = drelpos.defined() ? (drelpos.size(0) - 1) / 2 : 0;
    const int32_t* index = residue_index.data<int32_t>();
    constexpr int64_t kBlock = 16;
    // Each thread has channels of its own: the sums' order is always the same.
#pragma omp parallel for
    for (int64_t c0 = 0; c0 < c; c0 += kBlock) {
      const int64_t width = c - c0 < kBlock ? c - c0 : kBlock;
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < n; ++j) {
          const T* d = dz.data<T>() + (i * n + j) * c + c0;
          const auto add_to = [&](const Tensor& to, int64_t row) {
            if (!to.defined() || row < 0) return;
            A* q = to.data<A>() + row * c + c0;
            for (int64_t k = 0; k < width; ++k) q[k] += A(d[k]);
          };
          add_to(dleft, i);
          add_to(dright, j);
          const int64_t residue = first_row + i;
          add_to(drelpos, relative_position(index[residue], index[j], far));
          if (ddgram.defined()) add_to(ddgram, distance_bin(beta, breaks, residue, j));
        }
    }
  });
}

void pair_embed(const Tensor& left, const Tensor& right, const Tensor& residue_index,
                const Tensor& relpos, const Tensor& beta, const Tensor& dgram, const Tensor& breaks,
                int64_t first_row, const Tensor& z) {
  by_type(left, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    const int64_t n = right.size(0), c = right.size(1), far = (relpos.size(0) - 1) / 2;
    const int32_t* index = residue_index.data<int32_t>();
#pragma omp parallel for
    for (int64_t i = first_row; i < first_row + z.size(0); ++i) {
      const T* l = left.data<T>() + (i - first_row) * c;
      for (int64_t j = 0; j < n; ++j) {
        const T *r = right.data<T>() + j * c,
                *p = relpos.data<T>() + relative_position(index[i], index[j], far) * c;
        const int64_t bin = distance_bin(beta, breaks, i, j);
        const T* g = bin < 0 ? nullptr : dgram.data<T>() + bin * c;
        T* to = z.data<T>() + (i - first_row) * z.stride(0) + j * z.stride(1);
        for (int64_t k = 0; k < c; ++k)
          to[k] = T(A(l[k]) + A(r[k]) + A(p[k]) + (g ? A(g[k]) : A(0)));
      }
    }
  });
}

}  // namespace ff::cpu::FF_ISA
