// Attention forward on tensor cores: softmax and both products of a tile stay in registers.
#include "cuda/attention_mma.cuh"

namespace ff::cuda {
namespace {

constexpr int kBiasPitch = kTile + 8;  ///< 8-byte reads of 8 rows meet no bank twice

/// kParts rows of the batch side by side share the bias's tiles; each has four warps.
template <int kC, int kParts, bool kBias>
struct Stage {
  static constexpr int kTileBytes = kTile * kC * 2;
  static constexpr int kBiasAt = 2 * kParts * kTileBytes;
  static constexpr int kBytes = kBiasAt + (kBias ? kPartRows * kBiasPitch * 4 : 0);
};

template <int kC, int kParts, bool kBias>
__global__ void __launch_bounds__(kParts* kPartThreads, kC == 64 ? 1 : 4 / kParts)
    forward_kernel(Operands a) {
  using S = Stage<kC, kParts, kBias>;
  extern __shared__ __align__(128) unsigned char shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % kPartWarps;
  const int part = threadIdx.x / kPartThreads, thread = threadIdx.x % kPartThreads;
  const int tiles = (a.n_query + kPartRows - 1) / kPartRows,
            groups = (a.batch + kParts - 1) / kParts;
  const int q_tile = blockIdx.x % tiles, group = blockIdx.x / tiles % groups;
  const int64_t h = blockIdx.x / tiles / groups;
  const bool active = group * kParts + part < a.batch;
  const int64_t b = active ? group * kParts + part : a.batch - 1;
  const int row0 = q_tile * kPartRows, row = row0 + warp * kWarpRows;

  RowFragments<kC> q;
  q.load(a.q, b, h, row, a.n_query, a.c, lane);
  float out[2][kC / 8][4] = {}, sums[2][4] = {}, high[2][2], limit[2][2];
#pragma unroll
  for (int m = 0; m < 2; ++m) high[m][0] = high[m][1] = limit[m][0] = limit[m][1] = -INFINITY;

  const uint32_t base = shared_address(shared);
  const auto copy = [&](int key0, int stage) {
    const uint32_t at = base + stage * S::kBytes, mine = at + part * 2 * S::kTileBytes;
    copy_tile<kC>(mine, a.k, b, h, key0, a.n_key, a.c, thread);
    copy_tile<kC>(mine + S::kTileBytes, a.v, b, h, key0, a.n_key, a.c_v, thread);
    if constexpr (kBias)
      copy_bias<kPartRows, kTile, kBiasPitch>(at + S::kBiasAt, a, h, row0, key0, threadIdx.x,
                                              kParts * kPartThreads);
  };
  copy(0, 0);
  copy_commit();
  int stage = 0;
  for (int key0 = 0; key0 < a.n_key; key0 += kTile, stage ^= 1) {
    if (key0 + kTile < a.n_key) copy(key0 + kTile, stage ^ 1);
    copy_commit();
    const KeyBits keys = key_bits(a, b, key0, lane);
    copy_wait<1>();
    __syncthreads();
    const uint32_t k_tile = base + stage * S::kBytes + part * 2 * S::kTileBytes,
                   v_tile = k_tile + S::kTileBytes;
    float x[2][2][2][4];  // by 16 keys, 16 rows, 8 keys
#pragma unroll
    for (int p = 0; p < 2; ++p) {
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float2 value = {0, 0};
            if constexpr (kBias) {
              value = *reinterpret_cast<const float2*>(
                  shared + stage * S::kBytes + S::kBiasAt +
                  ((warp * kWarpRows + 16 * m + 8 * i + lane / 4) * kBiasPitch + 16 * p + 8 * n +
                   lane % 4 * 2) *
                      4);
              value.x *= a.inverse_scale;
              value.y *= a.inverse_scale;
            }
            x[p][m][n][2 * i] = value.x;
            x[p][m][n][2 * i + 1] = value.y;
          }
      multiply_rows<kC>(x[p], q, k_tile, 16 * p, lane);
    }
    // Bit e of a thread's key n of p: 16 p + 8 n + 2 t + e.
    const unsigned there = keys.there >> lane % 4 * 2, kept = keys.kept >> lane % 4 * 2;
    if (keys.kept != ~0u) {
#pragma unroll
      for (int p = 0; p < 2; ++p)
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              const unsigned bit = 1u << (16 * p + 8 * n + e % 2);
              if (!(kept & bit)) x[p][m][n][e] = there & bit ? kMaskedLogit : -INFINITY;
            }
    }
    // The reference that is taken off may stay behind the maximum by 8 powers of two: only rarely
    // must what was summed be scaled.
    float top[2][2];
    bool grows = false;
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        top[m][i] = fmaxf(fmaxf(fmaxf(x[0][m][0][2 * i], x[0][m][0][2 * i + 1]),
                                fmaxf(x[0][m][1][2 * i], x[0][m][1][2 * i + 1])),
                          fmaxf(fmaxf(x[1][m][0][2 * i], x[1][m][0][2 * i + 1]),
                                fmaxf(x[1][m][1][2 * i], x[1][m][1][2 * i + 1])));
        grows |= top[m][i] > limit[m][i];
      }
    if (__any_sync(~0u, grows)) {
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float t = top[m][i];
          t = fmaxf(t, __shfl_xor_sync(~0u, t, 1));
          t = fmaxf(t, __shfl_xor_sync(~0u, t, 2));
          t = fmaxf(t, high[m][i]);
          const float factor = exp2_fast((high[m][i] - t) * a.scale2);
          high[m][i] = t;
          limit[m][i] = t + 8 / a.scale2;
          sums[m][2 * i] *= factor;
#pragma unroll
          for (int j = 0; j < kC / 8; ++j) {
            out[m][j][2 * i] *= factor;
            out[m][j][2 * i + 1] *= factor;
          }
        }
    }
#pragma unroll
    for (int p = 0; p < 2; ++p) {
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            x[p][m][n][e] = exp2_fast(fmaf(x[p][m][n][e], a.scale2, -high[m][e / 2] * a.scale2));
      if (keys.kept != ~0u) {
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              const unsigned bit = 1u << (16 * p + 8 * n + e % 2);
              if (!(kept & bit))
                x[p][m][n][e] = there & bit && high[m][e / 2] == kMaskedLogit ? 1.0f : 0.0f;
            }
      }
      uint32_t weights[2][4];
      pack(weights, x[p]);
      constexpr uint32_t kOnes = 0x3f803f80;
#pragma unroll
      for (int m = 0; m < 2; ++m) mma(sums[m], weights[m], kOnes, kOnes);
      multiply_channels<kC>(out, weights, v_tile, 16 * p, lane);
    }
    __syncthreads();
  }
  if (!active) return;
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = row + 16 * m + 8 * i + lane / 4;
      if (r >= a.n_query) continue;
      const float sum = sums[m][2 * i], inverse = 1 / sum;
      if (a.lse && lane % 4 == 0)
        a.lse[(b * a.n_head + h) * a.n_query + r] =
            high[m][i] == kMaskedLogit ? INFINITY : fmaf(high[m][i], a.scale2, log2f(sum));
#pragma unroll
      for (int j = 0; j < kC / 8; ++j) {
        const int channel = 8 * j + lane % 4 * 2;
        if (channel >= a.c_v) continue;
        float low = out[m][j][2 * i] * inverse, up = out[m][j][2 * i + 1] * inverse;
        if (a.gate.base) {
          const auto g = *reinterpret_cast<const uint32_t*>(a.gate.at(b, r, h) + channel);
          low *= 1 / (1 + exp2_fast(-kLog2e * low_bf16(g)));
          up *= 1 / (1 + exp2_fast(-kLog2e * high_bf16(g)));
        }
        *reinterpret_cast<uint32_t*>(a.o.at(b, r, h) + channel) = pack_bf16(low, up);
      }
    }
}

template <int kC, int kParts, bool kBias>
void forward(const Operands& a) {
  const int64_t blocks =
      ceil_div(a.n_query, kPartRows) * ceil_div(a.batch, kParts) * int64_t(a.n_head);
  launch<forward_kernel<kC, kParts, kBias>>("attention", blocks, kParts * kPartThreads,
                                            2 * Stage<kC, kParts, kBias>::kBytes, a);
}

template <int kC>
void forward_of(const Operands& a) {
  a.bias ? forward<kC, 2, true>(a) : forward<kC, 1, false>(a);
}

}  // namespace

void attention_mma(const Operands& a) {
  const int c = std::max(a.c, a.c_v);
  c <= 16 ? forward_of<16>(a) : c <= 32 ? forward_of<32>(a) : forward_of<64>(a);
}

}  // namespace ff::cuda
