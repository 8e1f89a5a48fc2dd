// The gradients of the outer product mean: matrix products over blocks of rows i, whose outer
// products [i, c, j, d] are reordered between them.
#include <algorithm>

#include "cuda/device.cuh"
#include "cuda/table.h"

namespace ff::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostProducts = int64_t(1) << 27;  ///< elements of a block's outer products

__global__ void invert_kernel(const float* __restrict__ norm, float* __restrict__ factor,
                              int64_t n) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) factor[i] = 1.0f / (1e-3f + norm[i]);
}

void add_product(const Tensor& x, const Tensor& y, const Tensor& to) {
  linear(x.unsqueeze(0), y.unsqueeze(0), {}, Activation::kNone, true, to.unsqueeze(0));
}

}  // namespace

void outer_product_mean_backward(const Tensor& left, const Tensor& right, const Tensor& w,
                                 const Tensor& norm, const Tensor& dz, const Tensor& dleft,
                                 const Tensor& dright, const Tensor& dw, const Tensor& db) {
  if (!dz.numel()) return;
  const int64_t n_seq = left.size(0), n_i = left.size(1), n_j = right.size(1), c = left.size(2),
                d = right.size(2), c_z = w.size(2);
  const Tensor counts = norm.contiguous(),
               factor = Tensor::empty({n_i, n_j}, Dtype::f32, dz.device());
  invert_kernel<<<unsigned(ceil_div(n_i * n_j, kThreads)), kThreads, 0, stream()>>>(
      counts.data<float>(), factor.data<float>(), n_i * n_j);
  check_launch("outer_product_mean_backward", norm.shape());
  scale_rows(factor, dz);
  if (db.defined()) add_column_sums(dz.view({-1, c_z}), db);
  const Tensor l = left.contiguous(), rows = right.contiguous().view({n_seq, n_j * d}),
               weights = w.view({c * d, c_z});
  const int64_t most = std::max<int64_t>(1, kMostProducts / (n_j * c * d)),
                step = ceil_div(n_i, ceil_div(n_i, most));
  const Tensor by_channel = Tensor::empty({step, c, n_j, d}, dz.dtype(), dz.device()),
               by_pair = Tensor::empty({step, n_j, c, d}, dz.dtype(), dz.device());
  for (int64_t i = 0; i < n_i; i += step) {
    const int64_t n = std::min(step, n_i - i);
    const Tensor li = l.narrow(1, i, n).view({n_seq, n * c}),
                 g = dz.narrow(0, i, n).view({n * n_j, c_z});
    const Tensor product = by_channel.narrow(0, 0, n), ordered = by_pair.narrow(0, 0, n);
    const Tensor flat = product.view({n * c, n_j * d}), pairs = ordered.view({n * n_j, c * d});
    if (dw.defined()) {
      matmul(li.transpose(0, 1).unsqueeze(0), rows.unsqueeze(0), flat.unsqueeze(0));
      ordered.copy_from(product.transpose(1, 2));
      add_product(pairs.transpose(0, 1), g, dw.view({c * d, c_z}));
    }
    if (!dleft.defined() && !dright.defined()) continue;
    matmul(g.unsqueeze(0), weights.transpose(0, 1).unsqueeze(0), pairs.unsqueeze(0));
    product.copy_from(ordered.transpose(1, 2));
    if (dleft.defined())
      add_product(rows, flat.transpose(0, 1), dleft.narrow(1, i, n).view({n_seq, n * c}));
    if (dright.defined()) add_product(li, flat, dright.view({n_seq, n_j * d}));
  }
}

}  // namespace ff::cuda
