// Sums over rows, in two passes.
#include "cuda/sums.h"
#include "cuda/table.h"
#include "cuda/walk.cuh"

namespace ff::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__device__ void add_one(const View<T>& to, int64_t j, float sum) {
  T* p = to.row(j / to.rows.c) + j % to.rows.c;
  *p = from_float<T>(to_float(*p) + sum);
}

/// Block (32, 8): 32 columns, and eight interleaved runs of parts.
template <class T>
__global__ void __launch_bounds__(kThreads)
    partials_kernel(const float* partial, int64_t parts, int64_t stride, int64_t n,
                    const __grid_constant__ View<T> first, const __grid_constant__ View<T> second) {
  __shared__ float part[8][32];
  const int64_t j = int64_t(blockIdx.x) * 32 + threadIdx.x, set = blockIdx.y;
  const View<T>& to = set ? second : first;
  if (!to.base) return;
  float sum = 0;
  if (j < n)
#pragma unroll 4
    for (int64_t p = threadIdx.y; p < parts; p += 8) sum += partial[p * stride + set * n + j];
  part[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y || j >= n) return;
  for (int k = 1; k < 8; ++k) sum += part[k][threadIdx.x];
  add_one(to, j, sum);
}

/// Block (x, y): x packs of columns, y interleaved runs of the part's rows.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    columns_kernel(const __grid_constant__ View<T> x, float* partial) {
  __shared__ float room[kThreads][V];
  const int64_t n = x.rows.n, c = x.rows.c;
  const int64_t first = n * blockIdx.y / gridDim.y, last = n * (blockIdx.y + 1) / gridDim.y;
  const int64_t j = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  float sum[V] = {};
  if (j < c)
#pragma unroll 4
    for (int64_t r = first + threadIdx.y; r < last; r += blockDim.y) {
      float v[V];
      load_floats<V>(x.row(r) + j, v);
#pragma unroll
      for (int i = 0; i < V; ++i) sum[i] += v[i];
    }
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
  for (int i = 0; i < V; ++i) room[thread][i] = sum[i];
  __syncthreads();
  if (threadIdx.y || j >= c) return;
  for (int y = 1; y < blockDim.y; ++y)
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] += room[y * blockDim.x + threadIdx.x][i];
#pragma unroll
  for (int i = 0; i < V; ++i) partial[int64_t(blockIdx.y) * c + j + i] = sum[i];
}

template <class T, int V>
void column_sums(const Tensor& x, const Tensor& sums) {
  const View<T> view(x);
  const int64_t n = view.rows.n, c = view.rows.c, packs = c / V;
  int width = 1;
  while (width < 32 && width < packs) width *= 2;
  const int64_t tiles = ceil_div(packs, width);
  // About 1,024 blocks in all, and eight rows or more for each thread.
  const int64_t parts = std::clamp<int64_t>(n / (8 * (kThreads / width)), 1, ceil_div(1024, tiles));
  const Scratch partial(parts * c * 4);
  columns_kernel<T, V>
      <<<dim3(unsigned(tiles), unsigned(parts)), dim3(unsigned(width), unsigned(kThreads / width)),
         0, stream()>>>(view, partial.data<float>());
  check_launch("add_column_sums", x.shape());
  add_partials(partial.data<float>(), parts, c, c, sums);
}

}  // namespace

void add_partials(const float* partial, int64_t parts, int64_t stride, int64_t n,
                  const Tensor& first, const Tensor& second) {
  const Tensor& any = first.defined() ? first : second;
  if (!any.defined() || !n) return;
  by_type(any, [&](auto zero) {
    using T = decltype(zero);
    partials_kernel<T>
        <<<dim3(unsigned(ceil_div(n, 32)), second.defined() ? 2 : 1), dim3(32, 8), 0, stream()>>>(
            partial, parts, stride, n, View<T>(first), View<T>(second));
  });
  check_launch("add_partials", parts, " parts of ", n);
}

void add_column_sums(const Tensor& x, const Tensor& sums) {
  if (!x.numel()) return;
  by_type(x, [&](auto zero) {
    using T = decltype(zero);
    if (in_packs(x))
      column_sums<T, 16 / int(sizeof(T))>(x, sums);
    else
      column_sums<T, 1>(x, sums);
  });
}

}  // namespace ff::cuda
