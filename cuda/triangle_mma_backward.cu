// Triangle multiplication by tensor cores, backward: everything but the weights' gradients, which
// are products over all pairs of what the kernels leave.
#include "cuda/blas.h"
#include "cuda/table.h"
#include "cuda/triangle_mma.cuh"

namespace ff::cuda {
namespace {

constexpr int kThreads = 256;

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

template <int kC>
__global__ void __launch_bounds__(kThreads, 1)
    side_backward_kernel(const __grid_constant__ SideBackward s) {
  extern __shared__ __align__(128) unsigned char shared[];
  const Room<kC> room(shared);
  constexpr int kWarps = kThreads / 32, kSteps = kC / 16;
  room.fill(s.proj, s.gate, kThreads * kSteps);
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
__global__ void __launch_bounds__(kThreads, 1)
    end_backward_kernel(const __grid_constant__ EndBackward s) {
  extern __shared__ __align__(128) unsigned char shared[];
  const Room<kC> room(shared);
  constexpr int kWarps = kThreads / 32, kSteps = kC / 16;
  room.fill(s.proj, s.gate, kThreads * kSteps);
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
  by_channels(da.size(0), [&](auto channels) {
    constexpr int kC = decltype(channels)::value;
    const int64_t blocks = blocks_for(n, kThreads / 2);
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
    launch<side_backward_kernel<kC>>("triangle_side_backward", blocks, kThreads,
                                     Room<kC>::bytes(kThreads * (kC / 16)), s);
    product(normed.transpose(1, 2), products, {}, Activation::kNone, {}, sums);
    finish<kC>({proj, gate}, {dproj, dgate}, sums, partial, blocks);
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
    const int64_t blocks = blocks_for(n, kThreads / 2);
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
    launch<end_backward_kernel<kC>>("triangle_end_backward", blocks, kThreads,
                                    Room<kC>::bytes(kThreads * (kC / 16)), s);
    product(normed.transpose(1, 2), products, {}, Activation::kNone, {}, sums);
    finish<kC>({proj, gate}, {dproj, dgate}, sums, partial, blocks);
  });
}

}  // namespace ff::cuda
