// Copies between tensors on the GPU, any strides, and from one dtype to another; and fills with
// zeros. By kernels where the driver's own, which wait for what is before them to end and let what
// is behind them wait, would take longer.
#include <algorithm>

#include "cuda/module_parts.h"
#include "cuda/walk.cuh"

namespace ff::cuda {
namespace {

/// The axes of both tensors, ordered by the destination's strides, innermost first; neighbours that
/// chain in both are merged.
struct Axes {
  int count = 0;
  int64_t size[Dims::kMax] = {}, from[Dims::kMax] = {}, to[Dims::kMax] = {};
};

Axes axes_of(const Tensor& from, const Tensor& to) {
  int order[Dims::kMax], rank = 0;
  for (int i = to.rank() - 1; i >= 0; --i)
    if (to.size(i) != 1) order[rank++] = i;
  std::stable_sort(order, order + rank, [&](int a, int b) { return to.stride(a) < to.stride(b); });
  Axes axes;
  for (int k = 0; k < rank; ++k) {
    const int i = order[k], last = axes.count - 1;
    if (last >= 0 && to.stride(i) == axes.to[last] * axes.size[last] &&
        from.stride(i) == axes.from[last] * axes.size[last]) {
      axes.size[last] *= to.size(i);
      continue;
    }
    axes.size[axes.count] = to.size(i);
    axes.from[axes.count] = from.stride(i);
    axes.to[axes.count++] = to.stride(i);
  }
  return axes;
}

template <class To, class From>
__device__ To convert(From x) {
  if constexpr (std::is_same_v<To, From>)
    return x;
  else if constexpr (std::is_same_v<To, __nv_bfloat16>)
    return __float2bfloat16_rn(float(x));
  else if constexpr (std::is_same_v<From, __nv_bfloat16>)
    return To(__bfloat162float(x));
  else
    return To(x);
}

constexpr int kThreads = 256;

/// A thread a pack of V elements, neighbours neighbouring in the destination; all counts are packs.
template <class To, class From, int V, class Index>
__global__ void copy_kernel(const Pack<From, V>* __restrict__ from, Pack<To, V>* __restrict__ to,
                            Axes axes, int64_t n) {
  after_earlier();
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += step) {
    Index rest = Index(i);
    int64_t f = 0, t = 0;
#pragma unroll
    for (int k = 0; k < Dims::kMax; ++k) {
      if (k >= axes.count) break;
      const Index q = rest / Index(axes.size[k]), r = rest - q * Index(axes.size[k]);
      f += int64_t(r) * axes.from[k];
      t += int64_t(r) * axes.to[k];
      rest = q;
    }
    const Pack<From, V> x = from[f];
    Pack<To, V> y;
#pragma unroll
    for (int j = 0; j < V; ++j) y.at[j] = convert<To>(x.at[j]);
    to[t] = y;
  }
}

__global__ void zero_kernel(uint4* to, int64_t packs, int rest) {
  after_earlier();
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < packs; i += step)
    to[i] = make_uint4(0, 0, 0, 0);
  if (blockIdx.x == 0 && int(threadIdx.x) < rest)
    reinterpret_cast<unsigned char*>(to + packs)[threadIdx.x] = 0;
}

template <class To, class From, int V>
void launch_packs(const From* from, To* to, Axes axes, int64_t n) {
  if (axes.count) axes.size[0] /= V;
  for (int k = 1; k < axes.count; ++k) axes.from[k] /= V, axes.to[k] /= V;
  n /= V;
  const auto kernel = n < (int64_t(1) << 31) ? copy_kernel<To, From, V, uint32_t>
                                             : copy_kernel<To, From, V, int64_t>;
  const int64_t most = int64_t(device_info().sm_count) * 16;
  start_kernel(kernel, std::min(ceil_div(n, kThreads), most), kThreads, 0,
               reinterpret_cast<const Pack<From, V>*>(from), reinterpret_cast<Pack<To, V>*>(to),
               axes, n);
}

/// Whether both tensors' elements come in packs of V, moved at once.
template <class To, class From, int V>
bool in_packs(const From* from, const To* to, const Axes& axes) {
  bool yes = axes.count && axes.from[0] == 1 && axes.to[0] == 1 && axes.size[0] % V == 0 &&
             reinterpret_cast<uintptr_t>(from) % (V * sizeof(From)) == 0 &&
             reinterpret_cast<uintptr_t>(to) % (V * sizeof(To)) == 0;
  for (int k = 1; k < axes.count; ++k) yes = yes && axes.from[k] % V == 0 && axes.to[k] % V == 0;
  return yes;
}

constexpr int kTile = 32, kTileRows = 8;

/// Axis 0 of `axes` is contiguous in the destination, axis 1 in the source: squares of both go
/// through shared memory, so that reads and writes are of whole lines.
template <class To, class From>
__global__ void transpose_kernel(const From* __restrict__ from, To* __restrict__ to, Axes axes,
                                 int64_t tiles_x, int64_t tiles_y, int64_t tiles) {
  after_earlier();
  __shared__ From tile[kTile][kTile + 1];
  for (int64_t b = blockIdx.x; b < tiles; b += gridDim.x) {
    const int64_t x0 = b % tiles_x * kTile, y0 = b / tiles_x % tiles_y * kTile;
    int64_t rest = b / tiles_x / tiles_y, f = 0, t = 0;
    for (int k = 2; k < axes.count; ++k) {
      f += rest % axes.size[k] * axes.from[k];
      t += rest % axes.size[k] * axes.to[k];
      rest /= axes.size[k];
    }
    for (int i = threadIdx.y; i < kTile; i += kTileRows) {
      const int64_t x = x0 + i, y = y0 + threadIdx.x;
      if (x < axes.size[0] && y < axes.size[1])
        tile[i][threadIdx.x] = from[f + x * axes.from[0] + y * axes.from[1]];
    }
    __syncthreads();
    for (int i = threadIdx.y; i < kTile; i += kTileRows) {
      const int64_t x = x0 + threadIdx.x, y = y0 + i;
      if (x < axes.size[0] && y < axes.size[1])
        to[t + x * axes.to[0] + y * axes.to[1]] = convert<To>(tile[threadIdx.x][i]);
    }
    __syncthreads();
  }
}

template <class To, class From>
void launch(const Tensor& from, const Tensor& to) {
  const cudaStream_t s = stream();
  const int64_t n = to.numel(), blocks_at_most = int64_t(device_info().sm_count) * 16;
  Axes axes = axes_of(from, to);
  const auto* f = static_cast<const From*>(from.raw());
  auto* t = static_cast<To*>(to.raw());
  int source_axis = 0;
  for (int k = 1; k < axes.count; ++k)
    if (axes.from[k] == 1 && axes.from[0] != 1) source_axis = k;
  if (source_axis && axes.to[0] == 1 && axes.size[0] >= 8 && axes.size[source_axis] >= 8) {
    std::swap(axes.size[1], axes.size[source_axis]);
    std::swap(axes.from[1], axes.from[source_axis]);
    std::swap(axes.to[1], axes.to[source_axis]);
    const int64_t x = ceil_div(axes.size[0], kTile), y = ceil_div(axes.size[1], kTile);
    const int64_t tiles = x * y * (n / (axes.size[0] * axes.size[1]));
    start_kernel(transpose_kernel<To, From>, std::min(tiles, blocks_at_most),
                 dim3(kTile, kTileRows), 0, f, t, axes, x, y, tiles);
  } else {
    constexpr int V = 16 / int(std::max(sizeof(To), sizeof(From)));
    if (in_packs<To, From, V>(f, t, axes))
      launch_packs<To, From, V>(f, t, axes, n);
    else
      launch_packs<To, From, 1>(f, t, axes, n);
  }
  check_launch("copy", from.shape(), " ", name_of(from.dtype()), " to ", name_of(to.dtype()));
}

}  // namespace

void zero(void* p, int64_t bytes) {
  check(reinterpret_cast<uintptr_t>(p) % sizeof(uint4) == 0, "zeros from ", p, " on");
  const int64_t packs = bytes / int64_t(sizeof(uint4)), most = int64_t(device_info().sm_count) * 16;
  start_kernel(zero_kernel, std::clamp<int64_t>(ceil_div(packs, kThreads), 1, most), kThreads, 0,
               static_cast<uint4*>(p), packs, int(bytes % int64_t(sizeof(uint4))));
  check_launch("zeros", bytes, " bytes");
}

void copy(const Tensor& from, const Tensor& to) {
  constexpr int64_t kLong = 4 << 20;  // bytes, of which the start of a copy is a small part
  const Dtype f = from.dtype(), t = to.dtype();
  const int64_t bytes = to.numel() * size_of(t);
  if (f == t && bytes >= kLong && from.is_contiguous() && to.is_contiguous()) {
    Recorder* const recorder = Recorder::current();
    if (recorder && !recorder->copy(to.raw(), from.raw(), bytes)) return;
    check_cuda(
        cudaMemcpyAsync(to.raw(), from.raw(), size_t(bytes), cudaMemcpyDeviceToDevice, stream()),
        "cudaMemcpyAsync", bytes, " bytes on the GPU");
    return recorder ? recorder->asked() : count_launch();
  }
  if (f == t && size_of(t) == 2) return launch<uint16_t, uint16_t>(from, to);
  if (f == t && size_of(t) == 4) return launch<uint32_t, uint32_t>(from, to);
  if (f == t) return launch<uint64_t, uint64_t>(from, to);
  if (f == Dtype::f32 && t == Dtype::bf16) return launch<__nv_bfloat16, float>(from, to);
  if (f == Dtype::bf16 && t == Dtype::f32) return launch<float, __nv_bfloat16>(from, to);
  if (f == Dtype::i32 && t == Dtype::f32) return launch<float, int32_t>(from, to);
  if (f == Dtype::f64 && t == Dtype::f32) return launch<float, double>(from, to);
  fail(Exit::kBug, "no copy on the GPU from ", name_of(f), " to ", name_of(t));
}

}  // namespace ff::cuda
