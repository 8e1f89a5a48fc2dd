// Layer norm. A group of lanes holds a row in registers: one read of x, whatever the statistics
// need. The gradients of scale and offset are summed in registers over a block's rows, then over
// the blocks in a second pass.
#include <algorithm>

#include "cuda/sums.h"
#include "cuda/table.h"
#include "cuda/walk.cuh"

namespace ff::cuda {
namespace {

constexpr int kThreads = 256;

/// Each number's sum over the lanes of a row, N of them side by side.
template <int kLanes, int N>
__device__ __forceinline__ void lanes_sums(float (&x)[N]) {
#pragma unroll
  for (int d = kLanes / 2; d; d /= 2)
#pragma unroll
    for (int k = 0; k < N; ++k) x[k] += __shfl_xor_sync(~0u, x[k], d);
}

/// Rows first, first + kStep, ... of a view for the kLanes lanes of a group; in place of those from
/// `end` on the one before it. Where several axes are to be divided for, a lane does so for one
/// row.
template <int kLanes, int kStep, class T, int N>
__device__ __forceinline__ void rows_at(const View<T>& view, int64_t first, int64_t end,
                                        T* (&row)[N]) {
  static_assert(N <= kLanes);
  const int64_t last = end - 1;
  if (view.rows.axes <= 1) {
    row[0] = view.base + min(first, last) * view.rows.stride[0];
    const int beyond = int(min(last - first, int64_t(N * kStep)));
#pragma unroll
    for (int k = 1; k < N; ++k)
      row[k] = row[0] + (k * kStep <= beyond ? k * (kStep * view.rows.stride[0]) : 0);
  } else {
    const int64_t mine = view.rows.offset(min(first + threadIdx.x % kLanes % N * kStep, last));
#pragma unroll
    for (int k = 0; k < N; ++k) row[k] = view.base + __shfl_sync(~0u, mine, k, kLanes);
  }
}

/// What a lane holds of a row: kPacks packs of V columns, kLanes packs apart.
template <int V, int kLanes, int kPacks>
struct Columns {
  __device__ __forceinline__ explicit Columns(int64_t c_)
      : lane(threadIdx.x % kLanes), c(int(c_)), share(1 / float(c_)) {}
  __device__ __forceinline__ int operator[](int p) const { return (p * kLanes + lane) * V; }
  __device__ __forceinline__ bool has(int p) const { return (*this)[p] < c; }
  /// Columns that do not exist get the first's: a load that depends on a condition would be waited
  /// for at once, to be merged with what it replaces.
  template <class T>
  __device__ __forceinline__ void load(const T* row, Raw<T, V> (&v)[kPacks]) const {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) v[p] = load_raw<V>(row + (has(p) ? (*this)[p] : 0));
  }
  template <class T>
  __device__ __forceinline__ void load_floats(const T* row, float (&v)[kPacks][V]) const {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      if (has(p)) {
        cuda::load_floats<V>(row + (*this)[p], v[p]);
      } else {
#pragma unroll
        for (int i = 0; i < V; ++i) v[p][i] = 0;
      }
    }
  }
  template <class T, int N>
  __device__ __forceinline__ void means(const Raw<T, V> (&v)[N][kPacks], float (&mean)[N]) const {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      mean[k] = 0;
#pragma unroll
      for (int p = 0; p < kPacks; ++p)
        if (has(p))
#pragma unroll
          for (int i = 0; i < V; ++i) mean[k] += unpacked<T, V>(v[k][p], i);
    }
    lanes_sums<kLanes>(mean);
#pragma unroll
    for (int k = 0; k < N; ++k) mean[k] *= share;
  }
  /// 1/std of a row with this sum of squared distances from the mean.
  __device__ __forceinline__ float rstd(float squares) const {
    return rsqrtf(squares * share + kNormEpsilon);
  }
  int lane, c;
  float share;  ///< 1 / c
};

constexpr bool small(int width, int packs) { return width * packs <= 8; }
/// Whether a row, as it was loaded, takes few enough of a lane's registers for more rows.
template <class T, int V, int kPacks>
constexpr bool kFew = kPacks*(int(V * sizeof(T) + 3) / 4) <= 4;

/// Rows that a group of lanes has in flight, and blocks on a multiprocessor: what keeps enough
/// bytes on their way. Blocks of one tile of rows, and small ones: while some store, others load.
template <class T, int V, int kLanes, int kPacks>
struct Forward {
  static constexpr bool kMany = kFew<T, V, kPacks>;
  static constexpr int kThreads = 128,
                       kRows = kMany              ? 3
                               : small(V, kPacks) ? 2
                                                  : 1,
                       kBlocks = kMany              ? 8
                                 : small(V, kPacks) ? 6
                                                    : 2,
                       kGroups = kThreads / kLanes;
};

template <class T, int V, int kLanes, int kPacks>
__global__ void __launch_bounds__(Forward<T, V, kLanes, kPacks>::kThreads,
                                  Forward<T, V, kLanes, kPacks>::kBlocks)
    norm_kernel(const __grid_constant__ View<T> x, const float* scale, const float* offset,
                const __grid_constant__ View<T> y) {
  after_earlier();
  using F = Forward<T, V, kLanes, kPacks>;
  const Columns<V, kLanes, kPacks> columns(x.rows.c);
  const int64_t n = x.rows.n,
                first = int64_t(blockIdx.x) * F::kGroups * F::kRows + threadIdx.x / kLanes;
  // All lanes of a warp take part in the sums: a group beyond the last row works on that one.
  T* row[F::kRows];
  rows_at<kLanes, F::kGroups>(x, first, n, row);
  Raw<T, V> rows[F::kRows][kPacks];
#pragma unroll
  for (int k = 0; k < F::kRows; ++k) columns.load(row[k], rows[k]);
  float s[kPacks][V], o[kPacks][V];
  columns.load_floats(scale, s);
  columns.load_floats(offset, o);
  float mean[F::kRows], squares[F::kRows] = {};
  columns.template means<T>(rows, mean);
#pragma unroll
  for (int k = 0; k < F::kRows; ++k)
#pragma unroll
    for (int p = 0; p < kPacks; ++p)
      if (columns.has(p))
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const float d = unpacked<T, V>(rows[k][p], i) - mean[k];
          squares[k] += d * d;
        }
  lanes_sums<kLanes>(squares);
  rows_at<kLanes, F::kGroups>(y, first, n, row);
#pragma unroll
  for (int k = 0; k < F::kRows; ++k) {
    if (first + k * F::kGroups >= n) return;
    const float rstd = columns.rstd(squares[k]);
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      if (!columns.has(p)) continue;
      float out[V];
#pragma unroll
      for (int i = 0; i < V; ++i)
        out[i] = (unpacked<T, V>(rows[k][p], i) - mean[k]) * rstd * s[p][i] + o[p][i];
      store_floats<V>(row[k] + columns[p], out);
    }
  }
}

/// As many blocks whatever the GPU: the sums' order is always the same.
constexpr int64_t kBackwardBlocks = 264;

/// What a lane holds of the rows that the backward reads.
template <class T, int V, int kRows, int kPacks>
struct Held {
  Raw<T, V> x[kRows][kPacks], dy[kRows][kPacks], dx[kRows][kPacks];
};

/// dx is added to with kAdds, else written, over dy perhaps. partial [blocks, 2, c]: the blocks'
/// sums of dscale and doffset, or nullptr.
template <class T, int V, int kLanes, int kPacks, bool kAdds>
__global__ void __launch_bounds__(kThreads, small(V, kPacks) ? 2 : 1)
    norm_backward_kernel(const __grid_constant__ View<T> x, const float* scale,
                         const __grid_constant__ View<T> dy, const __grid_constant__ View<T> dx,
                         float* partial) {
  after_earlier();
  constexpr int kGroups = kThreads / kLanes, kRows = V > 1 && small(V, kPacks) ? 2 : 1;
  const Columns<V, kLanes, kPacks> columns(x.rows.c);
  const int c = columns.c;
  float s[kPacks][V], dscale[kPacks][V] = {}, doffset[kPacks][V] = {};
  columns.load_floats(scale, s);
  // As many rows for every block: all end at once.
  const int64_t start = x.rows.n * blockIdx.x / gridDim.x,
                end = x.rows.n * (blockIdx.x + 1) / gridDim.x;
  constexpr int kStep = kGroups * kRows;
  constexpr bool kAhead = kFew<T, V, kPacks>;
  using Rows = Held<T, V, kRows, kPacks>;
  const auto load = [&](int64_t first, Rows& rows) {
    T *at_x[kRows], *at_dy[kRows], *at_dx[kRows];
    rows_at<kLanes, kGroups>(x, first, end, at_x);
    rows_at<kLanes, kGroups>(dy, first, end, at_dy);
    if (kAdds) rows_at<kLanes, kGroups>(dx, first, end, at_dx);
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      columns.load(at_x[k], rows.x[k]);
      columns.load(at_dy[k], rows.dy[k]);
      if (kAdds) columns.load(at_dx[k], rows.dx[k]);
    }
  };
  int64_t first = start + threadIdx.x / kLanes;
  Rows now;
  if (kAhead) load(first, now);
  // As often for all groups of a warp, whose lanes are summed together.
  for (int64_t tile = start; tile < end; tile += kStep) {
    Rows next;
    load(kAhead ? first + kStep : first, kAhead ? next : now);
    float mean[kRows], sums[3 * kRows] = {};  // of (x - mean)^2, dy scale, dy scale (x - mean)
    columns.template means<T>(now.x, mean);
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const bool inside = first + k * kGroups < end;
#pragma unroll
      for (int p = 0; p < kPacks; ++p)
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const float d = columns.has(p) ? unpacked<T, V>(now.x[k][p], i) - mean[k] : 0.0f,
                      up = inside ? unpacked<T, V>(now.dy[k][p], i) : 0.0f, g = up * s[p][i];
          sums[3 * k] += d * d;
          sums[3 * k + 1] += g;
          sums[3 * k + 2] += g * d;
          doffset[p][i] += up;
        }
    }
    lanes_sums<kLanes>(sums);
    T* to[kRows];
    rows_at<kLanes, kGroups>(dx, first, end, to);
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      if (first + k * kGroups >= end) continue;
      const float rstd = columns.rstd(sums[3 * k]), g_mean = sums[3 * k + 1] * columns.share,
                  gx_mean = sums[3 * k + 2] * rstd * columns.share;
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
        float out[V];
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const float up = unpacked<T, V>(now.dy[k][p], i),
                      h = (unpacked<T, V>(now.x[k][p], i) - mean[k]) * rstd;
          dscale[p][i] += up * h;
          out[i] = rstd * (up * s[p][i] - g_mean - h * gx_mean);
          if (kAdds) out[i] += unpacked<T, V>(now.dx[k][p], i);
        }
        if (dx.base && columns.has(p)) store_floats<V>(to[k] + columns[p], out);
      }
    }
    if (kAhead) now = next;
    first += kStep;
  }
  if (!partial) return;
  // The block's groups one after the other, a pack of columns for each lane at a time.
  constexpr int kColumns = kLanes * V;
  __shared__ __align__(16) float room[2][kThreads][V];
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    if (p) __syncthreads();
    store_floats<V>(room[0][threadIdx.x], dscale[p]);
    store_floats<V>(room[1][threadIdx.x], doffset[p]);
    __syncthreads();
    for (int k = threadIdx.x; k < 2 * kColumns; k += kThreads) {
      const int set = k / kColumns, lane_column = k % kColumns, column = p * kColumns + lane_column;
      if (column >= c) continue;
      float sum = 0;
#pragma unroll
      for (int g = 0; g < kGroups; ++g)
        sum += room[set][g * kLanes + lane_column / V][lane_column % V];
      partial[(int64_t(blockIdx.x) * 2 + set) * c + column] = sum;
    }
  }
}

template <int V, int kLanes, int kPacks>
struct Shape {
  static constexpr int kV = V, kL = kLanes, kP = kPacks;
};

/// Calls f with the Shape that holds rows of c columns.
template <class T, class F>
void by_shape(int64_t c, bool packed, F f) {
  constexpr int V = 16 / int(sizeof(T));
  if (packed) {
    const int64_t packs = c / V;
    if (packs <= 8) return f(Shape<V, 8, 1>());
    if (packs <= 16) return f(Shape<V, 16, 1>());
    if (packs <= 32) return f(Shape<V, 32, 1>());
    if (packs == 48) return f(Shape<V, 16, 3>());
    if (packs <= 64) return f(Shape<V, 32, 2>());
    if (packs <= 128) return f(Shape<V, 32, 4>());
  }
  if (c <= 64) return f(Shape<1, 32, 2>());
  if (c <= 256) return f(Shape<1, 32, 8>());
  check(c <= 1024, "layer norm on a GPU is for at most 1024 channels, not ", c);
  f(Shape<1, 32, 32>());
}

/// Where element (k, i, j) of x [c, n, m] waits in shared memory: rows of positions, swapped so
/// that neither those who write along j nor those who read along k meet in a bank.
__device__ __forceinline__ int place(int k, int j, int width) {
  return k * width + (j ^ (k >> 3 & 31 & (width - 1)));
}

/// Block (tile of positions j, row i): x [c, n, m] into y [n, m, c] through shared memory.
template <class T, int VX, int VY>
__global__ void __launch_bounds__(kThreads)
    channels_first_kernel(const T* x, int64_t stride_c, int64_t stride_n, int64_t n, int64_t m,
                          int c, const float* scale, const float* offset, T* y, int64_t to_n,
                          int64_t to_m, int width, int64_t tiles) {
  after_earlier();
  extern __shared__ float tile[];  // [c, width], then [kThreads] sums, [2, width] statistics
  float* sums = tile + c * width;
  float *means = sums + kThreads, *rstds = means + width;
  const int64_t i = blockIdx.x / tiles, j0 = blockIdx.x % tiles * width;
  const int valid = int(min(int64_t(width), m - j0));
  const T* from = x + i * stride_n + j0;
  const int packs = width / VX;
  // Eight lanes take one channel; a warp's channels lie eight apart.
  for (int e = threadIdx.x; e < packs * ((c + 31) / 32 * 32); e += kThreads) {
    const int row = e / packs, j = e % packs * VX;
    const int k = row / 32 * 32 + row % 4 * 8 + row % 32 / 4;
    if (k >= c || j >= valid) continue;
    float v[VX];
    load_floats<VX>(from + k * stride_c + j, v);
#pragma unroll
    for (int q = 0; q < VX; ++q) tile[place(k, j + q, width)] = v[q];
  }
  __syncthreads();
  const int j = threadIdx.x % width, part = threadIdx.x / width, parts = kThreads / width;
  float sum = 0;
  for (int k = part; k < c; k += parts) sum += tile[place(k, j, width)];
  sums[threadIdx.x] = sum;
  __syncthreads();
  sum = 0;
  for (int p = 0; p < parts; ++p) sum += sums[p * width + j];
  const float mean = sum / float(c);
  sum = 0;
  for (int k = part; k < c; k += parts) {
    const float d = tile[place(k, j, width)] - mean;
    sum += d * d;
  }
  __syncthreads();
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (part == 0) {
    sum = 0;
    for (int p = 0; p < parts; ++p) sum += sums[p * width + j];
    means[j] = mean;
    rstds[j] = rsqrtf(sum / float(c) + kNormEpsilon);
  }
  __syncthreads();
  T* to = y + i * to_n + j0 * to_m;
  const int out_packs = c / VY;
  for (int e = threadIdx.x; e < out_packs * valid; e += kThreads) {
    const int p = e / out_packs, k = e % out_packs * VY;
    float s[VY], o[VY], v[VY];
    load_floats<VY>(scale + k, s);
    load_floats<VY>(offset + k, o);
#pragma unroll
    for (int q = 0; q < VY; ++q)
      v[q] = (tile[place(k + q, p, width)] - means[p]) * rstds[p] * s[q] + o[q];
    store_floats<VY>(to + p * to_m + k, v);
  }
}

/// Block (rows i and tiles of positions j in turn): the gradients of the above. dx [c, n, m] is
/// added to where it is wanted; partial [blocks, 2, c]: the block's sums of dscale and doffset.
template <class T, int VX, int VY>
__global__ void __launch_bounds__(kThreads)
    channels_first_backward_kernel(const T* x, int64_t stride_c, int64_t stride_n, int64_t n,
                                   int64_t m, int c, const float* scale, const T* dy, int64_t up_n,
                                   int64_t up_m, T* dx, int64_t to_c, int64_t to_n, int width,
                                   int64_t tiles, float* partial) {
  after_earlier();
  // x and dy [c, width], sums [4, kThreads], dscale and doffset [c].
  extern __shared__ float tile[];
  float *up = tile + c * width, *sums = up + c * width, *dscale = sums + 4 * kThreads,
        *doffset = dscale + c;
  for (int k = threadIdx.x; k < c; k += kThreads) dscale[k] = doffset[k] = 0;
  const int j = threadIdx.x % width, part = threadIdx.x / width, parts = kThreads / width;
  // The sum over a position's parts, in order; `slot` is free for the next sum.
  const auto whole = [&](float mine, int slot) {
    sums[slot * kThreads + threadIdx.x] = mine;
    __syncthreads();
    float sum = 0;
    for (int p = 0; p < parts; ++p) sum += sums[slot * kThreads + p * width + j];
    return sum;
  };
  for (int64_t at = blockIdx.x; at < n * tiles; at += gridDim.x) {
    const int64_t i = at / tiles, j0 = at % tiles * width;
    const int valid = int(min(int64_t(width), m - j0));
    __syncthreads();
    const int packs = width / VX, out_packs = c / VY;
    for (int e = threadIdx.x; e < packs * ((c + 31) / 32 * 32); e += kThreads) {
      const int row = e / packs, q = e % packs * VX;
      const int k = row / 32 * 32 + row % 4 * 8 + row % 32 / 4;
      if (k >= c) continue;
      float v[VX] = {};
      if (q < valid) load_floats<VX>(x + k * stride_c + i * stride_n + j0 + q, v);
#pragma unroll
      for (int b = 0; b < VX; ++b) tile[place(k, q + b, width)] = v[b];
    }
    for (int e = threadIdx.x; e < out_packs * width; e += kThreads) {
      const int p = e / out_packs, k = e % out_packs * VY;
      float v[VY] = {};
      if (p < valid) load_floats<VY>(dy + i * up_n + (j0 + p) * up_m + k, v);
#pragma unroll
      for (int b = 0; b < VY; ++b) up[place(k + b, p, width)] = v[b];
    }
    __syncthreads();
    float sum = 0;
    for (int k = part; k < c; k += parts) sum += tile[place(k, j, width)];
    const float mean = whole(sum, 0) / float(c);
    sum = 0;
    for (int k = part; k < c; k += parts) {
      const float d = tile[place(k, j, width)] - mean;
      sum += d * d;
    }
    const float rstd = rsqrtf(whole(sum, 1) / float(c) + kNormEpsilon);
    float g_sum = 0, gx_sum = 0;
    for (int k = part; k < c; k += parts) {
      const int here = place(k, j, width);
      const float h = (tile[here] - mean) * rstd, g = up[here] * scale[k];
      tile[here] = h;
      g_sum += g;
      gx_sum += g * h;
    }
    const float g_mean = whole(g_sum, 2) / float(c), gx_mean = whole(gx_sum, 3) / float(c);
    // A warp a channel: its sums over the positions, of which those beyond the last give zeros.
    for (int k = threadIdx.x / 32; k < c; k += kThreads / 32) {
      float by_scale = 0, by_offset = 0;
      for (int q = threadIdx.x % 32; q < width; q += 32) {
        const int here = place(k, q, width);
        by_scale += up[here] * tile[here];
        by_offset += up[here];
      }
      by_scale = warp_sum(by_scale);
      by_offset = warp_sum(by_offset);
      if (threadIdx.x % 32 == 0) {
        dscale[k] += by_scale;
        doffset[k] += by_offset;
      }
    }
    if (!dx) continue;
    __syncthreads();
    for (int k = part; k < c; k += parts) {
      const int here = place(k, j, width);
      tile[here] = rstd * (up[here] * scale[k] - g_mean - tile[here] * gx_mean);
    }
    __syncthreads();
    for (int e = threadIdx.x; e < packs * ((c + 31) / 32 * 32); e += kThreads) {
      const int row = e / packs, q = e % packs * VX;
      const int k = row / 32 * 32 + row % 4 * 8 + row % 32 / 4;
      if (k >= c || q >= valid) continue;
      T* to = dx + k * to_c + i * to_n + j0 + q;
      float v[VX];
      load_floats<VX>(to, v);
#pragma unroll
      for (int b = 0; b < VX; ++b) v[b] += tile[place(k, q + b, width)];
      store_floats<VX>(to, v);
    }
  }
  __syncthreads();
  for (int k = threadIdx.x; k < 2 * c; k += kThreads)
    partial[int64_t(blockIdx.x) * 2 * c + k] = dscale[k];
}

/// The widest tile of positions whose shared memory, `bytes` of it, a block can have.
template <class F>
int widest(int64_t c, F bytes) {
  int width = 64;
  while (width > 8 && bytes(width) > device_info().shared_bytes) width /= 2;
  check(bytes(width) <= device_info().shared_bytes, "layer norm of ", c,
        " channels first: too many for a GPU");
  return width;
}

}  // namespace

void layer_norm(const Tensor& x, const Tensor& scale, const Tensor& offset, const Tensor& y) {
  if (!x.numel()) return;
  const bool packed =
      in_packs(x) && in_packs(y) && in_packs(scale.view({-1})) && in_packs(offset.view({-1}));
  by_type(x, [&](auto zero) {
    using T = decltype(zero);
    const View<T> from(x), to(y);
    by_shape<T>(from.rows.c, packed, [&](auto shape) {
      using S = decltype(shape);
      using F = Forward<T, S::kV, S::kL, S::kP>;
      start_kernel(norm_kernel<T, S::kV, S::kL, S::kP>,
                   ceil_div(from.rows.n, F::kGroups * F::kRows), F::kThreads, 0, from,
                   scale.data<float>(), offset.data<float>(), to);
    });
  });
  check_launch("layer_norm", x.shape());
}

void layer_norm_backward(const Tensor& x, const Tensor& scale, const Tensor& dy, const Tensor& dx,
                         const Tensor& dscale, const Tensor& doffset) {
  if (!x.numel()) return;
  const bool packed = in_packs(x) && in_packs(dy) && in_packs(dx) && in_packs(scale.view({-1}));
  const bool sums = dscale.defined() || doffset.defined();
  by_type(x, [&](auto zero) {
    using T = decltype(zero);
    const View<T> from(x), up(dy), to(dx);
    const int64_t c = from.rows.c;
    by_shape<T>(c, packed, [&](auto shape) {
      using S = decltype(shape);
      const int64_t blocks =
          std::min<int64_t>(ceil_div(from.rows.n, kThreads / S::kL), kBackwardBlocks);
      const Scratch partial(sums ? blocks * 2 * c * 4 : 0);
      const bool adds = dx.defined() && dx.raw() != dy.raw();
      const auto kernel = adds ? norm_backward_kernel<T, S::kV, S::kL, S::kP, true>
                               : norm_backward_kernel<T, S::kV, S::kL, S::kP, false>;
      start_kernel(kernel, blocks, kThreads, 0, from, scale.data<float>(), up, to,
                   sums ? partial.data<float>() : nullptr);
      check_launch("layer_norm_backward", x.shape());
      add_partials(partial.data<float>(), blocks, 2 * c, c, dscale, doffset);
    });
  });
}

void layer_norm_channels_first(const Tensor& x, const Tensor& scale, const Tensor& offset,
                               const Tensor& y) {
  if (!x.numel()) return;
  const int64_t c = x.size(0), n = x.size(1), m = x.size(2);
  const auto bytes = [&](int64_t width) { return (c * width + kThreads + 2 * width) * 4; };
  const int width = widest(c, bytes);
  const int64_t tiles = ceil_div(m, width);
  const bool along = in_packs(x),
             across = in_packs(y) && in_packs(scale.view({-1})) && in_packs(offset.view({-1}));
  by_type(x, [&](auto zero) {
    using T = decltype(zero);
    constexpr int V = 16 / int(sizeof(T));
    const auto kernel = along && across ? channels_first_kernel<T, V, V>
                        : along         ? channels_first_kernel<T, V, 1>
                        : across        ? channels_first_kernel<T, 1, V>
                                        : channels_first_kernel<T, 1, 1>;
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    int(bytes(width))),
               "cudaFuncSetAttribute", bytes(width), " bytes of shared memory");
    start_kernel(kernel, n * tiles, kThreads, bytes(width), data<T>(x), x.stride(0), x.stride(1), n,
                 m, int(c), scale.data<float>(), offset.data<float>(), data<T>(y), y.stride(0),
                 y.stride(1), width, tiles);
  });
  check_launch("layer_norm_channels_first", x.shape());
}

void layer_norm_channels_first_backward(const Tensor& x, const Tensor& scale, const Tensor& dy,
                                        const Tensor& dx, const Tensor& dscale,
                                        const Tensor& doffset) {
  if (!x.numel()) return;
  const int64_t c = x.size(0), n = x.size(1), m = x.size(2);
  const auto bytes = [&](int64_t width) { return (2 * c * width + 4 * kThreads + 2 * c) * 4; };
  const int width = std::min(32, widest(c, bytes));
  // As many blocks whatever the GPU: the sums' order is always the same.
  const int64_t tiles = ceil_div(m, width), blocks = std::min<int64_t>(n * tiles, 528);
  const bool along = in_packs(x) && in_packs(dx), across = in_packs(dy);
  const Scratch partial(blocks * 2 * c * 4);
  by_type(x, [&](auto zero) {
    using T = decltype(zero);
    constexpr int V = 16 / int(sizeof(T));
    const auto kernel = along && across ? channels_first_backward_kernel<T, V, V>
                        : along         ? channels_first_backward_kernel<T, V, 1>
                        : across        ? channels_first_backward_kernel<T, 1, V>
                                        : channels_first_backward_kernel<T, 1, 1>;
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    int(bytes(width))),
               "cudaFuncSetAttribute", bytes(width), " bytes of shared memory");
    start_kernel(kernel, blocks, kThreads, bytes(width), data<T>(x), x.stride(0), x.stride(1), n, m,
                 int(c), scale.data<float>(), data<T>(dy), dy.stride(0), dy.stride(1),
                 data_or_null<T>(dx), dx.defined() ? dx.stride(0) : 0,
                 dx.defined() ? dx.stride(1) : 0, width, tiles, partial.data<float>());
  });
  check_launch("layer_norm_channels_first_backward", x.shape());
  add_partials(partial.data<float>(), blocks, 2 * c, c, dscale, doffset);
}

}  // namespace ff::cuda
