// Triangle multiplication by tensor cores, bf16: what lies before and behind its product over the
// third residue, one kernel each, forward and backward. Each reads z (and the product p) once,
// normalises in registers and keeps every intermediate there; the weights lie in shared memory.
//
// A warp owns 16 kM neighbouring pairs of residues and talks to no other. Its thread
// (g, t) = (lane / 4, lane % 4) holds channels 32 j + 8 t ... + 7 of row Rows16::row(b) of each of
// 2 kM blocks of 8 rows: 16 bytes of a row of z, and 4 kM neighbouring pairs of a channel where
// channels come first (after transpose_matrix). So nothing passes through shared memory, and
// fragments' places and channels differ: the weights are permuted on both sides by channel_at.
#pragma once

#include <algorithm>

#include "cuda/mma.cuh"
#include "cuda/walk.cuh"

namespace ff::cuda {

using Bf16 = __nv_bfloat16;

constexpr float kEpsilon = 1e-5f;

/// The channel at place k = 16 s + 8 half + 2 t + e of a fragment.
__device__ __forceinline__ int channel_at(int k) {
  return k / 32 * 32 + k / 2 % 4 * 8 + k / 16 % 2 * 4 + k / 8 % 2 * 2 + k % 2;
}

/// One of the two layers of a kernel: LN(x; scale, offset) w + b.
struct Layer {
  const float *scale, *offset;
  const Bf16* w;  ///< [kC, kC]
  const float* b;
};

/// What of a block's shared memory is where; both layers' weights, then f32: scale, offset (in the
/// channels' order) and bias (in the places') of each.
template <int kC>
struct Room {
  static constexpr int kWeights = kC * kC * 2;  ///< bytes of a layer's
  static constexpr int bytes(int sums) { return 2 * kWeights + (6 * kC + sums) * 4; }

  __device__ __forceinline__ explicit Room(unsigned char* shared)
      : weights(shared_address(shared)), numbers(reinterpret_cast<float*>(shared + 2 * kWeights)) {}
  __device__ __forceinline__ uint32_t w(int i) const { return weights + i * kWeights; }
  __device__ __forceinline__ float* scale(int i) const { return numbers + 3 * i * kC; }
  __device__ __forceinline__ float* offset(int i) const { return scale(i) + kC; }
  __device__ __forceinline__ float* bias(int i) const { return scale(i) + 2 * kC; }
  __device__ __forceinline__ float* sums() const { return numbers + 6 * kC; }

  /// Both layers, and zeros for `sums` numbers, by all threads of the block.
  __device__ void fill(const Layer& proj, const Layer& gate, int sums_count = 0) const {
    load(0, proj);
    load(1, gate);
    for (int k = threadIdx.x; k < sums_count; k += blockDim.x) sums()[k] = 0;
    copy_wait<0>();
    __syncthreads();
  }
  __device__ void load(int i, const Layer& layer) const {
    for (int k = threadIdx.x; k < kC * kC / 8; k += blockDim.x) {
      const int row = k / (kC / 8), chunk = k % (kC / 8);
      const uint32_t to = w(i) + chunk / 8 * kC * 128 + chunk_offset<64>(row, chunk % 8);
#pragma unroll
      for (int q = 0; q < 4; ++q)
        copy_async4(to + 4 * q, layer.w + channel_at(row) * kC + channel_at(8 * chunk + 2 * q), 4);
    }
    copy_commit();
    for (int k = threadIdx.x; k < kC; k += blockDim.x) {
      scale(i)[k] = layer.scale[k];
      offset(i)[k] = layer.offset[k];
      bias(i)[k] = layer.b[channel_at(k)];
    }
  }

  uint32_t weights;
  float* numbers;
};

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

/// 4 kM neighbours of a channel from `at`, as pairs; what lies behind n is 0.
template <int kM>
__device__ __forceinline__ void read_channel(uint32_t (&v)[2 * kM], const Bf16* from, int64_t at,
                                             int64_t n, bool wide) {
#pragma unroll
  for (int b = 0; b < 2 * kM; ++b) v[b] = 0;
  if (wide) {
    if (at >= n) return;
    if constexpr (kM == 2) {
      const uint4 x = *reinterpret_cast<const uint4*>(from + at);
      v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
    } else {
      const uint2 x = *reinterpret_cast<const uint2*>(from + at);
      v[0] = x.x, v[1] = x.y;
    }
    return;
  }
  const auto* bits = reinterpret_cast<const uint16_t*>(from);
#pragma unroll
  for (int i = 0; i < 4 * kM; ++i)
    if (at + i < n) v[i / 2] |= uint32_t(bits[at + i]) << (i % 2 * 16);
}

template <int kM>
__device__ __forceinline__ void write_channel(const uint32_t (&v)[2 * kM], Bf16* to, int64_t at,
                                              int64_t n, bool wide) {
  if (wide) {
    if (at >= n) return;
    if constexpr (kM == 2)
      *reinterpret_cast<uint4*>(to + at) = make_uint4(v[0], v[1], v[2], v[3]);
    else
      *reinterpret_cast<uint2*>(to + at) = make_uint2(v[0], v[1]);
    return;
  }
  auto* bits = reinterpret_cast<uint16_t*>(to);
#pragma unroll
  for (int i = 0; i < 4 * kM; ++i)
    if (at + i < n) bits[at + i] = uint16_t(v[i / 2] >> (i % 2 * 16));
}

/// Rows as the A operands of products, kM times 16 of them, and their statistics.
template <int kM, int kC>
struct Rows16 {
  static constexpr int kBlocks = 2 * kM;
  uint32_t a[kM][kC / 16][4];
  float mean[kBlocks], rstd[kBlocks];

  __device__ __forceinline__ Rows16() : g(threadIdx.x % 32 / 4), t(threadIdx.x % 4) {}
  /// Of block b: counted from the warp's first.
  __device__ __forceinline__ int row(int b) const { return g / 2 * (4 * kM) + 2 * b + g % 2; }
  /// The pair of channels 32 j + 8 t + 2 i and the next, of row(b).
  __device__ __forceinline__ uint32_t& pair(int b, int j, int i) {
    return a[b / 2][2 * j + i / 2][b % 2 + i % 2 * 2];
  }
  /// The first of the thread's channels of a group of 32.
  __device__ __forceinline__ int channel(int j) const { return 32 * j + 8 * t; }

  /// z [n, kC] from row0.
  __device__ __forceinline__ void load(const Bf16* z, int64_t row0, int64_t n) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const int64_t r = row0 + row(b);
#pragma unroll
      for (int j = 0; j < kC / 32; ++j) {
        uint4 v = make_uint4(0, 0, 0, 0);
        if (r < n) v = *reinterpret_cast<const uint4*>(z + r * kC + channel(j));
        pair(b, j, 0) = v.x;
        pair(b, j, 1) = v.y;
        pair(b, j, 2) = v.z;
        pair(b, j, 3) = v.w;
      }
    }
  }

  __device__ __forceinline__ void load_channels(const Bf16* p, int64_t stride, int64_t row0,
                                                int64_t n, bool wide) {
#pragma unroll
    for (int k = 0; k < kC / 8; ++k) {
      uint32_t v[kBlocks];
      read_channel<kM>(v, p + channel_at(8 * k + g) * stride, row0 + 4 * kM * t, n, wide);
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) a[b / 2][k / 2][b % 2 + k % 2 * 2] = transpose_matrix(v[b]);
    }
  }

  __device__ __forceinline__ void statistics() {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
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
        squares += x * x + y * y;
      }
      rstd[b] = rsqrtf(quad_sum(squares) / kC + kEpsilon);
    }
  }

  /// Puts LN(x) in x's place; normed [n, kC], where it is given, takes x without scale and offset.
  __device__ __forceinline__ void normalize(const float* scale, const float* offset, Bf16* normed,
                                            int64_t row0, int64_t n) {
#pragma unroll
    for (int j = 0; j < kC / 32; ++j) {
      float s[8], o[8];
      load_floats<8>(scale + channel(j), s);
      load_floats<8>(offset + channel(j), o);
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        uint32_t plain[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          uint32_t& v = pair(b, j, i);
          const float x = (low_bf16(v) - mean[b]) * rstd[b], y = (high_bf16(v) - mean[b]) * rstd[b];
          plain[i] = pack_bf16(x, y);
          v = pack_bf16(x * s[2 * i] + o[2 * i], y * s[2 * i + 1] + o[2 * i + 1]);
        }
        const int64_t r = row0 + row(b);
        if (normed && r < n)
          *reinterpret_cast<uint4*>(normed + r * kC + channel(j)) =
              make_uint4(plain[0], plain[1], plain[2], plain[3]);
      }
    }
  }

  int g, t;
};

/// d (places 16 s ... + 15) = rows times weights.
template <int kM, int kC>
__device__ __forceinline__ void multiply(float (&d)[kM][2][4], const Rows16<kM, kC>& rows,
                                         uint32_t w, int s) {
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int i = 0; i < 8; ++i) d[m][i / 4][i % 4] = 0;
#pragma unroll
  for (int k = 0; k < kC / 16; ++k) {
    uint32_t b[4];
    load_b_channels<64>(b, w + s / 4 * kC * 128, 16 * k, s % 4, threadIdx.x % 32);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      mma(d[m][0], rows.a[m][k], b[0], b[1]);
      mma(d[m][1], rows.a[m][k], b[2], b[3]);
    }
  }
}

inline Layer layer_of(const NormedLinear& l) {
  return {l.scale.data<float>(), l.offset.data<float>(), data<Bf16>(l.w), l.b.data<float>()};
}

/// Whether 4 kM neighbours of a channel are as many aligned bytes, in all channels of these [kC,
/// n].
inline bool is_wide(std::initializer_list<const Tensor*> channels, int64_t n, int64_t many) {
  for (const Tensor* t : channels)
    if (t->defined() && (reinterpret_cast<uintptr_t>(t->raw()) % 16 || t->stride(0) % many))
      return false;
  return n % many == 0;
}

/// f with the number of channels as a constant.
template <class F>
void by_channels(int64_t c, F f) {
  if (c == 64) return f(std::integral_constant<int, 64>());
  check(c == 128, "triangle multiplication of ", c, " channels by tensor cores");
  f(std::integral_constant<int, 128>());
}

inline int64_t blocks_for(int64_t n, int64_t rows) {
  return std::min<int64_t>(device_info().sm_count, ceil_div(n, rows));
}

}  // namespace ff::cuda
