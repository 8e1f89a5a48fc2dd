// Triangle multiplication by tensor cores, bf16: what lies before and behind its product over the
// third residue, one kernel each, forward and backward. Each reads z (and the product p) once,
// normalises in registers and keeps every intermediate there; the weights lie in shared memory.
//
// A warp owns 16 neighbouring pairs of residues and talks to no other; on Hopper four warps
// multiply together. Its thread (g, t) = (lane / 4, lane % 4) holds channels 32 j + 8 t ... + 7 of
// two rows: 16 bytes of a row of z, and 4 neighbouring pairs of a channel where channels come first
// (after transpose_matrix). So nothing passes from thread to thread through shared memory, and
// fragments' places and channels differ: the weights are permuted on both sides by channel_at.
// What the next pairs need is copied to shared memory by the thread that reads it.
#pragma once

#include <algorithm>

#include "cuda/walk.cuh"
#include "cuda/wgmma.cuh"

namespace ff::cuda {

using Bf16 = __nv_bfloat16;

/// One of the layers of a kernel: LN(x; scale, offset) w + b.
struct Layer {
  const float *scale, *offset;
  const Bf16* w;  ///< [kC, kC]
  const float* b;
};

/// What of a block's shared memory is where: the layers' weights, in tiles of 32 of the places
/// that come out; f32: scale, offset (in the channels' order) and bias (in the places') of each,
/// and sums of every warp; every warp's pieces of 16 rows that are to come.
template <int kC, int kLayers = 2>
struct Room {
  static constexpr int kTile = kC * 64, kWeights = kC * kC * 2;  ///< bytes
  static constexpr int kPiece = 16 * kC * 2;
  static constexpr int kFixed = kLayers * (kWeights + 3 * kC * 4);
  static constexpr int bytes_of_warp(int pieces, int sums) { return pieces * kPiece + sums * 4; }

  __device__ __forceinline__ explicit Room(unsigned char* shared)
      : start(shared), weights(shared_address(shared)) {}
  __device__ __forceinline__ uint32_t w(int i, int tile = 0) const {
    return weights + i * kWeights + tile * kTile;
  }
  __device__ __forceinline__ float* numbers() const {
    return reinterpret_cast<float*>(start + kLayers * kWeights);
  }
  __device__ __forceinline__ float* scale(int i) const { return numbers() + 3 * i * kC; }
  __device__ __forceinline__ float* offset(int i) const { return scale(i) + kC; }
  __device__ __forceinline__ float* bias(int i) const { return scale(i) + 2 * kC; }
  __device__ __forceinline__ float* sums() const { return numbers() + 3 * kLayers * kC; }
  /// This lane's 16 bytes of a warp's first 512 of a piece.
  __device__ __forceinline__ unsigned char* piece(int i, int pieces, int sums_of_warp = 0) const {
    return reinterpret_cast<unsigned char*>(sums() + sums_of_warp * (blockDim.x / 32)) +
           (threadIdx.x / 32 * pieces + i) * kPiece + threadIdx.x % 32 * 16;
  }

  /// The layers, and zeros for `sums_count` numbers, by all threads of the block.
  template <bool kHopper>
  __device__ __forceinline__ void fill(const Layer (&layers)[kLayers], int sums_count = 0) const {
    for (int row = threadIdx.x / 4, t = threadIdx.x % 4; row < kC; row += blockDim.x / 4) {
      uint4 v[kLayers][kC / 32];
#pragma unroll
      for (int i = 0; i < kLayers; ++i)
#pragma unroll
        for (int tile = 0; tile < kC / 32; ++tile)
          v[i][tile] = __ldg(reinterpret_cast<const uint4*>(layers[i].w + channel_at(row) * kC +
                                                            32 * tile + 8 * t));
#pragma unroll
      for (int i = 0; i < kLayers; ++i)
#pragma unroll
        for (int tile = 0; tile < kC / 32; ++tile) {
          const uint32_t parts[4] = {v[i][tile].x, v[i][tile].y, v[i][tile].z, v[i][tile].w};
#pragma unroll
          for (int chunk = 0; chunk < 4; ++chunk)
            *reinterpret_cast<uint32_t*>(start + i * kWeights + tile * kTile +
                                         chunk_offset<32>(row, chunk) + 4 * t) = parts[chunk];
        }
    }
    for (int k = threadIdx.x; k < kC; k += blockDim.x)
#pragma unroll
      for (int i = 0; i < kLayers; ++i) {
        scale(i)[k] = layers[i].scale[k];
        offset(i)[k] = layers[i].offset[k];
        bias(i)[k] = layers[i].b[channel_at(k)];
      }
    for (int k = threadIdx.x; k < sums_count; k += blockDim.x) sums()[k] = 0;
    if constexpr (kHopper && kCompiled<true>) fence_shared();
    __syncthreads();
  }

  unsigned char* start;
  uint32_t weights;
};

/// A warp's rows, 16 at a turn. Warps that multiply together take turns together, and what one has
/// more than another differs by one in all blocks.
template <bool kHopper>
struct Turns {
  static constexpr int kTogether = kHopper ? 4 : 1;
  __device__ __forceinline__ explicit Turns(int64_t rows)
      : n(rows), at(int(threadIdx.x / (32 * kTogether) * gridDim.x + blockIdx.x)) {}
  __device__ __forceinline__ bool left() const { return int64_t(at) * kTogether * 16 < n; }
  __device__ __forceinline__ void next() { at += step(); }
  __device__ __forceinline__ static int step() {
    return int(gridDim.x * (blockDim.x / (32 * kTogether)));
  }
  __device__ __forceinline__ static int64_t row_of(int turn) {
    return (int64_t(turn) * kTogether + threadIdx.x / 32 % kTogether) * 16;
  }
  __device__ __forceinline__ int64_t row() const { return row_of(at); }
  __device__ __forceinline__ int64_t next_row() const { return row_of(at + step()); }
  int64_t n;
  int at;
};

__device__ __forceinline__ float half_of(uint32_t pair, int e) {
  return e ? high_bf16(pair) : low_bf16(pair);
}

/// 4 neighbours of a channel as pairs; there are `left`, and what lies behind is 0.
__device__ __forceinline__ uint2 read_channel(const Bf16* from, int64_t left) {
  const auto* bits = reinterpret_cast<const uint16_t*>(from);
  uint32_t v[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = i < left ? bits[i] : 0;
  return make_uint2(v[0] | v[1] << 16, v[2] | v[3] << 16);
}
/// Leaves as many of each of four channels whose rows are `stride` apart.
__device__ __forceinline__ void write_channels(const uint2 (&v)[4], Bf16* to, int64_t stride,
                                               int64_t left, bool wide) {
  if (wide) {
    if (left <= 0) return;
#pragma unroll
    for (int k = 0; k < 4; ++k) store_whole(to + k * stride, v[k]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < left)
#pragma unroll
      for (int k = 0; k < 4; ++k)
        reinterpret_cast<uint16_t*>(to + k * stride)[i] =
            uint16_t((i < 2 ? v[k].x : v[k].y) >> (i % 2 * 16));
}

/// 16 rows as the A operand of products, and their statistics.
template <int kC>
struct Rows16 {
  uint32_t a[kC / 16][4];
  float mean[2], rstd[2];

  __device__ __forceinline__ Rows16() : g(threadIdx.x % 32 / 4), t(threadIdx.x % 4) {}
  /// Row 8 b + g of the fragments: counted from the warp's first.
  __device__ __forceinline__ int row(int b) const { return g / 2 * 4 + 2 * b + g % 2; }
  /// The pair of channels 32 j + 8 t + 2 i and the next, of row(b).
  __device__ __forceinline__ uint32_t& pair(int b, int j, int i) {
    return a[2 * j + i / 2][b + i % 2 * 2];
  }
  /// The first of the thread's channels of a group of 32.
  __device__ __forceinline__ int channel(int j) const { return 32 * j + 8 * t; }
  /// channel(0) of row(0) of rows [n, kWidth] from row0, and how far channel(j) of row(b) is off.
  template <int kWidth = kC, class T>
  __device__ __forceinline__ T* own(T* rows, int64_t row0) const {
    return rows + (row0 + row(0)) * kWidth + channel(0);
  }
  template <int kWidth = kC>
  __device__ __forceinline__ static constexpr int off(int b, int j) {
    return 2 * b * kWidth + 32 * j;
  }
  /// Those of row(b): row r % m of [m, kC], or nullptr where there are none.
  __device__ __forceinline__ const float* factors_at(const float* factors, int b, int64_t row0,
                                                     int64_t m) const {
    return factors ? factors + (row0 + row(b)) % m * kC : nullptr;
  }
  /// channel_at(32 j + 8 k + g) = this + 32 j + 2 k.
  __device__ __forceinline__ int first_channel() const { return g / 2 * 8 + g % 2; }

  /// Begins to copy group j of rows [n, kC] from row0 to a piece.
  __device__ __forceinline__ void fetch(unsigned char* piece, const Bf16* rows, int64_t row0,
                                        int64_t n, int j) const {
#pragma unroll
    for (int b = 0; b < 2; ++b)
      copy_async16(shared_address(piece) + (2 * j + b) * 512, own(rows, row0) + off(b, j),
                   row0 + row(b) < n ? 16 : 0);
  }
  __device__ __forceinline__ void fetch(unsigned char* piece, const Bf16* rows, int64_t row0,
                                        int64_t n) const {
#pragma unroll
    for (int j = 0; j < kC / 32; ++j) fetch(piece, rows, row0, n, j);
    copy_commit();
  }
  __device__ __forceinline__ static uint4 taken(const unsigned char* piece, int b, int j) {
    return *reinterpret_cast<const uint4*>(piece + (2 * j + b) * 512);
  }
  /// The pairs of group j: to[b][i] = pair(b, j, i).
  __device__ __forceinline__ static void take(const unsigned char* piece, int j,
                                              uint32_t (&to)[2][4]) {
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const uint4 v = taken(piece, b, j);
      to[b][0] = v.x;
      to[b][1] = v.y;
      to[b][2] = v.z;
      to[b][3] = v.w;
    }
  }
  __device__ __forceinline__ static void take_channels(const unsigned char* piece, int j,
                                                       uint32_t (&to)[2][4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint2 v = taken_channel(piece, 4 * j + i);
      to[0][i] = transpose_matrix(v.x);
      to[1][i] = transpose_matrix(v.y);
    }
  }
  __device__ __forceinline__ void take(const unsigned char* piece) {
#pragma unroll
    for (int j = 0; j < kC / 32; ++j) {
      uint32_t v[2][4];
      take(piece, j, v);
      put(j, v);
    }
  }
  __device__ __forceinline__ void take_channels(const unsigned char* piece) {
#pragma unroll
    for (int j = 0; j < kC / 32; ++j) {
      uint32_t v[2][4];
      take_channels(piece, j, v);
      put(j, v);
    }
  }
  __device__ __forceinline__ void put(int j, const uint32_t (&v)[2][4]) {
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int i = 0; i < 4; ++i) pair(b, j, i) = v[b][i];
  }

  /// The same of channels [kC, n] whose rows are `stride` apart: 4 neighbours of a channel.
  __device__ __forceinline__ void fetch_channels(unsigned char* piece, const Bf16* p,
                                                 int64_t stride, int64_t row0, int64_t n, bool wide,
                                                 int j) const {
    const int64_t at = row0 + 4 * t;
    const Bf16* from = p + (first_channel() + 32 * j) * stride + at;
    unsigned char* const to = piece - threadIdx.x % 32 * 8 + j * 1024;  // 8 bytes of every 256
    if (wide) {
      const bool there = at < n;
#pragma unroll
      for (int k = 0; k < 4; ++k)
        copy_async8(shared_address(to) + k * 256, from + 2 * k * stride, there ? 8 : 0);
    } else {
#pragma unroll 1
      for (int k = 0; k < 4; ++k)
        *reinterpret_cast<uint2*>(to + k * 256) = read_channel(from + 2 * k * stride, n - at);
    }
  }
  __device__ __forceinline__ void fetch_channels(unsigned char* piece, const Bf16* p,
                                                 int64_t stride, int64_t row0, int64_t n,
                                                 bool wide) const {
#pragma unroll
    for (int j = 0; j < kC / 32; ++j) fetch_channels(piece, p, stride, row0, n, wide, j);
    copy_commit();
  }
  /// Places 8 k + g.
  __device__ __forceinline__ static uint2 taken_channel(const unsigned char* piece, int k) {
    return *reinterpret_cast<const uint2*>(piece - threadIdx.x % 32 * 8 + k * 256);
  }

  __device__ __forceinline__ void statistics() {
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      float sum = 0, squares = 0;
#pragma unroll
      for (int k = 0; k < kC / 8; ++k) {
        const uint32_t v = pair(b, k / 4, k % 4);
        sum += low_bf16(v) + high_bf16(v);
      }
      mean[b] = quad_sum(sum) / kC;
#pragma unroll
      for (int k = 0; k < kC / 8; ++k) {
        const uint32_t v = pair(b, k / 4, k % 4);
        const float x = low_bf16(v) - mean[b], y = high_bf16(v) - mean[b];
        squares += x * x;
        squares += y * y;
      }
      rstd[b] = rsqrtf(quad_sum(squares) / kC + kNormEpsilon);
    }
  }

  /// Puts LN(x) in x's place.
  __device__ __forceinline__ void normalize(const float* scale, const float* offset) {
#pragma unroll
    for (int j = 0; j < kC / 32; ++j) {
      float s[8], o[8];
      load_floats<8>(scale + channel(j), s);
      load_floats<8>(offset + channel(j), o);
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        const float shift = -mean[b] * rstd[b];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          uint32_t& v = pair(b, j, i);
          const float x = low_bf16(v) * rstd[b] + shift, y = high_bf16(v) * rstd[b] + shift;
          v = pack_bf16(x * s[2 * i] + o[2 * i], y * s[2 * i + 1] + o[2 * i + 1]);
        }
      }
    }
  }

  int g, t;
};

/// Four numbers of d from i: a fragment of 16 rows x 8 places.
template <int kN>
__device__ __forceinline__ float (&fragment(float (&d)[kN], int i))[4] {
  return reinterpret_cast<float(&)[4]>(d[4 * i]);
}

/// Between `start` and `finish` nothing else touches the registers of products; `run` is behind the
/// last of these.
template <bool kHopper, class... Registers>
__device__ __forceinline__ void start(Registers&... all) {
  if constexpr (kHopper && kCompiled<true>) {
    (keep_registers(all), ...);
    wgmma_fence();
  }
}
template <bool kHopper>
__device__ __forceinline__ void run() {
  if constexpr (kHopper && kCompiled<true>) wgmma_commit();
}
template <bool kHopper, class... Registers>
__device__ __forceinline__ void finish(Registers&... all) {
  if constexpr (kHopper && kCompiled<true>) {
    wgmma_wait<0>();
    (keep_registers(all), ...);
  }
}

/// d (16 rows x 32 places of the tile `w`, then those of the tile `next` bytes further) += rows
/// times weights.
template <bool kHopper, int kC, int kN>
__device__ __forceinline__ void multiply(float (&d)[kN], const Rows16<kC>& rows, uint32_t w,
                                         uint32_t next = 16) {
#pragma unroll
  for (int k = 0; k < kC / 16; ++k) {
    if constexpr (kHopper && kCompiled<true>) {
      wgmma_channels(d, rows.a[k], wgmma_tile_at(wgmma_tile<32>(w, next), 64 * k));
    } else {
#pragma unroll
      for (int i = 0; i < kN / 8; ++i) {
        uint32_t b[4];
        load_b_channels<32>(b, w + i / 2 * next, 16 * k, i % 2, threadIdx.x % 32);
        mma(fragment(d, 2 * i), rows.a[k], b[0], b[1]);
        mma(fragment(d, 2 * i + 1), rows.a[k], b[2], b[3]);
      }
    }
  }
}

/// 8 channels' factors of a row, 1 where there are none.
__device__ __forceinline__ void load_factors(float (&f)[8], const float* of, int channel) {
#pragma unroll
  for (int i = 0; i < 8; ++i) f[i] = 1;
  if (of) load_floats<8>(of + channel, f);
}

/// d (16 rows x 32 places) = the biases at these places.
__device__ __forceinline__ void begin_with(float* d, const float* bias, int t) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 b = *reinterpret_cast<const float2*>(bias + 8 * i + 2 * t);
    d[4 * i] = d[4 * i + 2] = b.x;
    d[4 * i + 1] = d[4 * i + 3] = b.y;
  }
}

inline Layer layer_of(const NormedLinear& l) {
  check(reinterpret_cast<uintptr_t>(l.w.raw()) % 16 == 0, "triangle multiplication: weights at ",
        l.w.raw(), ", not a multiple of 16");
  return {l.scale.data<float>(), l.offset.data<float>(), data<Bf16>(l.w), l.b.data<float>()};
}

/// Whether 4 neighbours of a channel are 8 aligned bytes, in all channels of these [kC, n].
inline bool is_wide(std::initializer_list<const Tensor*> channels, int64_t n) {
  for (const Tensor* t : channels)
    if (t->defined() && (reinterpret_cast<uintptr_t>(t->raw()) % 8 || t->stride(0) % 4))
      return false;
  return n % 4 == 0;
}

/// Group j of a side's two layers, of which `proj` is the first: d (16 rows x 32 places of the
/// projection, then of the gate).
template <bool kHopper, int kC, int kLayers>
__device__ __forceinline__ void side_layers(float (&d)[32], const Rows16<kC>& x,
                                            const Room<kC, kLayers>& room, int proj, int j) {
  begin_with(d, room.bias(proj) + 32 * j, x.t);
  begin_with(d + 16, room.bias(proj + 1) + 32 * j, x.t);
  start<kHopper>(d);
  multiply<kHopper>(d, x, room.w(proj, j), Room<kC>::kWeights);
  run<kHopper>();
  finish<kHopper>(d);
}

/// Group j of the end's two layers, the output o of LN(p) = y and the gate q of LN(z) = x, and
/// meanwhile f().
template <bool kHopper, int kC, class F>
__device__ __forceinline__ void end_layers(float (&o)[16], float (&q)[16], const Rows16<kC>& y,
                                           const Rows16<kC>& x, const Room<kC>& room, int j, F f) {
  begin_with(o, room.bias(0) + 32 * j, x.t);
  begin_with(q, room.bias(1) + 32 * j, x.t);
  start<kHopper>(o, q);
  multiply<kHopper>(o, y, room.w(0, j));
  multiply<kHopper>(q, x, room.w(1, j));
  run<kHopper>();
  f();
  finish<kHopper>(o, q);
}

/// f with the number of channels and the variant as constants.
template <class F>
void by_variant(int64_t c, F f) {
  check(c == 64 || c == 128, "triangle multiplication of ", c, " channels by tensor cores");
  const auto with = [&](auto channels) {
    device_info().hopper() ? f(channels, std::true_type()) : f(channels, std::false_type());
  };
  c == 64 ? with(std::integral_constant<int, 64>()) : with(std::integral_constant<int, 128>());
}

/// f(sides, i) for the sides of these layers that a kernel makes at once, the first being i: both
/// where the memory of a multiprocessor has room for their weights.
template <bool kHopper, class F>
void by_sides(size_t layers, F f) {
  if constexpr (kHopper)
    if (layers == 4) return f(std::integral_constant<int, 2>(), 0);
  for (int i = 0; i < int(layers / 2); ++i) f(std::integral_constant<int, 1>(), i);
}

/// The layers of `sides` sides from side i.
template <int kLayers>
void set_layers(Layer (&to)[kLayers], const std::vector<NormedLinear>& layers, int i = 0) {
  for (int k = 0; k < kLayers; ++k) to[k] = layer_of(layers[size_t(2 * i + k)]);
}

/// How many blocks and threads a kernel of n rows is run by.
struct Shape {
  int64_t blocks;
  int threads, shared;
};

/// As many warps, of kMost threads, as shared memory has room for.
template <bool kHopper>
Shape shape_of(int64_t n, int most_threads, int fixed_bytes, int bytes_of_warp) {
  constexpr int kRows = 16 * Turns<kHopper>::kTogether;
  const int fit = int(device_info().shared_bytes - fixed_bytes) / bytes_of_warp,
            warps = std::min(most_threads / 32, fit) / Turns<kHopper>::kTogether *
                    Turns<kHopper>::kTogether;
  check(warps > 0, "triangle multiplication: ", device_info().shared_bytes,
        " bytes of shared memory");
  return {std::min<int64_t>(device_info().sm_count, ceil_div(n, kRows)), 32 * warps,
          fixed_bytes + warps * bytes_of_warp};
}

}  // namespace ff::cuda
