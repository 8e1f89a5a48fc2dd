// Triangle multiplication by tensor cores, bf16: what lies before and behind its product over the
// third residue, one kernel each, forward and backward. Each reads z (and the product p) once,
// normalises in registers and keeps every intermediate there; the weights lie in shared memory.
//
// A warp owns kRows neighbouring pairs of residues and talks to no other. Its thread
// (g, t) = (lane / 4, lane % 4) holds channels 32 j + 8 t ... + 7 of row tile_row(b, g) of each of
// 2 kM blocks of 8 rows: 16 bytes of a row of z, and 4 kM neighbouring pairs of a channel where
// channels come first (after transpose_matrix). So nothing passes through shared memory, and
// fragments' places and channels differ: the weights are permuted on both sides by channel_at.
#include <algorithm>

#include "cuda/blas.h"
#include "cuda/mma.cuh"
#include "cuda/table.h"
#include "cuda/walk.cuh"

namespace ff::cuda {
namespace {

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

/// z [n, kC], and channels [kC, n] whose rows are `stride` apart: 8 of a channel's are moved at
/// once where `wide`.
struct Side {
  const Bf16* z;
  const float* mask;
  Layer proj, gate;
  Bf16* a;
  int64_t n, stride;
  bool wide;
};

struct SideBackward {
  const Bf16* z;
  const float* mask;
  Layer proj, gate;
  const Bf16* da;
  Bf16* dz;
  Bf16* normed;    ///< [n, kC]: (x - mean) / std
  Bf16* products;  ///< [n, 2 kC]: gradients of the projection's and the gate's products
  float* partial;  ///< [blocks, 2 kC]: their sums over rows
  int64_t n, stride;
  bool wide, add;
};

struct End {
  const Bf16 *z, *p;
  const float* factors;  ///< [m, kC] of row r % m, or nullptr
  Layer proj, gate;
  Bf16* out;
  int64_t n, m, stride;
  bool wide;
};

struct EndBackward {
  const Bf16 *z, *p;
  const float* factors;
  Layer proj, gate;
  const Bf16* dout;
  Bf16 *dz, *dp;
  Bf16* normed;    ///< [2, n, kC]: of p, of z
  Bf16* products;  ///< [2, n, kC]
  float* partial;  ///< [blocks, 2 kC]
  int64_t n, m, stride;
  bool wide, add;
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

/// dx (16 rows x kC places) += d (places 16 s ... + 15) times the weights transposed.
template <int kC>
__device__ __forceinline__ void multiply_back(float (&dx)[kC / 8][4], const uint32_t (&d)[4],
                                              uint32_t w, int s) {
#pragma unroll
  for (int k = 0; k < kC / 16; ++k) {
    uint32_t b[4];
    load_b_rows<64>(b, w + s / 4 * kC * 128, 16 * k, s % 4, threadIdx.x % 32);
    mma(dx[2 * k], d, b[0], b[1]);
    mma(dx[2 * k + 1], d, b[2], b[3]);
  }
}

/// Sums v[k] over the lanes of equal t; lane (g, t) gets that of k = g's bits in reverse.
__device__ __forceinline__ float scatter_sum(float (&v)[8], int lane) {
#pragma unroll
  for (int half = 4; half; half /= 2) {
    const int distance = 16 / half;
    const bool upper = lane & distance;
#pragma unroll
    for (int k = 0; k < half; ++k) {
      const float give = upper ? v[k] : v[k + half], keep = upper ? v[k + half] : v[k];
      v[k] = keep + __shfl_xor_sync(~0u, give, distance);
    }
  }
  return v[0];
}

/// Of each warp, for each step of 16 places and each lane, what scatter_sum gave it, added up.
/// partial [2 kC] of this block: over its warps, in the channels' order.
template <int kC>
__device__ __forceinline__ void leave_sums(const float* sums, float* partial) {
  __syncthreads();
  for (int k = threadIdx.x; k < 2 * kC; k += blockDim.x) {
    const int place = k % kC, t = place / 2 % 4, which = k / kC * 4 + place / 8 % 2 * 2 + place % 2;
    const int g = which / 4 + which / 2 % 2 * 2 + which % 2 * 4;
    float sum = 0;
    for (int w = 0; w < blockDim.x / 32; ++w)
      sum += sums[(w * (kC / 16) + place / 16) * 32 + 4 * g + t];
    partial[k / kC * kC + channel_at(place)] = sum;
  }
}

/// Layer norm's gradient from dx, that of LN(x) in registers, and x's row: f(values, j) gets the
/// gradients of the row's channels of group j.
template <int kC, class F>
__device__ __forceinline__ void norm_backward(float (&dx)[kC / 8][4], Rows16<1, kC>& x, int b,
                                              const float* scale, F f) {
  float sum = 0, product = 0;
#pragma unroll
  for (int j = 0; j < kC / 32; ++j) {
    float s[8];
    load_floats<8>(scale + x.channel(j), s);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float *d = dx[4 * j + i] + 2 * b, low, high;
      const uint32_t v = x.pair(b, j, i);
      low = (low_bf16(v) - x.mean[b]) * x.rstd[b];
      high = (high_bf16(v) - x.mean[b]) * x.rstd[b];
      d[0] *= s[2 * i];
      d[1] *= s[2 * i + 1];
      sum += d[0] + d[1];
      product += d[0] * low + d[1] * high;
    }
  }
  sum = quad_sum(sum) / kC;
  product = quad_sum(product) / kC;
#pragma unroll
  for (int j = 0; j < kC / 32; ++j) {
    float y[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t v = x.pair(b, j, i / 2);
      const float at = ((i % 2 ? high_bf16(v) : low_bf16(v)) - x.mean[b]) * x.rstd[b];
      y[i] = x.rstd[b] * (dx[4 * j + i / 2][2 * b + i % 2] - sum - at * product);
    }
    f(y, j);
  }
}

constexpr int kSideThreads = 384, kSideM = 2, kEndThreads = 384, kBackThreads = 256;

template <int kC>
__global__ void __launch_bounds__(kSideThreads, 1) side_kernel(const __grid_constant__ Side s) {
  extern __shared__ __align__(128) unsigned char shared[];
  const Room<kC> room(shared);
  room.load(0, s.proj);
  room.load(1, s.gate);
  copy_wait<0>();
  __syncthreads();
  constexpr int kM = kSideM, kRows = 16 * kM, kWarps = kSideThreads / 32;
  Rows16<kM, kC> x;
  for (int64_t row0 = (int64_t(blockIdx.x) * kWarps + threadIdx.x / 32) * kRows; row0 < s.n;
       row0 += int64_t(gridDim.x) * kWarps * kRows) {
    x.load(s.z, row0, s.n);
    float keep[2 * kM];
#pragma unroll
    for (int b = 0; b < 2 * kM; ++b)
      keep[b] = row0 + x.row(b) < s.n ? s.mask[row0 + x.row(b)] : 0.0f;
    x.statistics();
    x.normalize(room.scale(0), room.offset(0), nullptr, row0, s.n);
#pragma unroll 1
    for (int step = 0; step < kC / 16; ++step) {
      float p[kM][2][4], q[kM][2][4];
      multiply(p, x, room.w(0), step);
      multiply(q, x, room.w(1), step);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int place = 16 * step + 8 * half;
        const float2 pb = *reinterpret_cast<const float2*>(room.bias(0) + place + 2 * x.t),
                     qb = *reinterpret_cast<const float2*>(room.bias(1) + place + 2 * x.t);
        uint32_t v[2 * kM];
#pragma unroll
        for (int b = 0; b < 2 * kM; ++b) {
          const float *pd = p[b / 2][half] + b % 2 * 2, *qd = q[b / 2][half] + b % 2 * 2;
          v[b] = transpose_matrix(pack_bf16(keep[b] * (pd[0] + pb.x) * sigmoid(qd[0] + qb.x),
                                            keep[b] * (pd[1] + pb.y) * sigmoid(qd[1] + qb.y)));
        }
        write_channel<kM>(v, s.a + channel_at(place + x.g) * s.stride, row0 + 4 * kM * x.t, s.n,
                          s.wide);
      }
    }
  }
}

template <int kC>
__global__ void __launch_bounds__(kBackThreads, 1)
    side_backward_kernel(const __grid_constant__ SideBackward s) {
  extern __shared__ __align__(128) unsigned char shared[];
  const Room<kC> room(shared);
  constexpr int kWarps = kBackThreads / 32, kSteps = kC / 16;
  room.load(0, s.proj);
  room.load(1, s.gate);
  for (int k = threadIdx.x; k < kWarps * kSteps * 32; k += kBackThreads) room.sums()[k] = 0;
  copy_wait<0>();
  __syncthreads();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float* const sums = room.sums() + warp * kSteps * 32 + lane;
  Rows16<1, kC> x;
  for (int64_t row0 = (int64_t(blockIdx.x) * kWarps + warp) * 16; row0 < s.n;
       row0 += int64_t(gridDim.x) * kWarps * 16) {
    x.load(s.z, row0, s.n);
    float keep[2];
#pragma unroll
    for (int b = 0; b < 2; ++b) keep[b] = row0 + x.row(b) < s.n ? s.mask[row0 + x.row(b)] : 0.0f;
    x.statistics();
    x.normalize(room.scale(0), room.offset(0), s.normed, row0, s.n);
    float dx[kC / 8][4] = {};
#pragma unroll 1
    for (int j = 0; j < kC / 32; ++j) {
      uint32_t whole[2][2][4];  // of projection and gate, of two rows: 8 channels
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int step = 2 * j + h;
        float p[1][2][4], q[1][2][4], v[8] = {};
        multiply(p, x, room.w(0), step);
        multiply(q, x, room.w(1), step);
        uint32_t dp[4], dq[4];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int place = 16 * step + 8 * half;
          const float2 pb = *reinterpret_cast<const float2*>(room.bias(0) + place + 2 * x.t),
                       qb = *reinterpret_cast<const float2*>(room.bias(1) + place + 2 * x.t);
          uint32_t d[2];
          read_channel<1>(d, s.da + channel_at(place + x.g) * s.stride, row0 + 4 * x.t, s.n,
                          s.wide);
#pragma unroll
          for (int b = 0; b < 2; ++b) {
            d[b] = transpose_matrix(d[b]);
            float to_p[2], to_q[2];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const float da = keep[b] * (e ? high_bf16(d[b]) : low_bf16(d[b])),
                          gate = sigmoid(q[0][half][2 * b + e] + (e ? qb.y : qb.x));
              to_p[e] = da * gate;
              to_q[e] = to_p[e] * (p[0][half][2 * b + e] + (e ? pb.y : pb.x)) * (1 - gate);
              v[2 * half + e] += to_p[e];
              v[4 + 2 * half + e] += to_q[e];
            }
            dp[b + 2 * half] = whole[0][b][2 * h + half] = pack_bf16(to_p[0], to_p[1]);
            dq[b + 2 * half] = whole[1][b][2 * h + half] = pack_bf16(to_q[0], to_q[1]);
          }
        }
        multiply_back<kC>(dx, dp, room.w(0), step);
        multiply_back<kC>(dx, dq, room.w(1), step);
        sums[step * 32] += scatter_sum(v, lane);
      }
#pragma unroll
      for (int b = 0; b < 2; ++b)
        if (row0 + x.row(b) < s.n)
#pragma unroll
          for (int i = 0; i < 2; ++i)
            *reinterpret_cast<uint4*>(s.products + ((row0 + x.row(b)) * 2 + i) * kC +
                                      x.channel(j)) =
                make_uint4(whole[i][b][0], whole[i][b][1], whole[i][b][2], whole[i][b][3]);
    }
    x.load(s.z, row0, s.n);
#pragma unroll
    for (int b = 0; b < 2; ++b)
      norm_backward<kC>(dx, x, b, room.scale(0), [&](float(&y)[8], int j) {
        if (row0 + x.row(b) >= s.n || !s.dz) return;
        Bf16* const to = s.dz + (row0 + x.row(b)) * kC + x.channel(j);
        if (s.add) {
          float old[8];
          load8<true>(old, to, 8);
#pragma unroll
          for (int i = 0; i < 8; ++i) y[i] += old[i];
        }
        store8<true>(to, y, 8);
      });
  }
  leave_sums<kC>(room.sums(), s.partial + int64_t(blockIdx.x) * 2 * kC);
}

template <int kC>
__global__ void __launch_bounds__(kEndThreads, 1) end_kernel(const __grid_constant__ End s) {
  extern __shared__ __align__(128) unsigned char shared[];
  const Room<kC> room(shared);
  room.load(0, s.proj);
  room.load(1, s.gate);
  copy_wait<0>();
  __syncthreads();
  constexpr int kWarps = kEndThreads / 32;
  Rows16<1, kC> x, y;
  for (int64_t row0 = (int64_t(blockIdx.x) * kWarps + threadIdx.x / 32) * 16; row0 < s.n;
       row0 += int64_t(gridDim.x) * kWarps * 16) {
    x.load(s.z, row0, s.n);
    y.load_channels(s.p, s.stride, row0, s.n, s.wide);
    x.statistics();
    x.normalize(room.scale(1), room.offset(1), nullptr, row0, s.n);
    y.statistics();
    y.normalize(room.scale(0), room.offset(0), nullptr, row0, s.n);
#pragma unroll 1
    for (int j = 0; j < kC / 32; ++j) {
      float update[2][8];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float o[1][2][4], q[1][2][4];
        multiply(o, y, room.w(0), 2 * j + h);
        multiply(q, x, room.w(1), 2 * j + h);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int place = 32 * j + 16 * h + 8 * half + 2 * x.t;
#pragma unroll
          for (int i = 0; i < 4; ++i)
            update[i / 2][4 * h + 2 * half + i % 2] =
                (o[0][half][i] + room.bias(0)[place + i % 2]) *
                sigmoid(q[0][half][i] + room.bias(1)[place + i % 2]);
        }
      }
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        const int64_t r = row0 + x.row(b);
        if (r >= s.n) continue;
        float to[8];
        load8<true>(to, s.z + r * kC + x.channel(j), 8);
        if (s.factors) {
          float f[8];
          load_floats<8>(s.factors + r % s.m * kC + x.channel(j), f);
#pragma unroll
          for (int i = 0; i < 8; ++i) update[b][i] *= f[i];
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) to[i] += update[b][i];
        store8<true>(s.out + r * kC + x.channel(j), to, 8);
      }
    }
  }
}

template <int kC>
__global__ void __launch_bounds__(kBackThreads, 1)
    end_backward_kernel(const __grid_constant__ EndBackward s) {
  extern __shared__ __align__(128) unsigned char shared[];
  const Room<kC> room(shared);
  constexpr int kWarps = kBackThreads / 32, kSteps = kC / 16;
  room.load(0, s.proj);
  room.load(1, s.gate);
  for (int k = threadIdx.x; k < kWarps * kSteps * 32; k += kBackThreads) room.sums()[k] = 0;
  copy_wait<0>();
  __syncthreads();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float* const sums = room.sums() + warp * kSteps * 32 + lane;
  Rows16<1, kC> x, y;
  for (int64_t row0 = (int64_t(blockIdx.x) * kWarps + warp) * 16; row0 < s.n;
       row0 += int64_t(gridDim.x) * kWarps * 16) {
    x.load(s.z, row0, s.n);
    y.load_channels(s.p, s.stride, row0, s.n, s.wide);
    x.statistics();
    x.normalize(room.scale(1), room.offset(1), s.normed + s.n * kC, row0, s.n);
    y.statistics();
    y.normalize(room.scale(0), room.offset(0), s.normed, row0, s.n);
    uint32_t dq[kSteps][4];
    float dx[kC / 8][4] = {};
#pragma unroll
    for (int j = 0; j < kC / 32; ++j) {
      float d[2][8], factor[2][8];
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        const int64_t r = row0 + x.row(b);
#pragma unroll
        for (int i = 0; i < 8; ++i) d[b][i] = 0, factor[b][i] = 1;
        if (r >= s.n) continue;
        load8<true>(d[b], s.dout + r * kC + x.channel(j), 8);
        if (s.factors) load_floats<8>(s.factors + r % s.m * kC + x.channel(j), factor[b]);
      }
      uint32_t whole[2][4];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int step = 2 * j + h;
        float o[1][2][4], q[1][2][4], v[8] = {};
        multiply(o, y, room.w(0), step);
        multiply(q, x, room.w(1), step);
        uint32_t dout[4];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int place = 16 * step + 8 * half + 2 * x.t;
#pragma unroll
          for (int b = 0; b < 2; ++b) {
            float to_o[2], to_q[2];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const int i = 4 * h + 2 * half + e;
              const float gate = sigmoid(q[0][half][2 * b + e] + room.bias(1)[place + e]);
              to_o[e] = d[b][i] * factor[b][i] * gate;
              to_q[e] = to_o[e] * (o[0][half][2 * b + e] + room.bias(0)[place + e]) * (1 - gate);
              v[2 * half + e] += to_o[e];
              v[4 + 2 * half + e] += to_q[e];
            }
            dout[b + 2 * half] = whole[b][2 * h + half] = pack_bf16(to_o[0], to_o[1]);
            dq[step][b + 2 * half] = pack_bf16(to_q[0], to_q[1]);
          }
        }
        multiply_back<kC>(dx, dout, room.w(0), step);
        sums[step * 32] += scatter_sum(v, lane);
      }
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        const int64_t r = row0 + x.row(b);
        if (r >= s.n) continue;
        *reinterpret_cast<uint4*>(s.products + r * kC + x.channel(j)) =
            make_uint4(whole[b][0], whole[b][1], whole[b][2], whole[b][3]);
        *reinterpret_cast<uint4*>(s.products + (s.n + r) * kC + x.channel(j)) =
            make_uint4(dq[2 * j][b], dq[2 * j][b + 2], dq[2 * j + 1][b], dq[2 * j + 1][b + 2]);
      }
    }
    // dx is the gradient of LN(p) here, then that of LN(z).
    y.load_channels(s.p, s.stride, row0, s.n, s.wide);
#pragma unroll
    for (int b = 0; b < 2; ++b)
      norm_backward<kC>(dx, y, b, room.scale(0), [&](float(&v)[8], int j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) y.pair(b, j, i) = pack_bf16(v[2 * i], v[2 * i + 1]);
      });
    if (s.dp)
#pragma unroll
      for (int k = 0; k < kC / 8; ++k) {
        const uint32_t v[2] = {transpose_matrix(y.a[0][k / 2][k % 2 * 2]),
                               transpose_matrix(y.a[0][k / 2][k % 2 * 2 + 1])};
        write_channel<1>(v, s.dp + channel_at(8 * k + y.g) * s.stride, row0 + 4 * y.t, s.n, s.wide);
      }
#pragma unroll
    for (int k = 0; k < kC / 8; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) dx[k][i] = 0;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) multiply_back<kC>(dx, dq[step], room.w(1), step);
    x.load(s.z, row0, s.n);
#pragma unroll
    for (int b = 0; b < 2; ++b)
      norm_backward<kC>(dx, x, b, room.scale(1), [&](float(&v)[8], int j) {
        const int64_t r = row0 + x.row(b);
        if (r >= s.n || !s.dz) return;
        float old[8];
        load8<true>(old, s.dout + r * kC + x.channel(j), 8);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] += old[i];
        Bf16* const to = s.dz + r * kC + x.channel(j);
        if (s.add) {
          load8<true>(old, to, 8);
#pragma unroll
          for (int i = 0; i < 8; ++i) v[i] += old[i];
        }
        store8<true>(to, v, 8);
      });
  }
  leave_sums<kC>(room.sums(), s.partial + int64_t(blockIdx.x) * 2 * kC);
}

/// What two layers' gradients are made of: for layer i, from products [kC, kC] = normed^T times the
/// products' gradients, and their sums over rows.
struct Finish {
  Layer layer[2];
  float *dscale[2], *doffset[2], *dw[2], *db[2];
  const float* products;  ///< layer i's from i * next, rows `pitch` apart
  int64_t next, pitch;
  const float* partial;  ///< [blocks, 2 kC]
  int64_t blocks;
};

/// LN(x) = normed scale + offset, so that w's gradient, LN(x)^T d, is scale normed^T d + offset
/// sum d, and those of scale and offset are the sums over w's rows of w normed^T d and w sum d.
/// Block c: channel c of what goes in; thread: layer and channel of what comes out.
template <int kC>
__global__ void __launch_bounds__(2 * kC) finish_kernel(const __grid_constant__ Finish f) {
  __shared__ float room[2][2 * kC / 32];
  const int c = blockIdx.x, i = threadIdx.x / kC, o = threadIdx.x % kC;
  const Layer& layer = f.layer[i];
  float sum = 0;
#pragma unroll 4
  for (int64_t b = 0; b < f.blocks; ++b) sum += f.partial[b * 2 * kC + i * kC + o];
  const float product = f.products[i * f.next + c * f.pitch + o], w = to_float(layer.w[c * kC + o]);
  if (f.dw[i]) f.dw[i][c * kC + o] += layer.scale[c] * product + layer.offset[c] * sum;
  if (f.db[i] && c == 0) f.db[i][o] += sum;
  const float to_scale = warp_sum(w * product), to_offset = warp_sum(w * sum);
  if (threadIdx.x % 32 == 0) {
    room[0][threadIdx.x / 32] = to_scale;
    room[1][threadIdx.x / 32] = to_offset;
  }
  __syncthreads();
  if (threadIdx.x) return;
  for (int k = 0; k < 2; ++k) {
    float total[2] = {};
    for (int s = 0; s < 2; ++s)
      for (int q = 0; q < kC / 32; ++q) total[s] += room[s][k * (kC / 32) + q];
    if (f.dscale[k]) f.dscale[k][c] += total[0];
    if (f.doffset[k]) f.doffset[k][c] += total[1];
  }
}

Layer layer_of(const NormedLinear& l) {
  return {l.scale.data<float>(), l.offset.data<float>(), data<Bf16>(l.w), l.b.data<float>()};
}

/// Whether 4 kM neighbours of a channel are as many aligned bytes, in all channels of these [kC,
/// n].
bool is_wide(std::initializer_list<const Tensor*> channels, int64_t n, int64_t many) {
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

int64_t blocks_for(int64_t n, int64_t rows) {
  return std::min<int64_t>(device_info().sm_count, ceil_div(n, rows));
}

template <int kC>
void finish(const NormedLinear (&layers)[2], const NormedLinear (&grads)[2], const Tensor& products,
            const Scratch& partial, int64_t blocks) {
  const bool beside = products.size(0) == 1;  // each other, else one after the other
  Finish f{};
  for (int i = 0; i < 2; ++i) {
    f.layer[i] = layer_of(layers[i]);
    f.dscale[i] = data_or_null<float>(grads[i].scale);
    f.doffset[i] = data_or_null<float>(grads[i].offset);
    f.dw[i] = data_or_null<float>(grads[i].w);
    f.db[i] = data_or_null<float>(grads[i].b);
  }
  f.products = products.data<float>();
  f.next = beside ? kC : kC * kC;
  f.pitch = beside ? 2 * kC : kC;
  f.partial = partial.data<float>();
  f.blocks = blocks;
  launch<finish_kernel<kC>>("triangle_finish", kC, 2 * kC, 0, f);
}

}  // namespace

void triangle_side(const Tensor& z, const Tensor& mask, const NormedLinear& proj,
                   const NormedLinear& gate, const Tensor& a) {
  const int64_t n = mask.numel();
  if (!n) return;
  by_channels(a.size(0), [&](auto channels) {
    constexpr int kC = decltype(channels)::value;
    const Side s{data<Bf16>(z),  mask.data<float>(),
                 layer_of(proj), layer_of(gate),
                 data<Bf16>(a),  n,
                 a.stride(0),    is_wide({&a}, n, 4 * kSideM)};
    launch<side_kernel<kC>>("triangle_side", blocks_for(n, kSideThreads / 32 * 16 * kSideM),
                            kSideThreads, Room<kC>::bytes(0), s);
  });
}

void triangle_side_backward(const Tensor& z, const Tensor& mask, const NormedLinear& proj,
                            const NormedLinear& gate, const Tensor& da, const Tensor& dz, bool add,
                            const NormedLinear& dproj, const NormedLinear& dgate) {
  const int64_t n = mask.numel();
  if (!n) return;
  by_channels(da.size(0), [&](auto channels) {
    constexpr int kC = decltype(channels)::value;
    const int64_t blocks = blocks_for(n, kBackThreads / 2);
    const Tensor normed = Tensor::empty({1, n, kC}, Dtype::bf16, z.device()),
                 products = Tensor::empty({1, n, 2 * kC}, Dtype::bf16, z.device()),
                 sums = Tensor::empty({1, kC, 2 * kC}, Dtype::f32, z.device());
    const Scratch partial(blocks * 2 * kC * 4);
    const SideBackward s{data<Bf16>(z),
                         mask.data<float>(),
                         layer_of(proj),
                         layer_of(gate),
                         data<Bf16>(da),
                         data_or_null<Bf16>(dz),
                         data<Bf16>(normed),
                         data<Bf16>(products),
                         partial.data<float>(),
                         n,
                         da.stride(0),
                         is_wide({&da}, n, 4),
                         add};
    launch<side_backward_kernel<kC>>("triangle_side_backward", blocks, kBackThreads,
                                     Room<kC>::bytes(kBackThreads * (kC / 16)), s);
    product(normed.transpose(1, 2), products, {}, Activation::kNone, false, sums);
    finish<kC>({proj, gate}, {dproj, dgate}, sums, partial, blocks);
  });
}

void triangle_end(const Tensor& z, const Tensor& p, const Tensor& factors, const NormedLinear& proj,
                  const NormedLinear& gate, const Tensor& out) {
  const int64_t n = z.numel() / z.size(-1);
  if (!n) return;
  by_channels(p.size(0), [&](auto channels) {
    constexpr int kC = decltype(channels)::value;
    const End s{data<Bf16>(z),
                data<Bf16>(p),
                data_or_null<float>(factors),
                layer_of(proj),
                layer_of(gate),
                data<Bf16>(out),
                n,
                z.size(1),
                p.stride(0),
                is_wide({&p}, n, 4)};
    launch<end_kernel<kC>>("triangle_end", blocks_for(n, kEndThreads / 2), kEndThreads,
                           Room<kC>::bytes(0), s);
  });
}

void triangle_end_backward(const Tensor& z, const Tensor& p, const Tensor& factors,
                           const NormedLinear& proj, const NormedLinear& gate, const Tensor& dout,
                           const Tensor& dz, bool add, const Tensor& dp, const NormedLinear& dproj,
                           const NormedLinear& dgate) {
  const int64_t n = z.numel() / z.size(-1);
  if (!n) return;
  by_channels(p.size(0), [&](auto channels) {
    constexpr int kC = decltype(channels)::value;
    const int64_t blocks = blocks_for(n, kBackThreads / 2);
    const Tensor normed = Tensor::empty({2, n, kC}, Dtype::bf16, z.device()),
                 products = Tensor::empty({2, n, kC}, Dtype::bf16, z.device()),
                 sums = Tensor::empty({2, kC, kC}, Dtype::f32, z.device());
    const Scratch partial(blocks * 2 * kC * 4);
    const EndBackward s{data<Bf16>(z),
                        data<Bf16>(p),
                        data_or_null<float>(factors),
                        layer_of(proj),
                        layer_of(gate),
                        data<Bf16>(dout),
                        data_or_null<Bf16>(dz),
                        data_or_null<Bf16>(dp),
                        data<Bf16>(normed),
                        data<Bf16>(products),
                        partial.data<float>(),
                        n,
                        z.size(1),
                        p.stride(0),
                        is_wide({&p, &dp}, n, 4),
                        add};
    launch<end_backward_kernel<kC>>("triangle_end_backward", blocks, kBackThreads,
                                    Room<kC>::bytes(kBackThreads * (kC / 16)), s);
    product(normed.transpose(1, 2), products, {}, Activation::kNone, false, sums);
    finish<kC>({proj, gate}, {dproj, dgate}, sums, partial, blocks);
  });
}

}  // namespace ff::cuda
