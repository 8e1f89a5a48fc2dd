// Triangle multiplication by tensor cores, forward.
#include "cuda/table.h"
#include "cuda/triangle_mma.cuh"

namespace ff::cuda {
namespace {

constexpr int kSideThreads = 384, kSideM = 2, kEndThreads = 384;

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

struct End {
  const Bf16 *z, *p;
  const float* factors;  ///< [m, kC] of row r % m, or nullptr
  Layer proj, gate;
  Bf16* out;
  int64_t n, m, stride;
  bool wide;
};

template <int kC>
__global__ void __launch_bounds__(kSideThreads, 1) side_kernel(const __grid_constant__ Side s) {
  extern __shared__ __align__(128) unsigned char shared[];
  const Room<kC> room(shared);
  room.fill(s.proj, s.gate);
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
__global__ void __launch_bounds__(kEndThreads, 1) end_kernel(const __grid_constant__ End s) {
  extern __shared__ __align__(128) unsigned char shared[];
  const Room<kC> room(shared);
  room.fill(s.proj, s.gate);
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

}  // namespace ff::cuda
