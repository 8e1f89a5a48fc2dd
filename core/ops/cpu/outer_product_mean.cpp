// Outer product mean on the CPU: a few rows of the outer product at a time, projected while they
// are in the cache; the whole [n, n, c^2] product never exists.
#include "core/ops/cpu/table.h"

namespace ff::cpu::FF_ISA {

Tensor outer_product_mean(const Tensor& left, const Tensor& right, const Tensor& w, const Tensor& b,
                          const Tensor& norm, const Tensor& residual, const Tensor& z,
                          bool /*keep*/) {
  by_type(left, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    const int64_t n_seq = left.size(0), n_i = left.size(1), c = left.size(2), n_j = right.size(1),
                  d = right.size(2);
    const int64_t c_z = z.size(2);
    // Rows of i whose products fill about 4 MB.
    int64_t block = (int64_t(1) << 20) / (n_j * c * d);
    block = block < 1 ? 1 : block > n_i ? n_i : block;
    const Tensor outer = Tensor::empty({block * c, n_j * d}, left.dtype());
    const Tensor ordered = Tensor::empty({block * n_j, c * d}, left.dtype());
    const Tensor update = Tensor::empty({block * n_j, c_z}, left.dtype());
    const Tensor right_2d = right.contiguous().view({n_seq, n_j * d}).unsqueeze(0);
    const Tensor weights = w.view({c * d, c_z}).unsqueeze(0);
    for (int64_t i0 = 0; i0 < n_i; i0 += block) {
      const int64_t rows = n_i - i0 < block ? n_i - i0 : block;
      const Tensor o = outer.narrow(0, 0, rows * c);
      gemm(left.narrow(1, i0, rows)
               .contiguous()
               .view({n_seq, rows * c})
               .transpose(0, 1)
               .unsqueeze(0),
           right_2d, {}, o.unsqueeze(0));
      // [i, c, j, d] -> [i, j, c, d]
      const T* from = o.data<T>();
      T* to = ordered.data<T>();
#pragma omp parallel for collapse(2)
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < n_j; ++j)
          for (int64_t k = 0; k < c; ++k)
            __builtin_memcpy(to + ((i * n_j + j) * c + k) * d, from + ((i * c + k) * n_j + j) * d,
                             d * sizeof(T));
      const Tensor u = update.narrow(0, 0, rows * n_j);
      gemm(ordered.narrow(0, 0, rows * n_j).unsqueeze(0), weights, b, u.unsqueeze(0));
#pragma omp parallel for collapse(2)
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < n_j; ++j) {
          const A scale =
              1 / (A(1e-3) + norm.data<A>()[(i0 + i) * norm.stride(0) + j * norm.stride(1)]);
          const T* p = u.data<T>() + (i * n_j + j) * c_z;
          const auto at = [&](const Tensor& t) {
            return t.data<T>() + (i0 + i) * t.stride(0) + j * t.stride(1);
          };
          const T* old = at(residual);
          T* q = at(z);
          vector_loop<A>(
              c_z, [&](int64_t k) { store(q + k, load(old + k) + load(p + k) * scale); },
              [&](int64_t k) { q[k] = T(A(old[k]) + A(p[k]) * scale); });
        }
    }
  });
  return {};
}

/// The products of one row i of left with all of right, [c, n_j, d], exist at a time.
void outer_product_mean_backward(const Tensor& left, const Tensor& right, const Tensor& w,
                                 const Tensor& norm, const Tensor& /*kept*/, const Tensor& dout,
                                 const Tensor& dleft, const Tensor& dright, const Tensor& dw,
                                 const Tensor& db) {
  const Tensor factor = norm.clone();
  const auto invert = [&](auto* f) {
    for (int64_t i = 0; i < factor.numel(); ++i) f[i] = 1 / (decltype(+*f)(1e-3) + f[i]);
  };
  factor.dtype() == Dtype::f64 ? invert(factor.data<double>()) : invert(factor.data<float>());
  const Tensor dz = dout.clone();
  scale_rows(factor, dz);
  const int64_t n_seq = left.size(0), n_j = right.size(1), c = left.size(2), d = right.size(2);
  const Tensor r = right.contiguous(), rows = r.view({n_seq, n_j * d});
  if (db.defined()) add_column_sums(dz.view({-1, dz.size(2)}), db);
  const Tensor product = Tensor::empty({c, n_j, d}, dz.dtype());
  const Tensor flat = product.view({c, n_j * d});
  const auto add_product = [&](const Tensor& x, const Tensor& y, const Tensor& to) {
    gemm(x, y, {}, to, Activation::kNone, true);
  };
  // To which every row i adds.
  const Tensor dright_sum =
      dright.defined()
          ? Tensor::zeros(right.shape(), right.dtype() == Dtype::bf16 ? Dtype::f32 : right.dtype())
          : Tensor();
  for (int64_t i = 0; i < left.size(1); ++i) {
    const Tensor li = left.select(1, i), g = dz.narrow(0, i, 1);  // [n_seq, c], [1, n_j, c_z]
    if (dw.defined()) {
      gemm(li.transpose(0, 1).unsqueeze(0), rows.unsqueeze(0), {}, flat.unsqueeze(0));
      add_product(product.transpose(1, 2), g, dw);
    }
    if (!dleft.defined() && !dright.defined()) continue;
    gemm(g, w.transpose(1, 2), {}, product);
    if (dleft.defined())
      gemm(rows.unsqueeze(0), flat.transpose(0, 1).unsqueeze(0), {},
           dleft.select(1, i).unsqueeze(0));
    if (dright.defined())
      add_product(li.unsqueeze(0), flat.unsqueeze(0), dright_sum.view({1, n_seq, n_j * d}));
  }
  if (dright.defined()) dright.copy_from(dright_sum);
}

}  // namespace ff::cpu::FF_ISA
