// Sums over rows, in two passes.
#include "cuda/sums.h"
#include "cuda/table.h"
#include "cuda/walk.cuh"

namespace ff::cuda {
namespace {

constexpr int kThreads = 256;

constexpr int kSumColumns = 16, kSumRuns = 64;

/// Block (kSumColumns, kSumRuns): as many interleaved runs of parts, so that few loads wait for
/// others; what a sum is added to is read meanwhile.
template <class T>
__global__ void __launch_bounds__(kSumColumns* kSumRuns)
    partials_kernel(const float* partial, int64_t parts, int64_t stride, int64_t n,
                    const __grid_constant__ View<T> first, const __grid_constant__ View<T> second) {
  after_earlier();
  __shared__ float run[kSumRuns][kSumColumns + 1];
  const int64_t j0 = int64_t(blockIdx.x) * kSumColumns, j = j0 + threadIdx.x, set = blockIdx.y;
  const View<T>& to = set ? second : first;
  if (!to.base) return;
  const int thread = threadIdx.y * kSumColumns + threadIdx.x, column = thread / 32,
            lane = thread % 32;
  const bool adds = lane == 0 && column < kSumColumns && j0 + column < n;
  T* const sum_at = adds ? to.row((j0 + column) / to.rows.c) + (j0 + column) % to.rows.c : nullptr;
  const float before = adds ? to_float(*sum_at) : 0.0f;
  float sum = 0;
  if (j < n)
#pragma unroll 8
    for (int64_t p = threadIdx.y; p < parts; p += kSumRuns)
      sum += partial[p * stride + set * n + j];
  run[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (column >= kSumColumns) return;
  sum = warp_sum(run[lane][column] + run[lane + 32][column]);
  if (adds) *sum_at = from_float<T>(before + sum);
}

/// Block (x, y): x packs of columns, y interleaved runs of the part's rows. partial [parts, c].
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    columns_kernel(const __grid_constant__ View<T> x, float* partial) {
  after_earlier();
  constexpr int kRows = 8;  // in flight
  const int64_t n = x.rows.n, c = x.rows.c;
  const int64_t first = n * blockIdx.y / gridDim.y, last = n * (blockIdx.y + 1) / gridDim.y;
  const int64_t j = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  float sum[V] = {};
  if (j < c)
    for (int64_t r = first + threadIdx.y; r < last; r += kRows * blockDim.y) {
      const auto has = [&](int k) { return r + k * blockDim.y < last; };
      Raw<T, V> xs[kRows];
#pragma unroll
      for (int k = 0; k < kRows; ++k)
        xs[k] = load_raw<V>(x.row(has(k) ? r + k * blockDim.y : r) + j);
#pragma unroll
      for (int k = 0; k < kRows; ++k)
        if (has(k))
#pragma unroll
          for (int i = 0; i < V; ++i) sum[i] += unpacked<T, V>(xs[k], i);
    }
  sum_over_y<kThreads>(sum);
  if (threadIdx.y || j >= c) return;
#pragma unroll
  for (int i = 0; i < V; ++i) partial[int64_t(blockIdx.y) * c + j + i] = sum[i];
}

}  // namespace

void add_partials(const float* partial, int64_t parts, int64_t stride, int64_t n,
                  const Tensor& first, const Tensor& second) {
  const Tensor& any = first.defined() ? first : second;
  if (!any.defined() || !n) return;
  by_type(any, [&](auto zero) {
    using T = decltype(zero);
    start_kernel(
        partials_kernel<T>, dim3(unsigned(ceil_div(n, kSumColumns)), second.defined() ? 2 : 1),
        dim3(kSumColumns, kSumRuns), 0, partial, parts, stride, n, View<T>(first), View<T>(second));
  });
  check_launch("add_partials", parts, " parts of ", n);
}

void add_column_sums(const Tensor& x, const Tensor& sums) {
  if (!x.numel()) return;
  const auto go = [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int V = decltype(width)::value;
    const View<T> view(x);
    const int64_t n = view.rows.n, c = view.rows.c, packs = c / V;
    int across = 1;
    while (across < 32 && across < packs) across *= 2;
    const int64_t tiles = ceil_div(packs, across);
    // About 1,024 blocks in all, and eight rows or more for each thread.
    const int64_t parts =
        std::clamp<int64_t>(n / (8 * (kThreads / across)), 1, ceil_div(1024, tiles));
    const Scratch partial(parts * c * 4);
    start_kernel(columns_kernel<T, V>, dim3(unsigned(tiles), unsigned(parts)),
                 dim3(unsigned(across), unsigned(kThreads / across)), 0, view,
                 partial.data<float>());
    check_launch("add_column_sums", x.shape());
    add_partials(partial.data<float>(), parts, c, c, sums);
  };
  by_type(x, [&](auto zero) {
    if (in_packs(x))
      go(zero, std::integral_constant<int, 16 / int(sizeof(zero))>());
    else
      go(zero, std::integral_constant<int, 1>());
  });
}

}  // namespace ff::cuda
