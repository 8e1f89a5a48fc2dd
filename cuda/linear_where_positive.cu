// Linear layers whose result counts where another tensor is positive: relu's gradient on the way.
// On Hopper a block holds its columns of w in shared memory for the whole launch; a warpgroup takes
// 64 rows of x at a time, after no other.
//
// Thread (g, t) = (lane / 4, lane % 4) has of rows g and g + 8 of its warp's 16 the channels 32 j +
// 8 t ... + 7, of x as of y: it copies, multiplies and writes 16 bytes at a time that no other
// thread sees. So places in fragments and channels differ, and w is permuted on both sides by
// channel_at.
#include <algorithm>
#include <type_traits>

#include "cuda/table.h"
#include "cuda/walk.cuh"
#include "cuda/wgmma.cuh"

namespace ff::cuda {
namespace {

using Bf16 = __nv_bfloat16;

constexpr int kGroups = 3, kThreads = kGroups * kGroupThreads;
constexpr int kRows = 64;  ///< of a warpgroup at a time
constexpr int kTile = 64;  ///< channels that are copied, and columns that are multiplied, at a time
constexpr int kAhead = 4;  ///< pieces of 64 rows and kTile channels on their way to a warpgroup
constexpr int kPieceBytes = kGroups * kRows * kTile * 2, kAheadBytes = kAhead * kPieceBytes;

struct Product {
  View<Bf16> x, y, kept;
  const Bf16* w;
  int64_t w_stride;    ///< of y's channels; x's are contiguous
  int k, n;            ///< channels of x and of y
  int depth, columns;  ///< channels of x and of a block's part of y, in whole tiles
  int parts;           ///< blocks that share rows
};

/// A block's part of w: tiles of 64 channels of x (128 bytes) by all of its columns.
struct Weights {
  __device__ __forceinline__ Weights(const Product& p, uint32_t address)
      : tile(wgmma_tile<kTile>(address)), next(unsigned(p.columns) * kTile * 2 / 16) {}
  /// d += x w, of 64 columns and 16 channels of x.
  __device__ __forceinline__ void add(float (&d)[32], const uint32_t (&x)[4], int column_tile,
                                      int step) const {
    wgmma_rows(d, x, wgmma_tile_at(tile, step / 4 * next + column_tile * 512 + step % 4 * 2));
  }
  uint64_t tile;
  uint32_t next;
};

/// The block's columns of w from `first` on, zero where there is none.
__device__ __forceinline__ void fill(const Product& p, unsigned char* to, int first) {
  constexpr int kStep = kThreads / 8, kAtOnce = 11;
  static_assert(kStep <= kTile);
  const int all = p.columns * (p.depth / kTile), chunk = threadIdx.x % 8;
  int row = threadIdx.x / 8, place = row, k = chunk * 8;
  while (row < all) {
    uint4 v[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int n = first + channel_at(place);
      v[u] = row + u * kStep < all && k < p.k && n < p.n
                 ? __ldg(reinterpret_cast<const uint4*>(p.w + n * p.w_stride + k))
                 : uint4{};
      place += kStep;
      if (place >= p.columns) {
        place -= p.columns;
        k += kTile;
      }
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u, row += kStep) {
      if (row >= all) break;
      const uint32_t pairs[4] = {v[u].x, v[u].y, v[u].z, v[u].w};
#pragma unroll
      for (int i = 0; i < 4; ++i)
        *reinterpret_cast<uint32_t*>(to + chunk_offset<kTile>(row, chunk / 4 * 4 + i) +
                                     chunk % 4 * 4) = pairs[i];
    }
  }
  fence_shared();
  __syncthreads();
}

/// 16 bytes of each of the thread's rows and halves of 64 channels.
using Chunks = uint4[2][2];

/// What a thread does with its own numbers.
struct Own {
  __device__ __forceinline__ Own(const Product& p_, unsigned char* ahead)
      : p(p_),
        lane_row(threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4),
        channel0(threadIdx.x % 4 * 8),
        room(ahead + threadIdx.x * 16),
        blocks(int(gridDim.x) / p_.parts),
        turn(int(threadIdx.x / kGroupThreads) * blocks + int(blockIdx.x) / p_.parts),
        turns(int((p_.x.rows.n + kRows - 1) / kRows)) {}
  __device__ __forceinline__ int step() const { return blocks * kGroups; }
  __device__ __forceinline__ int64_t row(int of_turn, int b) const {
    return int64_t(of_turn) * kRows + lane_row + 8 * b;
  }
  __device__ __forceinline__ bool there(int of_turn, int b) const {
    return row(of_turn, b) < p.x.rows.n;
  }
  /// The thread's first channel of a row, or of one that exists.
  __device__ __forceinline__ Bf16* at(const View<Bf16>& view, int of_turn, int b) const {
    return view.row(min(row(of_turn, b), p.x.rows.n - 1)) + channel0;
  }

  /// Begins to copy a piece of x.
  __device__ __forceinline__ void fetch(const Bf16* const (&from)[2], int of_turn, int channel,
                                        int piece) const {
    unsigned char* const to = room + piece * kPieceBytes;
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int c = channel + 32 * h;
        const bool is = there(of_turn, b) && c + channel0 < p.k;
        copy_async16(shared_address(to + (2 * h + b) * (kThreads * 16)), from[b] + (is ? c : 0),
                     is ? 16 : 0);
      }
  }
  /// Pieces that have come, the first of them `piece`, as operands.
  template <int kSteps>
  __device__ __forceinline__ void take(uint32_t (&a)[kSteps][4], int piece) const {
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int j = 0; j < kSteps / 2; ++j) {
        const uint4 v = *reinterpret_cast<const uint4*>(room + (piece + j / 2) * kPieceBytes +
                                                        (2 * (j % 2) + b) * (kThreads * 16));
        const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) a[2 * j + i / 2][b + i % 2 * 2] = pairs[i];
      }
  }

  /// What says where 64 columns of y are kept.
  __device__ __forceinline__ void load_kept(Chunks& kept, int of_turn, int column) const {
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const Bf16* const from = at(p.kept, of_turn, b) + column;
#pragma unroll
      for (int h = 0; h < 2; ++h)
        if (column + 32 * h + channel0 < p.n)
          kept[b][h] = *reinterpret_cast<const uint4*>(from + 32 * h);
    }
  }
  __device__ __forceinline__ void finish(const float (&d)[32], const Chunks& kept, int of_turn,
                                         int column) const {
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      if (!there(of_turn, b)) continue;
      Bf16* const to = at(p.y, of_turn, b) + column;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float v[8];
        unpack8(kept[b][h], v);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = v[i] > 0 ? d[16 * h + i / 2 * 4 + 2 * b + i % 2] : 0.0f;
        if (column + 32 * h + channel0 < p.n) store_whole(to + 32 * h, pack8(v));
      }
    }
  }

  const Product& p;
  const int lane_row, channel0;
  unsigned char* const room;
  const int blocks;  ///< that have the same part of y
  int turn, turns;   ///< of 64 rows
};

/// Rows of at most 16 kSteps channels: they stay in registers for all columns.
template <int kSteps>
__global__ void __launch_bounds__(kThreads, 1)
    where_positive_kernel(const __grid_constant__ Product p) {
  after_earlier();
  if (!kCompiled<true>) return;
  constexpr int kPieces = kSteps / 4, kTurnsAhead = kAhead / kPieces;
  extern __shared__ __align__(1024) unsigned char shared[];
  unsigned char* const ahead = shared + p.depth * p.columns * 2;
  Own own(p, ahead);
  const int first = int(blockIdx.x) % p.parts * p.columns;
  const auto fetch = [&](int turn, int place) {
    const Bf16* const from[2] = {own.at(p.x, turn, 0), own.at(p.x, turn, 1)};
#pragma unroll
    for (int i = 0; i < kPieces; ++i) own.fetch(from, turn, i * kTile, place * kPieces + i);
    copy_commit();
  };
#pragma unroll
  for (int i = 0; i < kTurnsAhead; ++i) fetch(own.turn + i * own.step(), i);
  Chunks kept;
  own.load_kept(kept, own.turn, first);
  fill(p, shared, first);
  const Weights weights(p, shared_address(shared));
  const int end = min(first + p.columns, p.n);
  for (int place = 0; own.turn < own.turns; own.turn += own.step()) {
    uint32_t a[kSteps][4];
    copy_wait<kTurnsAhead - 1>();
    own.take(a, place * kPieces);
    fetch(own.turn + kTurnsAhead * own.step(), place);
    place = place + 1 < kTurnsAhead ? place + 1 : 0;
#pragma unroll 1
    for (int column = first; column < end; column += kTile) {
      float d[32] = {};
      keep_registers(d);
      wgmma_fence();
#pragma unroll
      for (int s = 0; s < kSteps; ++s) weights.add(d, a[s], (column - first) / kTile, s);
      wgmma_commit();
      wgmma_wait<0>();
      keep_registers(d);
      keep_registers(a);
      own.finish(d, kept, own.turn, column);
      const bool more = column + kTile < end;
      own.load_kept(kept, more ? own.turn : own.turn + own.step(), more ? column + kTile : first);
    }
  }
}

constexpr int64_t kFewestRows = 4096, kMostChannels = 4096, kMostDepth = 256;

/// How w is shared out to blocks.
struct Shape {
  Shape(int64_t k, int64_t n) : depth(k <= 64 ? 64 : k <= 128 ? 128 : int(kMostDepth)) {
    const auto most = (device_info().shared_bytes - kAheadBytes) / (kTile * 2 * depth);
    const int64_t tiles = ceil_div(n, kTile);
    parts = int(ceil_div(tiles, most));
    columns = int(ceil_div(tiles, parts)) * kTile;
  }
  int depth, columns, parts;
};

bool suits(const Tensor& x, const Tensor& w, const Tensor& kept, const Tensor& y) {
  const int64_t rows = y.size(0) * y.size(1), k = x.size(2), n = y.size(2);
  const auto rows_in_packs = [](const Tensor& t) {
    return t.dtype() == Dtype::bf16 && t.stride(2) == 1 && in_packs(t);
  };
  return device_info().hopper() && rows >= kFewestRows && rows <= INT32_MAX / 2 &&
         k <= kMostDepth && n <= kMostChannels && w.size(0) == 1 && rows_in_packs(x) &&
         rows_in_packs(w.transpose(1, 2)) && rows_in_packs(kept) && rows_in_packs(y);
}

}  // namespace

void linear_where_positive(const Tensor& x, const Tensor& w, const Tensor& kept, const Tensor& y) {
  if (!suits(x, w, kept, y)) {
    linear(x, w, {}, Activation::kNone, {}, y);
    return activation_backward(kept, Activation::kRelu, y);
  }
  const int k = int(x.size(2)), n = int(y.size(2));
  const Shape shape(k, n);
  const Product p{View<Bf16>(x), View<Bf16>(y), View<Bf16>(kept), data<Bf16>(w), w.stride(2), k, n,
                  shape.depth,   shape.columns, shape.parts};
  const int64_t blocks = std::min(std::max<int64_t>(device_info().sm_count / shape.parts, 1),
                                  ceil_div(y.size(0) * y.size(1), kRows)) *
                         shape.parts;
  const auto start = [&](auto steps) {
    launch<where_positive_kernel<decltype(steps)::value>>(
        "linear_where_positive", blocks, kThreads,
        int64_t(shape.columns) * 2 * shape.depth + kAheadBytes, p);
  };
  if (shape.depth == 64)
    start(std::integral_constant<int, 4>());
  else if (shape.depth == 128)
    start(std::integral_constant<int, 8>());
  else
    start(std::integral_constant<int, 16>());
}

}  // namespace ff::cuda
