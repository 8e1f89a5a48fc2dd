// Element-wise kernels: one walk over the rows of a few tensors of one shape, in packs of 16 bytes
// where they are aligned, with several packs in flight for each thread.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>

#include "cuda/device.cuh"

namespace ff::cuda {

/// V neighbouring elements, moved at once.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T at[V];
};
template <int V, class T>
__device__ __forceinline__ Pack<T, V> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, V>*>(p);
}
template <class T, int V>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, V>& v) {
  *reinterpret_cast<Pack<T, V>*>(p) = v;
}

/// V elements as they were loaded. Taking 16 bits out of a register is an instruction: what holds
/// single elements would wait for its load before the next branch, not where it is used.
template <class T, int V>
using Raw = std::conditional_t<V * sizeof(T) % 4 == 0, Pack<uint32_t, int(V * sizeof(T) + 3) / 4>,
                               Pack<T, V>>;
template <int V, class T>
__device__ __forceinline__ Raw<T, V> load_raw(const T* p) {
  return *reinterpret_cast<const Raw<T, V>*>(p);
}
template <class T, int V>
__device__ __forceinline__ float unpacked(const Raw<T, V>& raw, int i) {
  if constexpr (V * sizeof(T) % 4)
    return to_float(raw.at[i]);
  else if constexpr (sizeof(T) == 4)
    return __uint_as_float(raw.at[i]);
  else
    return __uint_as_float(i % 2 ? raw.at[i / 2] & 0xffff0000 : raw.at[i / 2] << 16);
}

template <int V, class T>
__device__ __forceinline__ void load_floats(const T* p, float (&to)[V]) {
  constexpr int kWhole = 16 / int(sizeof(T)) < V ? 16 / int(sizeof(T)) : V;
#pragma unroll
  for (int k = 0; k < V; k += kWhole) {
    const Pack<T, kWhole> v = load_pack<kWhole>(p + k);
#pragma unroll
    for (int i = 0; i < kWhole; ++i) to[k + i] = to_float(v.at[i]);
  }
}
template <int V, class T>
__device__ __forceinline__ void store_floats(T* p, const float (&from)[V]) {
  constexpr int kWhole = 16 / int(sizeof(T)) < V ? 16 / int(sizeof(T)) : V;
#pragma unroll
  for (int k = 0; k < V; k += kWhole) {
    Pack<T, kWhole> v;
#pragma unroll
    for (int i = 0; i < kWhole; ++i) v.at[i] = from_float<T>(from[k + i]);
    store_pack(p + k, v);
  }
}

__device__ __forceinline__ float sigmoid(float x) { return __frcp_rn(1 + __expf(-x)); }

/// Sum over the block, in a fixed order, for thread 0.
__device__ __forceinline__ double block_sum(double x) {
  __shared__ double room[32];
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
  if (threadIdx.x == 0)
    for (int w = 0; w < blockDim.x / 32; ++w) x += room[w];
  return x;
}

/// In threads (x, 0) the sum over the block's threads (x, y), at most kThreads in all. In pairs: a
/// chain of 256 rows' sums would cost f32 as much as all its rows.
template <int kThreads, int V>
__device__ __forceinline__ void sum_over_y(float (&sum)[V]) {
  __shared__ float room[kThreads][V];
  float* const mine = room[threadIdx.y * blockDim.x + threadIdx.x];
#pragma unroll
  for (int i = 0; i < V; ++i) mine[i] = sum[i];
  for (int half = blockDim.y / 2; half; half /= 2) {
    __syncthreads();
    if (threadIdx.y < half)
#pragma unroll
      for (int i = 0; i < V; ++i) mine[i] += mine[half * blockDim.x * V + i];
  }
#pragma unroll
  for (int i = 0; i < V; ++i) sum[i] = mine[i];
}

/// Whether every row of t starts on 16 bytes and is a whole number of them long.
inline bool in_packs(const Tensor& t) {
  if (!t.defined() || t.rank() == 0) return !t.defined();
  const int64_t pack = 16 / size_of(t.dtype());
  if (reinterpret_cast<uintptr_t>(t.raw()) % 16 || t.size(-1) % pack) return false;
  for (int i = 0; i + 1 < t.rank(); ++i)
    if (t.size(i) > 1 && t.stride(i) % pack) return false;
  return true;
}

/// A tensor as a kernel sees it: null for an absent one.
template <class T>
struct View {
  View() : rows(Tensor()) {}
  explicit View(const Tensor& t) : base(data_or_null<T>(t)), rows(t) {}
  __device__ __forceinline__ T* row(int64_t r) const { return base + rows.offset(r); }
  T* base = nullptr;
  Rows rows;
};

template <class T, int N>
struct Walk {
  View<T> view[N];
  const T* any;         ///< read where a view is absent, whose rows are then this one's
  int64_t rows, packs;  ///< of all views
  int64_t col_tiles;
};

/// f(v, r, j) gets the values v[k][V] of views k >= kFirst at elements j, j + 1, ... of row r, and
/// what it leaves in v[k] is stored in views k < kOut. An f that needs a number of the row has
/// of_row(r), which is read with the rest, and gets f(v, number).
template <class T, int V, int N, int kOut, int kFirst, int kRows, int kCols, class F>
__global__ void __launch_bounds__(256, 2)
    walk_kernel(const __grid_constant__ Walk<T, N> w, const __grid_constant__ F f) {
  after_earlier();
  const int64_t row_tile = blockIdx.x / w.col_tiles, col_tile = blockIdx.x % w.col_tiles;
  const int64_t r0 = row_tile * (blockDim.y * kRows) + threadIdx.y;
  const int64_t c0 = col_tile * (blockDim.x * kCols) + threadIdx.x;
  if (r0 >= w.rows || c0 >= w.packs) return;
  // No branch between the loads, so that none is waited for before all are on their way: what does
  // not exist is read from where something does.
  constexpr bool kOfRow = requires { f.of_row(r0); };
  int64_t offset[kRows][N];
  [[maybe_unused]] float of_row[kRows];
#pragma unroll
  for (int q = 0; q < kRows; ++q) {
    const int64_t r = r0 + q * blockDim.y;
#pragma unroll
    for (int k = kFirst; k < N; ++k)
      offset[q][k] = w.view[k].rows.offset(r < w.rows ? r : r0) + c0 * V;
    if constexpr (kOfRow) of_row[q] = f.of_row(r < w.rows ? r : r0);
  }
  constexpr int kEach = kRows * kCols;
  Raw<T, V> v[kEach][N];
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int64_t step = e % kCols * blockDim.x, more = c0 + step < w.packs ? step * V : 0;
#pragma unroll
    for (int k = kFirst; k < N; ++k)
      v[e][k] =
          load_raw<V>((w.view[k].base ? w.view[k].base : w.any) + offset[e / kCols][k] + more);
  }
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int64_t r = r0 + e / kCols * blockDim.y, c = c0 + e % kCols * blockDim.x;
    if (r >= w.rows || c >= w.packs) continue;
    float x[N][V];
#pragma unroll
    for (int k = kFirst; k < N; ++k)
#pragma unroll
      for (int i = 0; i < V; ++i) x[k][i] = unpacked<T, V>(v[e][k], i);
    if constexpr (kOfRow)
      f(x, of_row[e / kCols]);
    else
      f(x, r, c * V);
#pragma unroll
    for (int k = 0; k < kOut; ++k)
      if (w.view[k].base) store_floats<V>(w.view[k].row(r) + c * V, x[k]);
  }
}

template <class T, int V, int kOut, int kFirst, class F, size_t N>
void launch_walk(const char* name, const std::array<Tensor, N>& tensors, const F& f) {
  Walk<T, int(N)> w;
  const View<T> any(
      *std::find_if(tensors.begin(), tensors.end(), [](const Tensor& t) { return t.defined(); }));
  w.any = any.base;
  w.rows = any.rows.n;
  w.packs = any.rows.c / V;
  for (size_t k = 0; k < N; ++k)
    if (tensors[k].defined())
      w.view[k] = View<T>(tensors[k]);
    else
      w.view[k].rows = any.rows;
  const bool wide = w.packs >= 1024;
  int64_t x = 1;
  while (x < 32 && x < w.packs) x *= 2;
  if (x == 32 && w.packs % 32 && w.packs % 16 == 0) x = 16;
  if (wide) x = 256;
  const dim3 block(unsigned(x), unsigned(256 / x));
  w.col_tiles = ceil_div(w.packs, x * (wide ? 4 : 1));
  const int64_t blocks = w.col_tiles * ceil_div(w.rows, int64_t(block.y) * (wide ? 1 : 4));
  if (wide)
    start_kernel(walk_kernel<T, V, int(N), kOut, kFirst, 1, 4, F>, blocks, block, 0, w, f);
  else
    start_kernel(walk_kernel<T, V, int(N), kOut, kFirst, 4, 1, F>, blocks, block, 0, w, f);
  check_launch(name, w.rows, " rows of ", w.packs * V);
}

/// Walks over tensors of one shape and dtype, of which some may be undefined. F::kByRow says
/// whether f depends on r and j; `packed` whether what else f reads by packs is aligned to them.
template <int kOut, int kFirst, class F, size_t N>
void walk(const char* name, std::array<Tensor, N> tensors, const F& f, bool packed = true) {
  bool flat = !F::kByRow;
  const Tensor* any = nullptr;
  for (const Tensor& t : tensors)
    if (t.defined()) {
      any = &t;
      flat = flat && t.is_contiguous();
    }
  if (!any || !any->numel()) return;
  if (flat)
    for (Tensor& t : tensors)
      if (t.defined()) t = t.view({t.numel()});
  for (const Tensor& t : tensors) packed = packed && in_packs(t);
  by_type(*any, [&](auto zero) {
    using T = decltype(zero);
    if (packed)
      launch_walk<T, 16 / int(sizeof(T)), kOut, kFirst>(name, tensors, f);
    else
      launch_walk<T, 1, kOut, kFirst>(name, tensors, f);
  });
}

}  // namespace ff::cuda
