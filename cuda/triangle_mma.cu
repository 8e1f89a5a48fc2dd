// Triangle multiplication by tensor cores, forward.
#include "cuda/table.h"
#include "cuda/triangle_mma.cuh"

namespace ff::cuda {
namespace {

constexpr int kThreads = 512;

/// z [n, kC], and channels [kC, n] whose rows are `stride` apart: 4 of a channel's are moved at
/// once where `wide`.
template <int kSides>
struct Side {
  Layer layers[2 * kSides];
  const Bf16* z;
  const float* mask;
  Bf16* a;
  int64_t n, stride;
  bool wide;
};

struct End {
  Layer layers[2];
  const Bf16 *z, *p;
  const float* factors;  ///< [m, kC] of row r % m, or nullptr
  Bf16* out;
  int64_t n, m, stride;
  bool wide;
};

template <int kC, bool kHopper, int kSides>
__global__ void __launch_bounds__(kThreads, 1)
    sides_kernel(const __grid_constant__ Side<kSides> s) {
  after_earlier();
  if (!kCompiled<kHopper>) return;
  extern __shared__ __align__(1024) unsigned char shared[];
  const Room<kC, 2 * kSides> room(shared);
  unsigned char* const next_z = room.piece(0, 1);
  Turns<kHopper> turns(s.n);
  Rows16<kC> x;
  x.fetch(next_z, s.z, turns.row(), s.n);
  room.template fill<kHopper>(s.layers);
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
    x.statistics();
    x.fetch(next_z, s.z, next_row, s.n);
    x.normalize(room.scale(0), room.offset(0));
    const int64_t row = row0 + 4 * x.t;
    Bf16* to = s.a + x.first_channel() * s.stride + row;
#pragma unroll 1
    for (int j = 0; j < kSides * kC / 32; ++j, to += 32 * s.stride) {
      float d[32];  // projection, gate
      side_layers<kHopper>(d, x, room, j / (kC / 32) * 2, j % (kC / 32));
      uint2 v[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const auto rows = [&](int b) {
          const float *p = d + 4 * k + 2 * b, *q = p + 16;
          return transpose_matrix(
              pack_bf16(keep[b] * p[0] * sigmoid_fast(q[0]), keep[b] * p[1] * sigmoid_fast(q[1])));
        };
        v[k] = make_uint2(rows(0), rows(1));
      }
      write_channels(v, to, 2 * s.stride, s.n - row, s.wide);
    }
  }
}

template <int kC, bool kHopper>
__global__ void __launch_bounds__(kThreads, 1) end_kernel(const __grid_constant__ End s) {
  after_earlier();
  if (!kCompiled<kHopper>) return;
  extern __shared__ __align__(1024) unsigned char shared[];
  const Room<kC> room(shared);
  unsigned char *const next_p = room.piece(0, 2), *const next_z = room.piece(1, 2);
  Turns<kHopper> turns(s.n);
  Rows16<kC> x, y;
  y.fetch_channels(next_p, s.p, s.stride, turns.row(), s.n, s.wide);
  x.fetch(next_z, s.z, turns.row(), s.n);
  room.template fill<kHopper>(s.layers);
  for (; turns.left(); turns.next()) {
    const int64_t row0 = turns.row(), next_row = turns.next_row();
    copy_wait<1>();
    y.take_channels(next_p);
    y.statistics();
    y.normalize(room.scale(0), room.offset(0));
    y.fetch_channels(next_p, s.p, s.stride, next_row, s.n, s.wide);
    copy_wait<1>();
    x.take(next_z);
    x.statistics();
    x.normalize(room.scale(1), room.offset(1));
    const unsigned m = unsigned(s.m), column = unsigned((row0 + x.row(0)) % s.m);
#pragma unroll 1
    for (int j = 0; j < kC / 32; ++j) {
      float o[16], q[16];
      end_layers<kHopper>(o, q, y, x, room, j, [] {});
#pragma unroll
      for (int b = 0; b < 2; ++b) {  // not both at once, for want of registers
        if (row0 + x.row(b) >= s.n) continue;
        float to[8], f[8];
        unpack8(x.taken(next_z, b, j), to);
        load_factors(f, s.factors ? s.factors + (column + 2 * b) % m * kC : nullptr, x.channel(j));
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int k = i / 2 * 4 + 2 * b + i % 2;
          to[i] += f[i] * o[k] * sigmoid_fast(q[k]);
        }
        store_whole(x.own(s.out, row0) + x.off(b, j), pack8(to));
      }
      __syncwarp();
      x.fetch(next_z, s.z, next_row, s.n, j);
    }
    copy_commit();
  }
}

}  // namespace

void triangle_sides(const Tensor& z, const Tensor& mask, const std::vector<NormedLinear>& layers,
                    const Tensor& a) {
  const int64_t n = mask.numel();
  if (!n) return;
  by_variant(z.size(-1), [&](auto channels, auto hopper) {
    constexpr int kC = decltype(channels)::value;
    constexpr bool kHopper = decltype(hopper)::value;
    by_sides<kHopper>(layers.size(), [&](auto sides, int i) {
      constexpr int kSides = decltype(sides)::value;
      using On = Room<kC, 2 * kSides>;
      Side<kSides> s{{}, data<Bf16>(z), mask.data<float>(), data<Bf16>(a) + i * kC * a.stride(0),
                     n,  a.stride(0),   is_wide({&a}, n)};
      set_layers(s.layers, layers, i);
      const Shape on = shape_of<kHopper>(n, kThreads, On::kFixed, On::bytes_of_warp(1, 0));
      launch<sides_kernel<kC, kHopper, kSides>>("triangle_sides", on.blocks, on.threads, on.shared,
                                                s);
    });
  });
}

void triangle_end(const Tensor& z, const Tensor& p, const Tensor& factors, const NormedLinear& proj,
                  const NormedLinear& gate, const Tensor& out) {
  const int64_t n = z.numel() / z.size(-1);
  if (!n) return;
  by_variant(p.size(0), [&](auto channels, auto hopper) {
    constexpr int kC = decltype(channels)::value;
    constexpr bool kHopper = decltype(hopper)::value;
    const End s{{layer_of(proj), layer_of(gate)},
                data<Bf16>(z),
                data<Bf16>(p),
                data_or_null<float>(factors),
                data<Bf16>(out),
                n,
                z.size(1),
                p.stride(0),
                is_wide({&p}, n)};
    const Shape on =
        shape_of<kHopper>(n, kThreads, Room<kC>::kFixed, Room<kC>::bytes_of_warp(2, 0));
    launch<end_kernel<kC, kHopper>>("triangle_end", on.blocks, on.threads, on.shared, s);
  });
}

}  // namespace ff::cuda
