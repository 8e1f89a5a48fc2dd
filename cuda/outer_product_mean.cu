// Outer product mean: the outer products of a few rows i at a time, few enough to stay in the L2
// cache between the matrix products that make and project them.
#include "cuda/table.h"
#include "cuda/walk.cuh"

namespace ff::cuda {
namespace {

constexpr int64_t kMostProducts = int64_t(1) << 24;  ///< elements of the rows' outer products

/// z, update; rows are pairs.
struct AddMean {
  static constexpr bool kByRow = true;
  View<float> norm;  ///< its last axis is one long
  template <int V>
  __device__ void operator()(float (&v)[2][V], int64_t r, int64_t) const {
    const float factor = 1 / (1e-3f + *norm.row(r));
#pragma unroll
    for (int i = 0; i < V; ++i) v[0][i] += v[1][i] * factor;
  }
};

}  // namespace

void outer_product_mean(const Tensor& left, const Tensor& right, const Tensor& w, const Tensor& b,
                        const Tensor& norm, const Tensor& z) {
  if (!z.numel()) return;
  const int64_t n_seq = left.size(0), n_i = left.size(1), c = left.size(2), n_j = right.size(1),
                d = right.size(2), c_z = z.size(2);
  const int64_t most = std::max<int64_t>(1, kMostProducts / (n_j * c * d)),
                step = ceil_div(n_i, ceil_div(n_i, most));
  const Tensor by_channel = Tensor::empty({step, c, n_j, d}, left.dtype(), left.device()),
               by_pair = Tensor::empty({step, n_j, c, d}, left.dtype(), left.device()),
               updates = Tensor::empty({step, n_j, c_z}, left.dtype(), left.device());
  const Tensor rows = right.view({1, n_seq, n_j * d}), weights = w.view({1, c * d, c_z});
  for (int64_t i = 0; i < n_i; i += step) {
    const int64_t n = std::min(step, n_i - i);
    const Tensor product = by_channel.narrow(0, 0, n), ordered = by_pair.narrow(0, 0, n),
                 update = updates.narrow(0, 0, n);
    matmul(left.narrow(1, i, n).view({1, n_seq, n * c}).transpose(1, 2), rows,
           product.view({1, n * c, n_j * d}));
    ordered.copy_from(product.transpose(1, 2));
    linear(ordered.view({1, n * n_j, c * d}), weights, b, Activation::kNone, false,
           update.view({1, n * n_j, c_z}));
    walk<1, 0, AddMean, 2>("outer_product_mean", {z.narrow(0, i, n), update},
                           {View<float>(norm.narrow(0, i, n).unsqueeze(-1))});
  }
}

}  // namespace ff::cuda
