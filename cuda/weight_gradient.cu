// Gradients of a linear layer's weights and bias on Hopper: x^T dy and the sums of dy's rows, in
// one pass over both. Every block multiplies a range of the rows for one tile of the weights; the
// ranges are then added in their order.
#include <algorithm>

#include "cuda/table.h"
#include "cuda/walk.cuh"
#include "cuda/wgmma.cuh"

namespace ff::cuda {
namespace {

constexpr int kGroups = 2, kThreads = kGroups * kGroupThreads;
constexpr int kStep = 64;   ///< rows that are multiplied at a time
constexpr int kBlock = 64;  ///< channels of a tile in shared memory
constexpr int kBlockBytes = kStep * kBlock * 2;
constexpr int kMostParts = 8;

/// Rows of channels, `stride` elements apart.
struct RowsOf {
  const __nv_bfloat16* base;
  int64_t stride, c;
};

struct Products {
  RowsOf x, dy;
  float* partial;  ///< [ranges, c + 1, n]: the weights' gradients, then the bias's
  int64_t rows, steps;
  int tiles_n;
};

/// A block multiplies kX blocks of x's channels by kY of dy's.
template <int kX, int kY>
struct Shape {
  static constexpr int kStageBytes = (kX + kY) * kBlockBytes, kStages = 192 * 1024 / kStageBytes;
  static constexpr int kAhead = kStages - 2;  ///< steps whose copies are on their way
  static constexpr int kShared = kStages * kStageBytes;
};

/// The same chunk of 8 channels of every so many rows, of k blocks of channels from c0, step after
/// step.
template <int k>
struct Copy {
  static constexpr int kChunks = k * kBlock / 8, kRows = kThreads / kChunks;
  static_assert(kRows % 8 == 0);  // the chunks' permutation is the same in all
  const __nv_bfloat16* from;
  int64_t stride;
  int row, bytes;
  uint32_t to;

  __device__ __forceinline__ Copy(const RowsOf& of, int64_t row0, int64_t c0, int thread)
      : from(of.base + (row0 + thread / kChunks) * of.stride + c0 + thread % kChunks * 8),
        stride(of.stride * kRows),
        row(thread / kChunks),
        bytes(c0 + thread % kChunks * 8 < of.c ? 16 : 0),
        to(thread % kChunks / 8 * kBlockBytes + chunk_offset<kBlock>(row, thread % 8)) {}
  /// Of which `left` rows are there.
  __device__ __forceinline__ void operator()(uint32_t stage, int left) {
#pragma unroll
    for (int i = 0; i < kStep; i += kRows, from += stride)
      copy_async16(stage + to + i * kBlock * 2, from, row + i < left ? bytes : 0);
  }
};

template <int kX, int kY>
__global__ void __launch_bounds__(kThreads, 1) products_kernel(const __grid_constant__ Products p) {
  after_earlier();
  if (!kCompiled<true>) return;
  using S = Shape<kX, kY>;
  constexpr int kMine = kX / kGroups, kWide = kY == 1 ? 1 : 2, kAcross = kY / kWide;
  extern __shared__ __align__(1024) unsigned char shared[];
  const int lane = threadIdx.x % 32, index = __shfl_sync(~0u, int(threadIdx.x) / 32, 0),
            warp = index % 4, group = index / 4;
  const int64_t c = p.x.c, n = p.dy.c;
  const int64_t c0 = int64_t(blockIdx.x) / p.tiles_n * kX * kBlock,
                n0 = int64_t(blockIdx.x) % p.tiles_n * kY * kBlock;
  const int64_t first = p.steps * blockIdx.y / gridDim.y;
  const int steps = int(p.steps * (blockIdx.y + 1) / gridDim.y - first);
  const uint32_t stages = shared_address(shared);
  Copy<kX> copy_x(p.x, first * kStep, c0, threadIdx.x);
  Copy<kY> copy_dy(p.dy, first * kStep, n0, threadIdx.x);
  int64_t left = p.rows - first * kStep;
  int copied = 0, to = 0;
  const auto copy = [&] {
    if (copied++ < steps) {
      const uint32_t stage = stages + to * S::kStageBytes;
      const int there = int(min(left, int64_t(kStep)));
      copy_x(stage, there);
      copy_dy(stage + kX * kBlockBytes, there);
      left -= kStep;
      to = to + 1 == S::kStages ? 0 : to + 1;
    }
    copy_commit();
  };
#pragma unroll 1
  for (int i = 0; i < S::kAhead; ++i) copy();

  float sum[kMine][kAcross][32 * kWide] = {};
  // The bias's gradient: sums of the chunks that the thread copies. (The matrix unit would have its
  // warps wait for the products.)
  const bool biased = c0 == 0;
  float bias[8] = {};
#pragma unroll
  for (int i = 0; i < kMine; ++i)
#pragma unroll
    for (int j = 0; j < kAcross; ++j) keep_registers(sum[i][j]);
#pragma unroll 1
  for (int step = 0, at = 0; step < steps; ++step, at = at + 1 == S::kStages ? 0 : at + 1) {
    copy_wait<S::kAhead - 1>();
    fence_shared();
    __syncthreads();
    copy();
    const uint32_t stage = stages + at * S::kStageBytes, dy = stage + kX * kBlockBytes;
    const uint64_t x = wgmma_tile<kBlock>(stage + group * kMine * kBlockBytes),
                   y = wgmma_tile<kBlock>(dy, kBlockBytes);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kStep / 16; ++k)
#pragma unroll
      for (int i = 0; i < kMine; ++i)
#pragma unroll
        for (int j = 0; j < kAcross; ++j)
          wgmma_transposed(sum[i][j],
                           wgmma_tile_at(x, (i * kBlockBytes + k * 16 * kBlock * 2) / 16),
                           wgmma_tile_at(y, (j * kWide * kBlockBytes + k * 16 * kBlock * 2) / 16));
    wgmma_commit();
    if (biased)
#pragma unroll
      for (int i = 0; i < kStep; i += copy_dy.kRows) {
        float few[8];
        unpack8(*reinterpret_cast<const uint4*>(shared + at * S::kStageBytes + kX * kBlockBytes +
                                                copy_dy.to + i * kBlock * 2),
                few);
#pragma unroll
        for (int l = 0; l < 8; ++l) bias[l] += few[l];
      }
    wgmma_wait<1>();  // of the step before: its stage may be written after the next barrier
  }
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < kMine; ++i)
#pragma unroll
    for (int j = 0; j < kAcross; ++j) keep_registers(sum[i][j]);

  float* const partial = p.partial + blockIdx.y * (c + 1) * n;
  const auto store = [&](int64_t row, int64_t column, float low, float high) {
    if (column < n) *reinterpret_cast<float2*>(partial + row * n + column) = make_float2(low, high);
  };
#pragma unroll
  for (int i = 0; i < kMine; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = c0 + (group * kMine + i) * kBlock + warp * 16 + lane / 4 + half * 8;
      if (row >= c) continue;
#pragma unroll
      for (int j = 0; j < kAcross; ++j)
#pragma unroll
        for (int e = 0; e < 8 * kWide; ++e)
          store(row, n0 + j * kWide * kBlock + e * 8 + lane % 4 * 2, sum[i][j][4 * e + 2 * half],
                sum[i][j][4 * e + 2 * half + 1]);
    }
  if (!biased) return;
  __syncthreads();  // all have multiplied
  constexpr int kChannels = kY * kBlock;
  auto* const room = reinterpret_cast<float*>(shared);  // [Copy::kRows, kChannels]
#pragma unroll
  for (int l = 0; l < 8; ++l) room[threadIdx.x * 8 + l] = bias[l];
  __syncthreads();
  if (threadIdx.x >= kChannels || n0 + threadIdx.x >= n) return;
  float total = 0;
#pragma unroll
  for (int r = 0; r < copy_dy.kRows; ++r) total += room[r * kChannels + threadIdx.x];
  partial[c * n + n0 + threadIdx.x] = total;
}

struct Finish {
  const float* partial;
  int64_t ranges, c, n;  ///< as in Products
  float* part[kMostParts];
  int64_t width;  ///< of a part
  float* bias;    ///< of the columns from `biased` on
  int64_t biased;
};

/// Block (packs of four columns, interleaved runs of ranges).
__global__ void __launch_bounds__(kThreads) finish_kernel(const __grid_constant__ Finish f) {
  after_earlier();
  __shared__ float4 room[kThreads];
  const int64_t size = (f.c + 1) * f.n, i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
  float4 sum = make_float4(0, 0, 0, 0);
  const auto add = [&](float4 x) {
    sum = make_float4(sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w);
  };
  if (i < size)
#pragma unroll 8
    for (int64_t r = threadIdx.y; r < f.ranges; r += blockDim.y)
      add(*reinterpret_cast<const float4*>(f.partial + r * size + i));
  room[threadIdx.y * blockDim.x + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y || i >= size) return;
  for (int r = 1; r < blockDim.y; ++r) add(room[r * blockDim.x + threadIdx.x]);
  const int64_t row = i / f.n, column = i % f.n, k = column / f.width;
  float* to = f.part[k] ? f.part[k] + row * f.width + column % f.width : nullptr;
  if (row == f.c) to = f.bias && column >= f.biased ? f.bias + column - f.biased : nullptr;
  if (!to) return;
  add(*reinterpret_cast<const float4*>(to));
  *reinterpret_cast<float4*>(to) = sum;
}

bool suits(const Tensor& x, const Tensor& dy, TensorList parts, const Tensor& sums) {
  const auto in_fours = [](const Tensor& t) {
    return !t.defined() || (t.dtype() == Dtype::f32 && t.is_contiguous() &&
                            reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0);
  };
  return device_info().hopper() && x.dtype() == Dtype::bf16 && dy.dtype() == Dtype::bf16 &&
         in_packs(x) && in_packs(dy) && Rows(x).axes <= 1 && Rows(dy).axes <= 1 &&
         parts.size() <= kMostParts && dy.size(-1) / int64_t(parts.size()) % 4 == 0 &&
         in_fours(sums) && (!sums.defined() || sums.numel() % 4 == 0) &&
         std::all_of(parts.begin(), parts.end(), in_fours) && x.numel() && dy.numel();
}

/// What a step's tiles move, if c times n channels are made of tiles of so many.
int64_t moved(int64_t c, int64_t n, int64_t x, int64_t y) {
  return ceil_div(c, x * kBlock) * ceil_div(n, y * kBlock) * (x + y);
}

}  // namespace

void weight_gradient(const Tensor& x, const Tensor& dy, TensorList parts, const Tensor& sums) {
  if (!suits(x, dy, parts, sums)) return weight_gradient_by_products(x, dy, parts, sums);
  const Rows xs(x), dys(dy);
  const int64_t c = xs.c, n = dys.c;
  Products p{{data<const __nv_bfloat16>(x), xs.stride[0], c},
             {data<const __nv_bfloat16>(dy), dys.stride[0], n},
             nullptr,
             xs.n,
             ceil_div(xs.n, kStep),
             0};
  int64_t ranges = 1;
  const auto go = [&](auto x_blocks, auto y_blocks) {
    constexpr int kX = x_blocks, kY = y_blocks;
    static_assert(kX % kGroups == 0 && Shape<kX, kY>::kAhead > 1);
    const int64_t tiles_c = ceil_div(c, kX * kBlock);
    p.tiles_n = int(ceil_div(n, kY * kBlock));
    ranges = std::clamp<int64_t>(device_info().sm_count / (tiles_c * p.tiles_n), 1, p.steps);
    const Scratch room(ranges * (c + 1) * n * 4);
    p.partial = room.data<float>();
    launch<products_kernel<kX, kY>>("weight_gradient",
                                    dim3(unsigned(tiles_c * p.tiles_n), unsigned(ranges)), kThreads,
                                    Shape<kX, kY>::kShared, p);
    Finish f{p.partial,
             ranges,
             c,
             n,
             {},
             n / int64_t(parts.size()),
             data_or_null<float>(sums),
             sums.defined() ? n - sums.numel() : n};
    for (size_t i = 0; i < parts.size(); ++i) f.part[i] = data_or_null<float>(parts[i]);
    int runs = 1;  // so that a thread reads about eight ranges
    while (runs < 16 && runs * 8 < ranges) runs *= 2;
    start_kernel(finish_kernel, ceil_div((c + 1) * n, 4 * kThreads / runs),
                 dim3(unsigned(kThreads / runs), unsigned(runs)), 0, f);
    check_launch("weight_gradient", ranges, " ranges of [", c, ", ", n, "]");
  };
  using std::integral_constant;
  const int64_t square = moved(c, n, 2, 2);
  if (n <= kBlock)
    go(integral_constant<int, 4>(), integral_constant<int, 1>());
  else if (moved(c, n, 2, 4) < square && moved(c, n, 2, 4) <= moved(c, n, 4, 2))
    go(integral_constant<int, 2>(), integral_constant<int, 4>());
  else if (moved(c, n, 4, 2) < square)
    go(integral_constant<int, 4>(), integral_constant<int, 2>());
  else
    go(integral_constant<int, 2>(), integral_constant<int, 2>());
}

}  // namespace ff::cuda
