// Outer product mean, and its gradients: the outer products of some rows i at a time, as [d, c, i,
// j]. So they are one batch of matrix products, whose result the next product reads as it lies. So
// does their gradient's, as [i, c, d, j]: one product over i and c, and one over d and j.
#include <algorithm>

#include "cuda/table.h"
#include "cuda/walk.cuh"

namespace ff::cuda {
namespace {

/// Elements of the outer products that exist at a time. Fewer would stay in the L2 cache, but
/// products of a quarter are slower (4 x 15 us, not 47, of 128 x 256 on an H200); and the backward
/// rounds its sums once for each range of rows.
constexpr int64_t kMost = int64_t(1) << 26;

/// z, the residual, update; rows are pairs.
struct AddMean {
  static constexpr bool kByRow = true;
  View<float> norm;  ///< its last axis is one long
  __device__ float of_row(int64_t r) const { return *norm.row(r); }
  template <int V>
  __device__ void operator()(float (&v)[3][V], float norm_of_row) const {
    const float factor = 1 / (1e-3f + norm_of_row);
#pragma unroll
    for (int i = 0; i < V; ++i) v[0][i] = v[1][i] + v[2][i] * factor;
  }
};

/// Of the update, of z.
struct DivideByNorm {
  static constexpr bool kByRow = true;
  View<float> norm;
  __device__ float of_row(int64_t r) const { return *norm.row(r); }
  template <int V>
  __device__ void operator()(float (&v)[2][V], float norm_of_row) const {
    const float factor = 1 / (1e-3f + norm_of_row);
#pragma unroll
    for (int i = 0; i < V; ++i) v[0][i] = v[1][i] * factor;
  }
};

/// The operands of a range of rows after the other.
struct Ranges {
  Ranges(const Tensor& left_, const Tensor& right, const Tensor& w)
      : left(left_),
        n_seq(left.size(0)),
        n_i(left.size(1)),
        n_j(right.size(1)),
        c(left.size(2)),
        d(right.size(2)),
        c_z(w.size(2)),
        // Rows of whole 16 bytes, which the matrix units want.
        padded(ceil_div(n_j, 8) * 8),
        right_t(padded == n_j ? room({n_seq, d, padded}) : zeros({n_seq, d, padded}, left)) {
    right_t.narrow(2, 0, n_j).copy_from(right.transpose(1, 2));
    const int64_t rows = std::max<int64_t>(1, kMost / (padded * c * d));
    step = ceil_div(n_i, ceil_div(n_i, rows));
    products = room({step * padded * c * d});
    // All whole ranges in one launch.
    const int64_t whole = n_i / step;
    lefts = left.narrow(1, 0, whole * step).view({n_seq, whole, step, c});
    lefts = lefts.transpose(0, 1).transpose(2, 3).contiguous().view({whole, n_seq, c * step});
  }
  Tensor room(const Dims& shape) const { return Tensor::empty(shape, left.dtype(), left.device()); }
  /// Of another tensor's dtype: gradients may be f32 where the operands are bf16.
  static Tensor zeros(const Dims& shape, const Tensor& like) {
    return Tensor::zeros(shape, like.dtype(), like.device());
  }
  /// left [1, n_seq, c n] of rows i to i + n, a range.
  Tensor left_t(int64_t i, int64_t n) const {
    if (n == step) return lefts.narrow(0, i / step, 1);
    return left.narrow(1, i, n).transpose(1, 2).contiguous().view({1, n_seq, c * n});
  }
  Tensor of(int64_t n, const Dims& shape) const {
    return products.narrow(0, 0, n * padded * c * d).view(shape);
  }
  /// The outer products of n rows, channels of right outermost, or one row for each two channels.
  Tensor by_d(int64_t n) const { return of(n, {d, c * n, padded}); }
  Tensor by_channels(int64_t n) const { return of(n, {1, d * c, n * padded}); }

  void multiply(const Tensor& l, int64_t n) const {
    matmul(l.transpose(1, 2), right_t.transpose(0, 1), by_d(n));
  }

  const Tensor& left;
  int64_t n_seq, n_i, n_j, c, d, c_z, padded;
  Tensor right_t, products, lefts;
  int64_t step = 0;
};

}  // namespace

void outer_product_mean(const Tensor& left, const Tensor& right, const Tensor& w, const Tensor& b,
                        const Tensor& norm, const Tensor& residual, const Tensor& z) {
  if (!z.numel()) return;
  const Ranges r(left, right, w);
  const Tensor weights = w.transpose(0, 1).contiguous().view({1, r.d * r.c, r.c_z});
  const Tensor updates = r.room({r.step, r.padded, r.c_z});
  for (int64_t i = 0; i < r.n_i; i += r.step) {
    const int64_t n = std::min(r.step, r.n_i - i);
    const Tensor update = updates.narrow(0, 0, n);
    r.multiply(r.left_t(i, n), n);
    linear(r.by_channels(n).transpose(1, 2), weights, b, Activation::kNone, {},
           update.view({1, n * r.padded, r.c_z}));
    walk<1, 1, AddMean, 3>(
        "outer_product_mean",
        {z.narrow(0, i, n), residual.narrow(0, i, n), update.narrow(1, 0, r.n_j)},
        {View<float>(norm.narrow(0, i, n).unsqueeze(-1))});
  }
}

void outer_product_mean_backward(const Tensor& left, const Tensor& right, const Tensor& w,
                                 const Tensor& norm, const Tensor& dout, const Tensor& dleft,
                                 const Tensor& dright, const Tensor& dw, const Tensor& db) {
  if (!dout.numel()) return;
  const Tensor dz = Tensor::empty(dout.shape(), dout.dtype(), dout.device());
  walk<1, 1, DivideByNorm, 2>("outer_product_mean_backward", {dz, dout},
                              {View<float>(norm.unsqueeze(-1))});
  if (db.defined()) add_column_sums(dz.view({-1, dz.size(2)}), db);
  if (!left.numel() || !right.numel()) return;
  const Ranges r(left, right, w);
  const auto add_product = [](const Tensor& x, const Tensor& y, const Tensor& to) {
    linear(x, y, {}, Activation::kNone, to, to);
  };
  const Tensor dw_t = dw.defined() ? r.zeros({1, r.d * r.c, r.c_z}, dw) : Tensor(),
               dright_t =
                   dright.defined() ? r.zeros({1, r.n_seq, r.d * r.padded}, dright) : Tensor(),
               dleft_flat = dleft.defined() ? Tensor::empty({1, r.n_seq, r.n_i * r.c},
                                                            dleft.dtype(), dleft.device())
                                            : Tensor(),
               left_flat = left.contiguous().view({1, r.n_seq, r.n_i * r.c}),
               w_flat = w.contiguous().view({1, r.c * r.d, r.c_z});
  for (int64_t i = 0; i < r.n_i; i += r.step) {
    const int64_t n = std::min(r.step, r.n_i - i);
    Tensor g = dz.narrow(0, i, n);
    if (r.padded != r.n_j) {
      g = r.zeros({n, r.padded, r.c_z}, dz);
      g.narrow(1, 0, r.n_j).copy_from(dz.narrow(0, i, n));
    }
    if (dw.defined()) {
      r.multiply(r.left_t(i, n), n);
      add_product(r.by_channels(n), g.view({1, n * r.padded, r.c_z}), dw_t);
    }
    if (!dleft.defined() && !dright.defined()) continue;
    // The gradient of the outer products, in their place.
    const Tensor outer = r.of(n, {1, n * r.c, r.d * r.padded});
    matmul(w_flat, g.transpose(1, 2), outer.view({n, r.c * r.d, r.padded}));
    if (dright.defined()) add_product(left_flat.narrow(2, i * r.c, n * r.c), outer, dright_t);
    if (dleft.defined())
      matmul(r.right_t.view({1, r.n_seq, r.d * r.padded}), outer.transpose(1, 2),
             dleft_flat.narrow(2, i * r.c, n * r.c));
  }
  if (dleft.defined()) add(dleft_flat.view(left.shape()), dleft);
  if (dw.defined()) add(dw_t.view({r.d, r.c, r.c_z}).transpose(0, 1), dw);
  if (dright.defined())
    add(dright_t.view(r.right_t.shape()).narrow(2, 0, r.n_j).transpose(1, 2).contiguous(), dright);
}

}  // namespace ff::cuda
