// Triangle multiplication by tensor cores, backward: everything but the weights' gradients, which
// are products over all pairs of what the kernels leave.
#include "cuda/blas.h"
#include "cuda/table.h"
#include "cuda/triangle_mma.cuh"

namespace ff::cuda {
namespace {

constexpr int kThreads = 256;

/// What is summed over rows on the way to the layers' gradients.
struct Sums {
  float* rows;     ///< [blocks, layers, kC]: of the gradients of the layers' products
  float* weights;  ///< [layers * kC / kColumns, 2, kC]: finish_kernel's, of its blocks
  unsigned* done;  ///< how many of those are there
};

/// Of n rows. The weights' gradients are LN(x)^T d, and LN(x) is (x - mean) rstd scale + offset: so
/// that x itself can be multiplied afterwards, d is left times rstd, and finish_kernel takes away
/// what the means add, which is x^T d's mean over the channels. A bf16 more a row and channel
/// neither written nor read, nor rounded.
template <int kSides>
struct SideBackward {
  Layer layers[2 * kSides];
  const Bf16* z;
  const float* mask;
  const Bf16* da;
  Bf16* dz;
  Bf16* products;  ///< [n, layers, kC]: gradients of the layers' products, times rstd
  Sums sums;
  int64_t n, stride;
  bool wide, add;
};

struct EndBackward {
  Layer layers[2];
  const Bf16 *z, *p;
  const float* factors;
  const Bf16* dout;
  Bf16 *dz, *dp;
  Bf16* products;  ///< [2, n, kC]: of p's layer, of z's
  Sums sums;
  int64_t n, m, stride;
  bool wide, add;
};

/// dx (16 rows x kC places) += d (16 rows x 32 places) times the weights of the tile `w`
/// transposed.
template <bool kHopper, int kC>
__device__ __forceinline__ void multiply_back(float (&dx)[kC / 2], const uint32_t (&d)[2][4],
                                              uint32_t w) {
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    if constexpr (kHopper && kCompiled<true>) {
#pragma unroll
      for (int i = 0; i < kC / 64; ++i)
        wgmma_rows(reinterpret_cast<float(&)[32]>(dx[32 * i]), d[k],
                   wgmma_tile_at(wgmma_tile<32>(w), 256 * i + 2 * k));
    } else {
#pragma unroll
      for (int i = 0; i < kC / 16; ++i) {
        uint32_t b[4];
        load_b_rows<32>(b, w, 16 * i, k, threadIdx.x % 32);
        mma(fragment(dx, 2 * i), d[k], b[0], b[1]);
        mma(fragment(dx, 2 * i + 1), d[k], b[2], b[3]);
      }
    }
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

/// Adds to a warp's sums, of two steps of 16 places, those of two rows: p and q of numbers 2 k + e.
__device__ __forceinline__ void add_sums(float* sums, const float (&p)[8], const float (&q)[8],
                                         int lane) {
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    float v[8];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[i] = p[4 * step + i];
      v[4 + i] = q[4 * step + i];
    }
    sums[32 * step] += scatter_sum(v, lane);
  }
}

/// Of each warp, for each step of 16 places of two layers and each lane, what scatter_sum gave it,
/// added up over this block's warps, in the channels' order.
template <int kC, int kLayers>
__device__ __forceinline__ void leave_sums(const float* sums, const Sums& to) {
  __syncthreads();
  if (blockIdx.x == 0 && threadIdx.x == 0) *to.done = 0;
  for (int k = threadIdx.x; k < kLayers * kC; k += blockDim.x) {
    const int layer = k / kC, place = k % kC, t = place / 2 % 4,
              which = layer % 2 * 4 + place / 8 % 2 * 2 + place % 2;
    const int g = which / 4 + which / 2 % 2 * 2 + which % 2 * 4,
              step = layer / 2 * (kC / 16) + place / 16;
    float sum = 0;
    for (int w = 0; w < blockDim.x / 32; ++w)
      sum += sums[(w * (kLayers / 2 * kC / 16) + step) * 32 + 4 * g + t];
    to.rows[(int64_t(blockIdx.x) * kLayers + layer) * kC + channel_at(place)] = sum;
  }
}

/// Layer norm's gradient from dx, that of LN(x) times rstd in registers, and x, of which raw(j, v)
/// gives group j: f(j, y) gets the gradients of the rows' channels of the group.
template <int kC, class Raw, class F>
__device__ __forceinline__ void norm_backward(float (&dx)[kC / 2], const Rows16<kC>& x,
                                              const float* scale, Raw raw, F f) {
  float sum[2] = {}, product[2] = {};
#pragma unroll
  for (int j = 0; j < kC / 32; ++j) {
    float s[8];
    load_floats<8>(scale + x.channel(j), s);
    uint32_t v[2][4];
    raw(j, v);
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float& d = fragment(dx, 4 * j + i / 2)[2 * b + i % 2];
        d *= s[i];
        sum[b] += d;
        product[b] += d * half_of(v[b][i / 2], i % 2);
      }
  }
  // The gradient is d - mean(d) - n mean(d n), n = (x - mean) rstd: d + slope x + rest.
  float slope[2], rest[2];
#pragma unroll
  for (int b = 0; b < 2; ++b) {
    const float mean_d = quad_sum(sum[b]) / kC;
    slope[b] = -x.rstd[b] * x.rstd[b] * (quad_sum(product[b]) / kC - x.mean[b] * mean_d);
    rest[b] = -mean_d - slope[b] * x.mean[b];
  }
#pragma unroll
  for (int j = 0; j < kC / 32; ++j) {
    uint32_t v[2][4];
    raw(j, v);
    float y[2][8];
#pragma unroll
    for (int b = 0; b < 2; ++b)
#pragma unroll
      for (int i = 0; i < 8; ++i)
        y[b][i] = fragment(dx, 4 * j + i / 2)[2 * b + i % 2] +
                  (slope[b] * half_of(v[b][i / 2], i % 2) + rest[b]);
    f(j, y);
  }
}

/// What the rows of 32 places' gradients are as the A operands of products, as a row's channels.
__device__ __forceinline__ uint4 channels_of(const uint32_t (&d)[2][4], int b) {
  return make_uint4(d[0][b], d[0][b + 2], d[1][b], d[1][b + 2]);
}

__device__ __forceinline__ void add8(float (&y)[8], uint4 v) {
  float x[8];
  unpack8(v, x);
#pragma unroll
  for (int i = 0; i < 8; ++i) y[i] += x[i];
}

/// From p and q of p sigmoid(q), and its gradient d, theirs, in their place; q's times `ratio`.
__device__ __forceinline__ void gate_backward(float& p, float& q, float d, float ratio = 1) {
  const float gate = sigmoid_fast(q), to_p = d * gate;
  q = to_p * p * (ratio - ratio * gate);
  p = to_p;
}

template <int kC, bool kHopper, int kSides>
__global__ void __launch_bounds__(kThreads, 1)
    sides_backward_kernel(const __grid_constant__ SideBackward<kSides> s) {
  after_earlier();
  if (!kCompiled<kHopper>) return;
  extern __shared__ __align__(1024) unsigned char shared[];
  constexpr int kLayers = 2 * kSides, kGroups = kC / 32, kSums = kSides * kC / 16 * 32;
  const Room<kC, kLayers> room(shared);
  unsigned char *const next_z = room.piece(0, 2, kSums), *const next_da = next_z + Room<kC>::kPiece;
  Turns<kHopper> turns(s.n);
  Rows16<kC> x;
  x.fetch(next_z, s.z, turns.row(), s.n);
  x.fetch_channels(next_da, s.da, s.stride, turns.row(), s.n, s.wide);
  room.template fill<kHopper>(s.layers, kSums * (blockDim.x / 32));
  const int lane = threadIdx.x % 32;
  float* const sums = room.sums() + threadIdx.x / 32 * kSums + lane;
  for (; turns.left(); turns.next()) {
    const int64_t row0 = turns.row(), next_row = turns.next_row();
    float keep[2], deviation[2];
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const int64_t r = row0 + x.row(b);
      keep[b] = r < s.n ? s.mask[r] : 0.0f;
    }
    copy_wait<0>();
    x.take(next_z);
    x.statistics();
    x.normalize(room.scale(0), room.offset(0));
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      keep[b] *= x.rstd[b];
      deviation[b] = reciprocal_fast(x.rstd[b]);
    }
    float dx[kC / 2] = {};
#pragma unroll 1
    for (int group = 0; group < kSides * kGroups; ++group) {
      const int layer = group / kGroups * 2, j = group % kGroups;
      float d[32];  // projection, gate
      side_layers<kHopper>(d, x, room, layer, j);
      copy_wait<kGroups - 1>();
      uint32_t dp[2][4], dq[2][4];
      float sum_p[8] = {}, sum_q[8] = {};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const uint2 pairs = x.taken_channel(next_da, 4 * j + k);
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          const uint32_t da = transpose_matrix(b ? pairs.y : pairs.x);
          float *p = d + 4 * k + 2 * b, *q = p + 16;
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            gate_backward(p[e], q[e], keep[b] * half_of(da, e));
            sum_p[2 * k + e] += deviation[b] * p[e];
            sum_q[2 * k + e] += deviation[b] * q[e];
          }
          dp[k / 2][b + k % 2 * 2] = pack_bf16(p[0], p[1]);
          dq[k / 2][b + k % 2 * 2] = pack_bf16(q[0], q[1]);
        }
      }
      start<kHopper>(dx, dp, dq);
      multiply_back<kHopper, kC>(dx, dp, room.w(layer, j));
      multiply_back<kHopper, kC>(dx, dq, room.w(layer + 1, j));
      run<kHopper>();
      // What comes next to this place: of the other side, or of the next rows.
      const bool other = group + kGroups < kSides * kGroups;
      x.fetch_channels(next_da, s.da + (other ? kC * s.stride : 0), s.stride,
                       other ? row0 : next_row, s.n, s.wide, j);
      copy_commit();
      Bf16* const to = x.template own<kLayers * kC>(s.products, row0) + layer * kC + 32 * j;
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        if (row0 + x.row(b) >= s.n) continue;
        Bf16* const row = to + x.template off<kLayers * kC>(b, 0);
        store_whole(row, channels_of(dp, b));
        store_whole(row + kC, channels_of(dq, b));
      }
      add_sums(sums + group * 64, sum_p, sum_q, lane);
      finish<kHopper>(dx);
    }
    uint4 old[kC / 32][2] = {};
    if (s.add)
#pragma unroll
      for (int j = 0; j < kC / 32; ++j)
#pragma unroll
        for (int b = 0; b < 2; ++b)
          if (row0 + x.row(b) < s.n)
            old[j][b] = *reinterpret_cast<const uint4*>(x.own(s.dz, row0) + x.off(b, j));
    norm_backward<kC>(
        dx, x, room.scale(0), [&](int j, uint32_t(&v)[2][4]) { x.take(next_z, j, v); },
        [&](int j, float(&y)[2][8]) {
          x.fetch(next_z, s.z, next_row, s.n, j);
#pragma unroll
          for (int b = 0; b < 2; ++b) {
            if (s.add) add8(y[b], old[j][b]);
            if (s.dz && row0 + x.row(b) < s.n)
              store_whole(x.own(s.dz, row0) + x.off(b, j), pack8(y[b]));
          }
        });
    copy_commit();
  }
  leave_sums<kC, kLayers>(room.sums(), s.sums);
}

template <int kC, bool kHopper>
__global__ void __launch_bounds__(kThreads, 1)
    end_backward_kernel(const __grid_constant__ EndBackward s) {
  after_earlier();
  if (!kCompiled<kHopper>) return;
  extern __shared__ __align__(1024) unsigned char shared[];
  const Room<kC> room(shared);
  constexpr int kSums = kC / 16 * 32;
  unsigned char *const next_z = room.piece(0, 4, kSums), *const next_p = room.piece(1, 4, kSums),
                       *const next_dout = room.piece(2, 4, kSums),
                       *const own_dq = room.piece(3, 4, kSums);
  Turns<kHopper> turns(s.n);
  Rows16<kC> x, y;
  y.fetch_channels(next_p, s.p, s.stride, turns.row(), s.n, s.wide);
  x.fetch(next_z, s.z, turns.row(), s.n);
  x.fetch(next_dout, s.dout, turns.row(), s.n);
  room.template fill<kHopper>(s.layers, kSums * (blockDim.x / 32));
  const int lane = threadIdx.x % 32;
  float* const sums = room.sums() + threadIdx.x / 32 * kSums + lane;
  for (; turns.left(); turns.next()) {
    const int64_t row0 = turns.row(), next_row = turns.next_row();
    copy_wait<1>();
    y.take_channels(next_p);
    y.statistics();
    y.normalize(room.scale(0), room.offset(0));
    copy_wait<0>();
    x.take(next_z);
    x.statistics();
    x.normalize(room.scale(1), room.offset(1));
    float ratio[2], deviation_y[2], deviation_x[2];
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      deviation_y[b] = reciprocal_fast(y.rstd[b]);
      deviation_x[b] = reciprocal_fast(x.rstd[b]);
      ratio[b] = x.rstd[b] * deviation_y[b];
    }
    const float* const factors[2] = {x.factors_at(s.factors, 0, row0, s.m),
                                     x.factors_at(s.factors, 1, row0, s.m)};
    float dx[kC / 2] = {};
#pragma unroll 1
    for (int j = 0; j < kC / 32; ++j) {
      float o[16], q[16], f[2][8];
      end_layers<kHopper>(o, q, y, x, room, j, [&] {
        for (int b = 0; b < 2; ++b) load_factors(f[b], factors[b], x.channel(j));
      });
      uint32_t to_o[2][4], dq[2][4];
      float sum_o[8] = {}, sum_q[8] = {};
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        float d[8];
        unpack8(x.taken(next_dout, b, j), d);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          float *ok = o + 4 * k + 2 * b, *qk = q + 4 * k + 2 * b;
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            gate_backward(ok[e], qk[e], y.rstd[b] * f[b][2 * k + e] * d[2 * k + e], ratio[b]);
            sum_o[2 * k + e] += deviation_y[b] * ok[e];
            sum_q[2 * k + e] += deviation_x[b] * qk[e];
          }
          to_o[k / 2][b + k % 2 * 2] = pack_bf16(ok[0], ok[1]);
          dq[k / 2][b + k % 2 * 2] = pack_bf16(qk[0], qk[1]);
        }
      }
      start<kHopper>(dx, to_o);
      multiply_back<kHopper, kC>(dx, to_o, room.w(0, j));
      run<kHopper>();
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        const uint4 q_channels = channels_of(dq, b);
        *reinterpret_cast<uint4*>(own_dq + (2 * j + b) * 512) = q_channels;
        if (row0 + x.row(b) >= s.n) continue;
        Bf16* const to = x.own(s.products, row0) + x.off(b, 0) + 32 * j;
        store_whole(to, channels_of(to_o, b));
        store_whole(to + s.n * kC, q_channels);
      }
      add_sums(sums + j * 64, sum_o, sum_q, lane);
      finish<kHopper>(dx);
    }
    // dx is the gradient of LN(p) here, then that of LN(z).
    const int64_t row = row0 + 4 * y.t;
    Bf16* const dp = s.dp + y.first_channel() * s.stride + row;
    norm_backward<kC>(
        dx, y, room.scale(0), [&](int j, uint32_t(&v)[2][4]) { y.take_channels(next_p, j, v); },
        [&](int j, float(&v)[2][8]) {
          if (!s.dp) return;
          uint2 to[4];
#pragma unroll
          for (int k = 0; k < 4; ++k)
            to[k] = make_uint2(transpose_matrix(pack_bf16(v[0][2 * k], v[0][2 * k + 1])),
                               transpose_matrix(pack_bf16(v[1][2 * k], v[1][2 * k + 1])));
          write_channels(to, dp + 32 * j * s.stride, 2 * s.stride, s.n - row, s.wide);
        });
    y.fetch_channels(next_p, s.p, s.stride, next_row, s.n, s.wide);
#pragma unroll
    for (int i = 0; i < kC / 2; ++i) dx[i] = 0;
    uint32_t dq[kC / 16][4];
#pragma unroll
    for (int j = 0; j < kC / 32; ++j)
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        const uint4 v = x.taken(own_dq, b, j);
        dq[2 * j][b] = v.x;
        dq[2 * j][b + 2] = v.y;
        dq[2 * j + 1][b] = v.z;
        dq[2 * j + 1][b + 2] = v.w;
      }
    start<kHopper>(dx, dq);
#pragma unroll
    for (int j = 0; j < kC / 32; ++j)
      multiply_back<kHopper, kC>(dx, reinterpret_cast<const uint32_t(&)[2][4]>(dq[2 * j]),
                                 room.w(1, j));
    run<kHopper>();
    finish<kHopper>(dx);
    norm_backward<kC>(
        dx, x, room.scale(1), [&](int j, uint32_t(&v)[2][4]) { x.take(next_z, j, v); },
        [&](int j, float(&v)[2][8]) {
#pragma unroll
          for (int b = 0; b < 2; ++b) {
            add8(v[b], x.taken(next_dout, b, j));
            if (!s.dz || row0 + x.row(b) >= s.n) continue;
            Bf16* const to = x.own(s.dz, row0) + x.off(b, j);
            if (s.add) add8(v[b], *reinterpret_cast<const uint4*>(to));
            store_whole(to, pack8(v[b]));
          }
          x.fetch(next_z, s.z, next_row, s.n, j);
          x.fetch(next_dout, s.dout, next_row, s.n, j);
        });
    copy_commit();
  }
  leave_sums<kC, 2>(room.sums(), s.sums);
}

/// The ranges of rows whose products are summed apart, so that these fill the GPU: 128 tiles of
/// [128, 128]. They begin at multiples of 16 bytes; behind the last may be a shorter one.
struct Ranges {
  Ranges(int64_t n, int64_t layers)
      : parts(std::clamp<int64_t>(n / 1024, 1, 128 / layers)),
        each(parts == 1 ? n : n / parts / 8 * 8),
        rest(n - parts * each),
        all(parts + (rest > 0)) {}
  /// to [all, width, c] = (x [c, n] d [n, width])^T, of each range.
  void multiply(const Tensor& x, const Tensor& d, const Tensor& to) const {
    const int64_t most = parts * each, c = x.size(0), width = d.size(1);
    const auto of = [&](const Tensor& xs, const Tensor& ds, int64_t first) {
      product(ds.transpose(1, 2), xs.transpose(1, 2), {}, Activation::kNone, {},
              to.narrow(0, first, ds.size(0)));
    };
    of(x.narrow(1, 0, most).view({c, parts, each}).transpose(0, 1),
       d.narrow(0, 0, most).view({parts, each, width}), 0);
    if (rest) of(x.narrow(1, most, rest).unsqueeze(0), d.narrow(0, most, rest).unsqueeze(0), parts);
  }
  int64_t parts, each, rest, all;
};

/// What the layers' gradients are made of: for layer i, products [kC, kC] of each range of rows,
/// columns first, and sums over rows.
template <int kLayers>
struct Finish {
  Layer layers[kLayers];
  float *dscale[kLayers], *doffset[kLayers], *dw[kLayers], *db[kLayers];
  const float* products;  ///< layer i's from i * next, ranges `range` apart
  int64_t next, range, ranges;
  Sums sums;
  int64_t blocks;
};

constexpr int kColumns = 4;  ///< of the products, a block's: 64 or 128 blocks for 128 channels

/// With q = x^T d less its means over the channels of x, w's gradient is scale q + offset sum d,
/// and those of scale and offset are the sums over w's rows of w q and w sum d: the block that is
/// done last adds up those of all, in a fixed order.
/// Block: columns of a layer. A thread first sums every kRuns-th range of one of their channels,
/// then has a column beside the next thread's. What it reads is on its way before it waits for any.
template <int kC, int kLayers>
__global__ void __launch_bounds__(1024) finish_kernel(const __grid_constant__ Finish<kLayers> f) {
  after_earlier();
  constexpr int kOut = kLayers * kC, kRuns = 1024 / (kColumns * kC), kWarps = kC / 32;
  __shared__ float runs[kRuns][kColumns][kC + 8], parts[2][kRuns][kColumns][kWarps],
      of_layers[kLayers][2 * kC];
  __shared__ bool last;
  const int first = blockIdx.x * kColumns, i = first / kC, lane = threadIdx.x % 32,
            k = threadIdx.x % kColumns, c = threadIdx.x / kColumns % kC, o = first % kC + k;
  const Layer& layer = f.layers[i];
  float* const dw = f.dw[i] ? f.dw[i] + c * kC + o : nullptr;
  float* const db = f.db[i] ? f.db[i] + o : nullptr;
  const float scale = layer.scale[c], offset = layer.offset[c], old_w = *(dw ? dw : layer.scale),
              old_b = *(db ? db : layer.scale);
  const Bf16 w = layer.w[c * kC + o];
  {
    const int channel = threadIdx.x % kC, column = threadIdx.x / kC % kColumns,
              run = threadIdx.x / kC / kColumns;
    const float* const rows = f.sums.rows + first + column;
    int64_t b = run * kC + channel;
    float sum = b < f.blocks ? rows[b * kOut] : 0.0f, product = 0;
    const float* const products = f.products + i * f.next + (first % kC + column) * kC + channel;
#pragma unroll 16
    for (int64_t r = run; r < f.ranges; r += kRuns) product += products[r * f.range];
    while ((b += kRuns * kC) < f.blocks) sum += rows[b * kOut];
    runs[run][column][channel] = product;
    sum = warp_sum(sum);
    product = warp_sum(product);
    if (lane == 0) {
      parts[0][run][column][channel / 32] = sum;
      parts[1][run][column][channel / 32] = product;
    }
  }
  __syncthreads();
  float* const weights = f.sums.weights;
  if (threadIdx.x < kColumns * kC) {
    float total = 0, mean = 0, product = 0;
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
#pragma unroll
      for (int j = 0; j < kWarps; ++j) {
        total += parts[0][run][k][j];
        mean += parts[1][run][k][j];
      }
      product += runs[run][k][c];
    }
    product -= mean / kC;
    if (dw) *dw = old_w + (scale * product + offset * total);
    if (db && c == 0) *db = old_b + total;
    const float of_scale = quad_sum(to_float(w) * product),
                of_offset = quad_sum(to_float(w) * total);
    if (k < 2) weights[(blockIdx.x * 2 + k) * kC + c] = k ? of_offset : of_scale;
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(f.sums.done, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last) return;
  const int place = threadIdx.x % (2 * kC), l = threadIdx.x / (2 * kC);
  const auto gradient = [&](int of) {
    float* const to = place < kC ? f.dscale[of] : f.doffset[of];
    return to ? to + place % kC : nullptr;
  };
  float* const to = l < kLayers ? gradient(l) : nullptr;
  float all = to ? *to : 0.0f;
  if (l < kLayers) {
    float own = 0;
#pragma unroll
    for (int b = 0; b < kC / kColumns; ++b)
      own += weights[(l * kC / kColumns + b) * 2 * kC + place];
    of_layers[l][place] = own;
  }
  __syncthreads();
  if (!to) return;
  for (int j = 0; j < kLayers; ++j) {  // where gradients are the same the first one's thread adds
    if (gradient(j) != to) continue;
    if (j < l) return;
    all += of_layers[j][place];
  }
  *to = all;
}

/// Memory for them.
struct SumsRoom {
  SumsRoom(int64_t blocks, int64_t layers, int64_t c)
      : rows(blocks * layers * c),
        weights(layers * c / kColumns * 2 * c),
        memory((rows + weights + 1) * 4) {}
  operator Sums() const {
    float* const at = memory.data<float>();
    return {at, at + rows, reinterpret_cast<unsigned*>(at + rows + weights)};
  }
  int64_t rows, weights;
  Scratch memory;
};

/// From products [ranges, kLayers * kC, kC], or [kLayers, ranges, kC, kC].
template <int kC, int kLayers>
void leave_gradients(const Layer (&layers)[kLayers], const NormedLinear* grads,
                     const Tensor& products, const Sums& sums, int64_t blocks) {
  Finish<kLayers> f{};
  for (int i = 0; i < kLayers; ++i) {
    f.layers[i] = layers[i];
    f.dscale[i] = data_or_null<float>(grads[i].scale);
    f.doffset[i] = data_or_null<float>(grads[i].offset);
    f.dw[i] = data_or_null<float>(grads[i].w);
    f.db[i] = data_or_null<float>(grads[i].b);
  }
  f.products = products.data<float>();
  f.range = products.stride(-3);
  f.ranges = products.size(-3);
  f.next = products.rank() == 4 ? products.stride(0) : kC * kC;
  f.sums = sums;
  f.blocks = blocks;
  launch<finish_kernel<kC, kLayers>>("triangle_finish", kLayers * kC / kColumns, 1024, 0, f);
}

}  // namespace

void triangle_sides_backward(const Tensor& z, const Tensor& mask,
                             const std::vector<NormedLinear>& layers, const Tensor& da,
                             const Tensor& dz, bool add, const std::vector<NormedLinear>& grads) {
  const int64_t n = mask.numel();
  if (!n) return;
  by_variant(z.size(-1), [&](auto channels, auto hopper) {
    constexpr int kC = decltype(channels)::value;
    constexpr bool kHopper = decltype(hopper)::value;
    by_sides<kHopper>(layers.size(), [&](auto sides, int i) {
      constexpr int kSides = decltype(sides)::value, kLayers = 2 * kSides;
      using On = Room<kC, kLayers>;
      const Shape on =
          shape_of<kHopper>(n, kThreads, On::kFixed, On::bytes_of_warp(2, kLayers * kC));
      const Tensor products = Tensor::empty({n, kLayers * kC}, Dtype::bf16, z.device());
      const SumsRoom sums(on.blocks, kLayers, kC);
      SideBackward<kSides> s{{},
                             data<Bf16>(z),
                             mask.data<float>(),
                             data<Bf16>(da) + i * kC * da.stride(0),
                             data_or_null<Bf16>(dz),
                             data<Bf16>(products),
                             sums,
                             n,
                             da.stride(0),
                             is_wide({&da}, n),
                             dz.defined() && (add || i > 0)};
      set_layers(s.layers, layers, i);
      launch<sides_backward_kernel<kC, kHopper, kSides>>("triangle_sides_backward", on.blocks,
                                                         on.threads, on.shared, s);
      const Ranges of(n, kLayers);
      const Tensor made = Tensor::empty({of.all, kLayers * kC, kC}, Dtype::f32, z.device());
      of.multiply(z.view({n, kC}).transpose(0, 1), products, made);
      leave_gradients<kC>(s.layers, &grads[size_t(2 * i)], made, sums, on.blocks);
    });
  });
}

void triangle_end_backward(const Tensor& z, const Tensor& p, const Tensor& factors,
                           const NormedLinear& proj, const NormedLinear& gate, const Tensor& dout,
                           const Tensor& dz, bool add, const Tensor& dp, const NormedLinear& dproj,
                           const NormedLinear& dgate) {
  const int64_t n = z.numel() / z.size(-1);
  if (!n) return;
  by_variant(p.size(0), [&](auto channels, auto hopper) {
    constexpr int kC = decltype(channels)::value;
    constexpr bool kHopper = decltype(hopper)::value;
    const Shape on =
        shape_of<kHopper>(n, kThreads, Room<kC>::kFixed, Room<kC>::bytes_of_warp(4, kC * 2));
    const Tensor products = Tensor::empty({2, n, kC}, Dtype::bf16, z.device());
    const SumsRoom sums(on.blocks, 2, kC);
    const EndBackward s{{layer_of(proj), layer_of(gate)},
                        data<Bf16>(z),
                        data<Bf16>(p),
                        data_or_null<float>(factors),
                        data<Bf16>(dout),
                        data_or_null<Bf16>(dz),
                        data_or_null<Bf16>(dp),
                        data<Bf16>(products),
                        sums,
                        n,
                        z.size(1),
                        p.stride(0),
                        is_wide({&p, &dp}, n),
                        add};
    launch<end_backward_kernel<kC, kHopper>>("triangle_end_backward", on.blocks, on.threads,
                                             on.shared, s);
    const Ranges of(n, 2);
    const Tensor made = Tensor::empty({2, of.all, kC, kC}, Dtype::f32, z.device());
    of.multiply(p.view({kC, n}), products.select(0, 0), made.select(0, 0));
    of.multiply(z.view({n, kC}).transpose(0, 1), products.select(0, 1), made.select(0, 1));
    const NormedLinear grads[2] = {dproj, dgate};
    leave_gradients<kC>(s.layers, grads, made, sums, on.blocks);
  });
}

}  // namespace ff::cuda
