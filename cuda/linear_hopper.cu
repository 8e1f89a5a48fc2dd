// Linear layers of bf16 on Hopper that do more than multiply: act(LN(x) w + bias), or x w where
// another tensor is positive, relu's gradient on the way. A block holds its columns of w in shared
// memory for the whole launch; a warpgroup takes 64 rows of x at a time, after no other.
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
constexpr int kAhead =
    4;  ///< pieces of 64 rows and kTile channels that a warpgroup has on their way
constexpr int kPieceBytes = kGroups * kRows * kTile * 2, kAheadBytes = kAhead * kPieceBytes;

/// A tensor [b, m, c] of which the last axis is contiguous.
struct Batches {
  explicit Batches(const Tensor& t)
      : first(data_or_null<Bf16>(t)),
        batch(t ? int(t.stride(0)) : 0),
        row(t ? int(t.stride(1)) : 0) {}
  Bf16* first;
  int batch, row;
};

struct Product {
  Batches x, y, kept;  ///< kept: where y stays, where x is not normalised
  Division by_batch;
  int rows;  ///< of all batches
  const Bf16* w;
  int64_t w_stride;  ///< of the axis of w that is not contiguous
  const void* bias;
  const float *scale, *offset;  ///< of x's layer norm, nullptr where there is none
  bool bias_f32, relu;
  int k, n;            ///< channels of x and of y
  int depth, columns;  ///< channels of x and of a block's part of y, in whole tiles
  int parts;           ///< blocks that share rows
};

/// A block's part of w: tiles of 64 neighbours in memory (128 bytes) by all of the other axis.
template <bool kDepthInner>
struct Weights {
  /// Places of the axis that is not contiguous.
  __device__ __forceinline__ static int outer(const Product& p) {
    return kDepthInner ? p.columns : p.depth;
  }
  __device__ __forceinline__ Weights(const Product& p, uint32_t address)
      : tile(wgmma_tile<kTile>(address)), next(unsigned(outer(p)) * kTile * 2 / 16) {}
  /// The operand of 64 columns and of 16 channels of x.
  __device__ __forceinline__ uint64_t at(int column_tile, int step) const {
    return kDepthInner ? wgmma_tile_at(tile, step / 4 * next + column_tile * 512 + step % 4 * 2)
                       : wgmma_tile_at(tile, column_tile * next + step * 128);
  }
  __device__ __forceinline__ void add(float (&d)[32], const uint32_t (&x)[4], int column_tile,
                                      int step) const {
    if constexpr (kDepthInner)
      wgmma_rows(d, x, at(column_tile, step));
    else
      wgmma_channels(d, x, at(column_tile, step));
  }
  uint64_t tile;
  uint32_t next;
};

/// Numbers of the columns of a block, and of all channels of x.
struct Numbers {
  float *bias, *scale, *offset;
};

/// Begins to copy the block's columns of w, from `first` on, and makes the numbers of its columns
/// and of the layer norm; zero where there is none. A warp copies 64 neighbours at a time, a pair a
/// lane: the same of every 32 places of the other axis.
template <bool kDepthInner>
__device__ __forceinline__ void begin_fill(const Product& p, uint32_t to, const Numbers& numbers,
                                           int first) {
  const int outer = Weights<kDepthInner>::outer(p), tiles = kDepthInner ? p.depth : p.columns,
            lane = threadIdx.x % 32, left = (kDepthInner ? p.n - first : p.k);
  for (int place = threadIdx.x / 32; place < 32; place += kThreads / 32) {
    const int channel = channel_at(place);
    uint32_t row = to + chunk_offset<kTile>(place, lane / 16 * 4 + lane % 4) + lane / 4 % 4 * 4;
    for (int tile = 0; tile < tiles; tile += kTile) {
      const int inner = (kDepthInner ? 0 : first) + tile + 2 * lane;
      const bool is = inner < (kDepthInner ? p.k : p.n);
      const Bf16* from = p.w + (channel + (kDepthInner ? first : 0)) * p.w_stride + inner;
#pragma unroll 2
      for (int i = 0; i < outer; i += 32, from += 32 * p.w_stride, row += 32 * kTile * 2)
        copy_async4(row, from, is && channel + i < left ? 4 : 0);
    }
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < p.columns; i += kThreads)
    numbers.bias[i] = !p.bias || first + i >= p.n ? 0.0f
                      : p.bias_f32                ? static_cast<const float*>(p.bias)[first + i]
                                   : to_float(static_cast<const Bf16*>(p.bias)[first + i]);
  if (p.scale)
#pragma unroll 1
    for (int i = threadIdx.x; i < p.k; i += kThreads) {
      numbers.scale[i] = p.scale[i];
      numbers.offset[i] = p.offset[i];
    }
  copy_commit();
}
/// Waits for that; kLater groups of copies began after it.
template <int kLater>
__device__ __forceinline__ void end_fill() {
  copy_wait<kLater>();
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
        turns((p_.rows + kRows - 1) / kRows) {}
  __device__ __forceinline__ int step() const { return blocks * kGroups; }
  __device__ __forceinline__ int row(int of_turn, int b) const {
    return of_turn * kRows + lane_row + 8 * b;
  }
  __device__ __forceinline__ bool there(int of_turn, int b) const {
    return row(of_turn, b) < p.rows;
  }
  /// The thread's first channel of a row, or of one that exists.
  __device__ __forceinline__ Bf16* at(const Batches& t, int of_turn, int b) const {
    const int r = min(row(of_turn, b), p.rows - 1), batch = p.by_batch.of(r);
    return t.first + int64_t(batch) * t.batch + int64_t(r - batch * p.by_batch.m) * t.row +
           channel0;
  }

  /// Begins to copy a piece of x, all of whose channels are there where kWhole.
  template <bool kWhole>
  __device__ __forceinline__ void fetch(const Bf16* const (&from)[2], int of_turn, int channel,
                                        int piece) const {
    unsigned char* const to = room + piece * kPieceBytes;
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int c = channel + 32 * h;
        copy_async16(shared_address(to + (2 * h + b) * (kThreads * 16)), from[b] + c,
                     there(of_turn, b) && (kWhole || c < p.k - channel0) ? 16 : 0);
      }
  }
  /// What has come of row b: the chunk 32 j behind the thread's first channel of a piece.
  __device__ __forceinline__ uint4 chunk(int piece, int j, int b) const {
    return *reinterpret_cast<const uint4*>(room + piece * kPieceBytes +
                                           (2 * j + b) * (kThreads * 16));
  }
  template <int kSteps>
  __device__ __forceinline__ static void put(uint32_t (&a)[kSteps][4], int j, int b, uint4 v) {
    const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) a[2 * j + i / 2][b + i % 2 * 2] = pairs[i];
  }
  /// Pieces that have come, the first of them `piece`, as operands.
  template <int kSteps>
  __device__ __forceinline__ void take(uint32_t (&a)[kSteps][4], int piece) const {
#pragma unroll
    for (int j = 0; j < kSteps / 2; ++j)
#pragma unroll
      for (int b = 0; b < 2; ++b) put(a, j, b, chunk(piece, j, b));
  }
  /// The same after a layer norm over 16 kSteps channels, rounded as the layer norm that writes its
  /// result is. What was copied is read three times, since as f32 it would not fit into registers.
  template <int kSteps>
  __device__ __forceinline__ void take_normed(uint32_t (&a)[kSteps][4], int piece,
                                              const Numbers& numbers) const {
    constexpr float kShare = 1.0f / (16 * kSteps);
    const auto mean_of = [&](auto f, float(&to)[2]) {
      float sums[2][2] = {};
#pragma unroll 2
      for (int j = 0; j < kSteps / 2; ++j)
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          float x[8];
          unpack8(chunk(piece, j, b), x);
#pragma unroll
          for (int i = 0; i < 8; ++i) sums[b][i % 2] += f(x[i], b);
        }
#pragma unroll
      for (int b = 0; b < 2; ++b) to[b] = quad_sum(sums[b][0] + sums[b][1]) * kShare;
    };
    float mean[2], variance[2];
    mean_of([](float x, int) { return x; }, mean);
    mean_of([&](float x, int b) { return (x - mean[b]) * (x - mean[b]); }, variance);
    const float rstd[2] = {rsqrtf(variance[0] + kNormEpsilon), rsqrtf(variance[1] + kNormEpsilon)};
#pragma unroll
    for (int j = 0; j < kSteps / 2; ++j) {
      float scale[8], offset[8], x[8];
      load_floats<8>(numbers.scale + 32 * j + channel0, scale);
      load_floats<8>(numbers.offset + 32 * j + channel0, offset);
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        unpack8(chunk(piece, j, b), x);
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = (x[i] - mean[b]) * rstd[b] * scale[i] + offset[i];
        put(a, j, b, pack8(x));
      }
    }
  }

  /// d = the bias of its columns.
  __device__ __forceinline__ void begin(float (&d)[32], const float* bias) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float v[8];
      load_floats<8>(bias + 32 * h + channel0, v);
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int b = 0; b < 2; ++b) d[16 * h + i / 2 * 4 + 2 * b + i % 2] = v[i];
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
  template <bool kKept>
  __device__ __forceinline__ void finish(const float (&d)[32], const Chunks& kept, int of_turn,
                                         int column) const {
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      if (!there(of_turn, b)) continue;
      Bf16* const to = at(p.y, of_turn, b) + column;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float v[8], where[8];
        if constexpr (kKept) unpack8(kept[b][h], where);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          v[i] = d[16 * h + i / 2 * 4 + 2 * b + i % 2];
          if constexpr (kKept)
            v[i] = where[i] > 0 ? v[i] : 0.0f;
          else if (p.relu)
            v[i] = fmaxf(v[i], 0.0f);
        }
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
template <int kSteps, bool kNormed>
__global__ void __launch_bounds__(kThreads, 1) linear_kernel(const __grid_constant__ Product p) {
  after_earlier();
  if (!kCompiled<true>) return;
  constexpr bool kDepthInner = !kNormed;  // w's axis that is contiguous
  constexpr int kPieces = kSteps / 4, kTurnsAhead = kAhead / kPieces;
  extern __shared__ __align__(1024) unsigned char shared[];
  unsigned char* const ahead = shared + p.depth * p.columns * 2;
  float* const bias = reinterpret_cast<float*>(ahead + kAheadBytes);
  const Numbers numbers{bias, bias + p.columns, bias + p.columns + p.depth};
  Own own(p, ahead);
  const int first = int(blockIdx.x) % p.parts * p.columns;
  const auto fetch = [&](int turn, int place) {
    const Bf16* const from[2] = {own.at(p.x, turn, 0), own.at(p.x, turn, 1)};
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
      own.fetch<kNormed>(from, turn, i * kTile, place * kPieces + i);
    copy_commit();
  };
  fetch(own.turn, 0);
  begin_fill<kDepthInner>(p, shared_address(shared), numbers, first);
#pragma unroll
  for (int i = 1; i < kTurnsAhead; ++i) fetch(own.turn + i * own.step(), i);
  Chunks kept;
  if (!kNormed) own.load_kept(kept, own.turn, first);
  end_fill<kTurnsAhead - 1>();
  const Weights<kDepthInner> weights(p, shared_address(shared));
  const int end = min(first + p.columns, p.n);
  for (int place = 0; own.turn < own.turns; own.turn += own.step()) {
    uint32_t a[kSteps][4];
    copy_wait<kTurnsAhead - 1>();
    if constexpr (kNormed)
      own.take_normed(a, place * kPieces, numbers);
    else
      own.take(a, place * kPieces);
    fetch(own.turn + kTurnsAhead * own.step(), place);
    place = place + 1 < kTurnsAhead ? place + 1 : 0;
#pragma unroll 1
    for (int column = first; column < end; column += kTile) {
      float d[32];
      own.begin(d, bias + column - first);
      wgmma_fence();
#pragma unroll
      for (int s = 0; s < kSteps; ++s) weights.add(d, a[s], (column - first) / kTile, s);
      wgmma_commit();
      wgmma_wait<0>();
      keep_registers(d);
      keep_registers(a);
      own.finish<!kNormed>(d, kept, own.turn, column);
      if (kNormed) continue;
      const bool more = column + kTile < end;
      own.load_kept(kept, more ? own.turn : own.turn + own.step(), more ? column + kTile : first);
    }
  }
}

constexpr int64_t kFewestRows = 4096, kMostRows = int64_t(1) << 30, kMostChannels = 4096,
                  kMostDepth = 256;

/// How w is shared out to blocks.
struct Shape {
  Shape(int64_t k, int64_t n, bool normed)
      : depth(k <= 64    ? 64
              : k <= 128 ? 128
                         : int(kMostDepth)),
        fixed(kAheadBytes + (normed ? 8 * depth : 0)) {
    const int64_t most = (device_info().shared_bytes - fixed) / bytes(kTile),
                  tiles = ceil_div(n, kTile);
    parts = int(ceil_div(tiles, most));
    columns = int(ceil_div(tiles, parts)) * kTile;
  }
  /// Of so many columns of w and the bias.
  int bytes(int of_columns) const { return of_columns * (2 * depth + 4); }
  int depth, fixed, columns, parts;
};

bool suits(const Tensor& x, const Tensor& w, const Tensor& y) {
  const int64_t rows = y.size(0) * y.size(1);
  return device_info().hopper() && rows >= kFewestRows && rows <= kMostRows &&
         x.size(2) <= kMostDepth && y.size(2) <= kMostChannels && w.size(0) == 1;
}
bool rows_in_packs(const Tensor& t) {
  return t.dtype() == Dtype::bf16 && t.stride(2) == 1 && in_packs(t) &&
         std::max(t.stride(0), t.stride(1)) <= INT32_MAX;
}

/// x is normalised where l.scale is defined; else `kept` is.
void run(const char* name, const Tensor& x, const NormedLinear& l, bool relu, const Tensor& kept,
         const Tensor& y) {
  const Shape shape(x.size(2), y.size(2), l.scale.defined());
  const Product p{Batches(x),
                  Batches(y),
                  Batches(kept),
                  Division(y.size(1)),
                  int(y.size(0) * y.size(1)),
                  data<Bf16>(l.w),
                  l.w.stride(l.scale ? 1 : 2),
                  l.b ? l.b.raw() : nullptr,
                  data_or_null<float>(l.scale),
                  data_or_null<float>(l.offset),
                  l.b && l.b.dtype() == Dtype::f32,
                  relu,
                  int(x.size(2)),
                  int(y.size(2)),
                  shape.depth,
                  shape.columns,
                  shape.parts};
  const int64_t blocks = std::min(std::max<int64_t>(device_info().sm_count / shape.parts, 1),
                                  ceil_div(y.size(0) * y.size(1), kRows)) *
                         shape.parts;
  const auto start = [&](auto steps) {
    constexpr int kSteps = decltype(steps)::value;
    const int bytes = shape.fixed + shape.bytes(shape.columns);
    l.scale ? launch<linear_kernel<kSteps, true>>(name, blocks, kThreads, bytes, p)
            : launch<linear_kernel<kSteps, false>>(name, blocks, kThreads, bytes, p);
  };
  if (shape.depth == 64)
    start(std::integral_constant<int, 4>());
  else if (shape.depth == 128)
    start(std::integral_constant<int, 8>());
  else
    start(std::integral_constant<int, 16>());
}

}  // namespace

bool normed_linear(const Tensor& x, const NormedLinear& l, Activation act, const Tensor& y) {
  const int64_t k = x.size(2);
  // Of wider rows cuBLASLt's product gains more than the norm's way through memory costs.
  if (k > 128 && y.size(2) > kTile) return false;
  if (act == Activation::kSigmoid || !suits(x, l.w, y) || (k != 64 && k != 128 && k != 256) ||
      !rows_in_packs(x) || !rows_in_packs(l.w) || !rows_in_packs(y) ||
      (l.b && l.b.stride(0) != 1 && y.size(2) > 1))
    return false;
  run("normed_linear", x, l, act == Activation::kRelu, {}, y);
  return true;
}

void linear_where_positive(const Tensor& x, const Tensor& w, const Tensor& kept, const Tensor& y) {
  if (!suits(x, w, y) || !rows_in_packs(x) || !rows_in_packs(w.transpose(1, 2)) ||
      !rows_in_packs(kept) || !rows_in_packs(y)) {
    linear(x, w, {}, Activation::kNone, {}, y);
    return activation_backward(kept, Activation::kRelu, y);
  }
  run("linear_where_positive", x, {{}, {}, w, {}}, false, kept, y);
}

}  // namespace ff::cuda
