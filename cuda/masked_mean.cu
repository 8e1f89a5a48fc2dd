// The masked mean over one axis.
#include "cuda/table.h"
#include "cuda/walk.cuh"

namespace ff::cuda {
namespace {

constexpr int kThreads = 256;

struct Mask {
  explicit Mask(const Tensor& t)
      : base(t.data<float>()), stride_b(t.stride(0)), stride_s(t.stride(1)), n(t.size(1)) {}
  __device__ float operator()(int64_t b, int64_t s) const {
    return base[b * stride_b + s * stride_s];
  }
  const float* base;
  int64_t stride_b, stride_s, n;
};

/// Block (x, y) for one b: x packs of channels, y interleaved runs of s.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    mean_kernel(const __grid_constant__ View<T> x, const __grid_constant__ Mask mask, T* y,
                int64_t stride) {
  __shared__ float room[kThreads][V + 1];
  const int64_t b = blockIdx.x, j = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * V;
  float sum[V] = {}, total = 0;
#pragma unroll 4
  for (int64_t s = threadIdx.y; s < mask.n; s += blockDim.y) {
    float v[V] = {};
    if (j < x.rows.c) load_floats<V>(x.row(b * mask.n + s) + j, v);
    const float m = mask(b, s);
    total += m;
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] += m * v[i];
  }
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
  for (int i = 0; i < V; ++i) room[thread][i] = sum[i];
  room[thread][V] = total;
  __syncthreads();
  if (threadIdx.y || j >= x.rows.c) return;
  for (int k = 1; k < blockDim.y; ++k) {
    const float* other = room[k * blockDim.x + threadIdx.x];
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] += other[i];
    total += other[V];
  }
#pragma unroll
  for (int i = 0; i < V; ++i) sum[i] /= total + 1e-10f;
  store_floats<V>(y + b * stride + j, sum);
}

__global__ void __launch_bounds__(kThreads)
    totals_kernel(const __grid_constant__ Mask mask, float* totals) {
  __shared__ float room[kThreads / 32];
  float total = 0;
  for (int64_t s = threadIdx.x; s < mask.n; s += kThreads) total += mask(blockIdx.x, s);
  total = warp_sum(total);
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = total;
  __syncthreads();
  if (threadIdx.x) return;
  for (int w = 1; w < kThreads / 32; ++w) total += room[w];
  totals[blockIdx.x] = total + 1e-10f;
}

/// dx
template <class T>
struct MeanBackward {
  static constexpr bool kByRow = true;
  Mask mask;
  const float* totals;
  const T* dy;
  int64_t stride;
  template <int V>
  __device__ void operator()(float (&v)[1][V], int64_t r, int64_t j) const {
    const int64_t b = r / mask.n, s = r - b * mask.n;
    const float factor = mask(b, s) / totals[b];
    float d[V];
    load_floats<V>(dy + b * stride + j, d);
#pragma unroll
    for (int i = 0; i < V; ++i) v[0][i] += factor * d[i];
  }
};

}  // namespace

void masked_mean(const Tensor& x, const Tensor& mask, const Tensor& y) {
  if (!y.numel()) return;
  by_type(x, [&](auto zero) {
    using T = decltype(zero);
    const auto launch = [&](auto width) {
      constexpr int V = decltype(width)::value;
      int64_t lanes = 1;
      while (lanes < 32 && lanes < x.size(2) / V) lanes *= 2;
      const dim3 grid(unsigned(x.size(0)), unsigned(ceil_div(x.size(2), lanes * V)));
      mean_kernel<T, V><<<grid, dim3(unsigned(lanes), unsigned(kThreads / lanes)), 0, stream()>>>(
          View<T>(x), Mask(mask), data<T>(y), y.stride(0));
    };
    if (in_packs(x) && in_packs(y))
      launch(std::integral_constant<int, 16 / int(sizeof(T))>());
    else
      launch(std::integral_constant<int, 1>());
  });
  check_launch("masked_mean", x.shape());
}

void masked_mean_backward(const Tensor& mask, const Tensor& dy, const Tensor& dx) {
  if (!dx.numel()) return;
  const Scratch totals(dx.size(0) * 4);
  totals_kernel<<<unsigned(dx.size(0)), kThreads, 0, stream()>>>(Mask(mask), totals.data<float>());
  check_launch("masked_mean_backward", mask.shape());
  by_type(dx, [&](auto zero) {
    using T = decltype(zero);
    walk<1, 0, MeanBackward<T>, 1>("masked_mean_backward", {dx},
                                   {Mask(mask), totals.data<float>(), data<T>(dy), dy.stride(0)},
                                   in_packs(dy));
  });
}

}  // namespace ff::cuda
