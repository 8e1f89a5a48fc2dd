// Triangle multiplication by tensor cores, backward: everything but the weights' gradients, which
// are products over all pairs of what the kernels leave.
#include "cuda/blas.h"
#include "cuda/table.h"
#include "cuda/triangle_mma.cuh"

namespace ff::cuda {
namespace {

constexpr int kSideThreads = 384, kEndThreads = 256;

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

/// Layer norm's gradient from dx, that of LN(x) in registers, and x, of which raw(j, v) gives group
/// j: f(j, y) gets the gradients of the rows' channels of the group.
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
  // The gradient is rstd (d - mean(d) - n mean(d n)), n = (x - mean) rstd: rstd d + slope x + rest.
  float slope[2], rest[2];
#pragma unroll
  for (int b = 0; b < 2; ++b) {
    const float mean_d = quad_sum(sum[b]) / kC, rstd = x.rstd[b];
    slope[b] = -rstd * rstd * rstd * (quad_sum(product[b]) / kC - x.mean[b] * mean_d);
    rest[b] = -rstd * mean_d - slope[b] * x.mean[b];
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
        y[b][i] = x.rstd[b] * fragment(dx, 4 * j + i / 2)[2 * b + i % 2] +
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

/// From p and q of p sigmoid(q), and its gradient d, theirs, in their place.
__device__ __forceinline__ void gate_backward(float& p, float& q, float d) {
  const float gate = sigmoid_fast(q), to_p = d * gate;
  q = to_p * p * (1 - gate);
  p = to_p;
}

template <int kC, bool kHopper>
__global__ void __launch_bounds__(kSideThreads, 1)
    side_backward_kernel(const __grid_constant__ SideBackward s) {
  if (!kCompiled<kHopper>) return;
  extern __shared__ __align__(1024) unsigned char shared[];
  const Room<kC> room(shared);
  constexpr int kSums = kC / 16 * 32;
  unsigned char *const next_z = room.piece(0, 3, kSums), *const next_da = next_z + Room<kC>::kPiece,
                       *const old_dz = next_da + Room<kC>::kPiece;
  Turns<kHopper> turns(s.n);
  Rows16<kC> x;
  x.fetch(next_z, s.z, turns.row(), s.n);
  x.fetch_channels(next_da, s.da, s.stride, turns.row(), s.n, s.wide);
  room.template fill<kHopper>(s.proj, s.gate, kSums * (blockDim.x / 32));
  const int lane = threadIdx.x % 32;
  float* const sums = room.sums() + threadIdx.x / 32 * kSums + lane;
  for (; turns.left(); turns.next()) {
    const int64_t row0 = turns.row(), next_row = turns.next_row();
    float keep[2];
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const int64_t r = row0 + x.row(b);
      keep[b] = r < s.n ? s.mask[r] : 0.0f;
    }
    copy_wait<0>();
    x.take(next_z);
    if (s.add) x.fetch(old_dz, s.dz, row0, s.n);
    x.statistics();
    x.normalize(room.scale(0), room.offset(0), s.normed, row0, s.n);
    float dx[kC / 2] = {};
#pragma unroll 1
    for (int j = 0; j < kC / 32; ++j) {
      float d[32];  // projection, gate
      side_layers<kHopper>(d, x, room, j);
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
            sum_p[2 * k + e] += p[e];
            sum_q[2 * k + e] += q[e];
          }
          dp[k / 2][b + k % 2 * 2] = pack_bf16(p[0], p[1]);
          dq[k / 2][b + k % 2 * 2] = pack_bf16(q[0], q[1]);
        }
      }
      start<kHopper>(dx, dp, dq);
      multiply_back<kHopper, kC>(dx, dp, room.w(0, j));
      multiply_back<kHopper, kC>(dx, dq, room.w(1, j));
      run<kHopper>();
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        if (row0 + x.row(b) >= s.n) continue;
        Bf16* const to = x.template own<2 * kC>(s.products, row0) + x.template off<2 * kC>(b, j);
        store_whole(to, channels_of(dp, b));
        store_whole(to + kC, channels_of(dq, b));
      }
      add_sums(sums + j * 64, sum_p, sum_q, lane);
      finish<kHopper>(dx);
    }
    x.fetch_channels(next_da, s.da, s.stride, next_row, s.n, s.wide);
    copy_wait<1>();
    norm_backward<kC>(
        dx, x, room.scale(0), [&](int j, uint32_t(&v)[2][4]) { x.take(next_z, j, v); },
        [&](int j, float(&y)[2][8]) {
          x.fetch(next_z, s.z, next_row, s.n, j);
#pragma unroll
          for (int b = 0; b < 2; ++b) {
            if (s.add) add8(y[b], x.taken(old_dz, b, j));
            if (s.dz && row0 + x.row(b) < s.n)
              store_whole(x.own(s.dz, row0) + x.off(b, j), pack8(y[b]));
          }
        });
    copy_commit();
  }
  leave_sums<kC>(room.sums(), s.partial + int64_t(blockIdx.x) * 2 * kC);
}

template <int kC, bool kHopper>
__global__ void __launch_bounds__(kEndThreads, 1)
    end_backward_kernel(const __grid_constant__ EndBackward s) {
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
  room.template fill<kHopper>(s.proj, s.gate, kSums * (blockDim.x / 32));
  const int lane = threadIdx.x % 32;
  float* const sums = room.sums() + threadIdx.x / 32 * kSums + lane;
  for (; turns.left(); turns.next()) {
    const int64_t row0 = turns.row(), next_row = turns.next_row();
    copy_wait<0>();
    y.take_channels(next_p);
    y.statistics();
    y.normalize(room.scale(0), room.offset(0), s.normed, row0, s.n);
    x.take(next_z);
    x.statistics();
    x.normalize(room.scale(1), room.offset(1), s.normed + s.n * kC, row0, s.n);
    const float* const factors[2] = {x.factors_at(s.factors, 0, row0, s.m),
                                     x.factors_at(s.factors, 1, row0, s.m)};
    float dx[kC / 2] = {};
#pragma unroll 1
    for (int j = 0; j < kC / 32; ++j) {
      float o[16], q[16], f[2][8];
      end_layers<kHopper>(o, q, f, y, x, room, factors, j);
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
            gate_backward(ok[e], qk[e], d[2 * k + e] * f[b][2 * k + e]);
            sum_o[2 * k + e] += ok[e];
            sum_q[2 * k + e] += qk[e];
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

void triangle_side_backward(const Tensor& z, const Tensor& mask, const NormedLinear& proj,
                            const NormedLinear& gate, const Tensor& da, const Tensor& dz, bool add,
                            const NormedLinear& dproj, const NormedLinear& dgate) {
  const int64_t n = mask.numel();
  if (!n) return;
  by_variant(da.size(0), [&](auto channels, auto hopper) {
    constexpr int kC = decltype(channels)::value;
    constexpr bool kHopper = decltype(hopper)::value;
    const Shape on =
        shape_of<kHopper>(n, kSideThreads, Room<kC>::kFixed, Room<kC>::bytes_of_warp(3, kC * 2));
    const Tensor normed = Tensor::empty({1, n, kC}, Dtype::bf16, z.device()),
                 products = Tensor::empty({1, n, 2 * kC}, Dtype::bf16, z.device()),
                 sums = Tensor::empty({1, kC, 2 * kC}, Dtype::f32, z.device());
    const Scratch partial(on.blocks * 2 * kC * 4);
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
                         is_wide({&da}, n),
                         add};
    launch<side_backward_kernel<kC, kHopper>>("triangle_side_backward", on.blocks, on.threads,
                                              on.shared, s);
    product(normed.transpose(1, 2), products, {}, Activation::kNone, {}, sums);
    finish<kC>({proj, gate}, {dproj, dgate}, sums, partial, on.blocks);
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
        shape_of<kHopper>(n, kEndThreads, Room<kC>::kFixed, Room<kC>::bytes_of_warp(4, kC * 2));
    const Tensor normed = Tensor::empty({2, n, kC}, Dtype::bf16, z.device()),
                 products = Tensor::empty({2, n, kC}, Dtype::bf16, z.device()),
                 sums = Tensor::empty({2, kC, kC}, Dtype::f32, z.device());
    const Scratch partial(on.blocks * 2 * kC * 4);
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
                        is_wide({&p, &dp}, n),
                        add};
    launch<end_backward_kernel<kC, kHopper>>("triangle_end_backward", on.blocks, on.threads,
                                             on.shared, s);
    product(normed.transpose(1, 2), products, {}, Activation::kNone, {}, sums);
    finish<kC>({proj, gate}, {dproj, dgate}, sums, partial, on.blocks);
  });
}

}  // namespace ff::cuda
