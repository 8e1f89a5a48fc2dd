// Attention forward on Hopper: as attention_mma.cu, by the asynchronous matrix unit. A block is one
// warpgroup: it takes 64 queries of one row of the batch and passes over the keys in tiles of 64.
#include "cuda/attention_mma.cuh"
#include "cuda/wgmma.cuh"

namespace ff::cuda {
namespace {

constexpr int kTileRows = 64, kThreads = kPartThreads;

template <int kC>
struct Layout {
  static constexpr int kTileBytes = kTileRows * kC * 2;
  static constexpr int kStageBytes = 2 * kTileBytes;  ///< keys, values
  static constexpr int kBitsAt = kTileBytes + 2 * kStageBytes;
};

template <int kC, bool kBias>
__global__ void __launch_bounds__(kThreads, 4) forward_kernel(Operands a, BiasPieces bias) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using L = Layout<kC>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, thread = threadIdx.x;
  const int tiles = (a.n_query + kTileRows - 1) / kTileRows;
  const int row0 = blockIdx.x % tiles * kTileRows;
  const int64_t b = blockIdx.x / tiles % a.batch, h = blockIdx.x / tiles / a.batch;
  const int row = row0 + warp * 16 + lane / 4;  // and 8 rows on

  const uint32_t own = shared_address(shared), stages = own + L::kTileBytes;
  const auto copy = [&](int key0, int stage) {
    const uint32_t to = stages + stage * L::kStageBytes;
    copy_tile<kC, kTileRows>(to, a.k, b, h, key0, a.n_key, a.c, thread);
    copy_tile<kC, kTileRows>(to + L::kTileBytes, a.v, b, h, key0, a.n_key, a.c_v, thread);
  };
  copy_tile<kC, kTileRows>(own, a.q, b, h, row0, a.n_query, a.c, thread);
  copy(0, 0);
  copy_commit();
  // Bits of the keys that are not masked, 32 at a time; read behind the first tile's barrier.
  auto* const kept_words = reinterpret_cast<unsigned*>(shared + L::kBitsAt);
  if (a.mask)
    for (int key0 = warp * 32; key0 < a.n_key; key0 += kThreads) {
      const unsigned kept = key_bits(a, b, key0, lane).kept;
      if (lane == 0) kept_words[key0 / 32] = kept;
    }

  float out[kC / 2] = {}, w[32] = {}, sums[4] = {}, high[2] = {-INFINITY, -INFINITY};
  const float slack = 8 / a.scale2;
  const uint4* const pieces = kBias ? bias.row(h, row0 / 16 + warp, lane) : nullptr;
  const uint32_t unit = unit_fragment(lane);
  uint4 piece[4];
  const auto fetch = [&](int key0) {
    if (kBias && key0 < a.n_key)
#pragma unroll
      for (int n = 0; n < 4; ++n) piece[n] = __ldg(pieces + (key0 / 16 + n) * 32);
  };
  fetch(0);

  for (int key0 = 0, stage = 0; key0 < a.n_key; key0 += kTileRows, stage ^= 1) {
    copy_wait<0>();
    fence_shared();
    __syncthreads();  // this tile is there, and all are done with the one before
    if (key0 + kTileRows < a.n_key) copy(key0 + kTileRows, stage ^ 1);
    copy_commit();
    const uint64_t q_tile = wgmma_tile<kC>(own),
                   k_tile = wgmma_tile<kC>(stages + stage * L::kStageBytes),
                   v_tile = wgmma_tile<kC>(stages + stage * L::kStageBytes + L::kTileBytes);
    keep_registers(w);
    wgmma_fence();
    wgmma_rows<true>(w, q_tile, k_tile);
#pragma unroll
    for (int k = 1; k < kC / 16; ++k) wgmma_rows<false>(w, q_tile + 2 * k, k_tile + 2 * k);
    wgmma_commit();
    // Bit e of a thread's keys of word i: 8 n + e of 32 i + 8 n + 2 t + e.
    unsigned there[2], kept[2];
    bool whole = true;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int left = a.n_key - key0 - 32 * i;
      there[i] = left >= 32 ? ~0u : left <= 0 ? 0u : (1u << left) - 1;
      kept[i] = a.mask && left > 0 ? kept_words[key0 / 32 + i] : there[i];
      whole = whole && kept[i] == ~0u;
      there[i] >>= lane % 4 * 2;
      kept[i] >>= lane % 4 * 2;
    }
    wgmma_wait<0>();
    keep_registers(w);
    if constexpr (kBias) {
#pragma unroll
      for (int n = 0; n < 4; ++n)
        add_piece(reinterpret_cast<float(&)[4]>(w[8 * n]),
                  reinterpret_cast<float(&)[4]>(w[8 * n + 4]), piece[n], unit);
      fetch(key0 + kTileRows);
    }
    const auto bit = [](int e) { return 1u << (e / 4 * 8 % 32 + e % 2); };
    if (!whole) {
#pragma unroll
      for (int e = 0; e < 32; ++e)
        if (!(kept[e / 16] & bit(e))) w[e] = there[e / 16] & bit(e) ? kMaskedLogit : -INFINITY;
    }
    // The reference that is taken off may stay behind the maximum by 8 powers of two: only rarely
    // must what was summed be scaled.
    float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int e = 0; e < 32; ++e) top[e / 2 % 2] = fmaxf(top[e / 2 % 2], w[e]);
    if (__any_sync(~0u, top[0] > high[0] + slack || top[1] > high[1] + slack)) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float t = top[i];
        t = fmaxf(t, __shfl_xor_sync(~0u, t, 1));
        t = fmaxf(t, __shfl_xor_sync(~0u, t, 2));
        t = fmaxf(t, high[i]);
        const float factor = exp2_fast((high[i] - t) * a.scale2);
        high[i] = t;
        sums[2 * i] *= factor;
#pragma unroll
        for (int j = 0; j < kC / 8; ++j) {
          out[4 * j + 2 * i] *= factor;
          out[4 * j + 2 * i + 1] *= factor;
        }
      }
    }
    const float shift[2] = {-high[0] * a.scale2, -high[1] * a.scale2};
#pragma unroll
    for (int e = 0; e < 32; ++e) w[e] = exp2_fast(fmaf(w[e], a.scale2, shift[e / 2 % 2]));
    if (!whole) {
#pragma unroll
      for (int e = 0; e < 32; ++e)
        if (!(kept[e / 16] & bit(e)))
          w[e] = there[e / 16] & bit(e) && high[e / 2 % 2] == kMaskedLogit ? 1.0f : 0.0f;
    }
    uint32_t packed[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int e = 0; e < 4; ++e) packed[k][e] = pack_bf16(w[8 * k + 2 * e], w[8 * k + 2 * e + 1]);
    keep_registers(out);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma_channels(out, packed[k], v_tile + k * 2 * kC);
    wgmma_commit();
    constexpr uint32_t kOnes = 0x3f803f80;
#pragma unroll
    for (int k = 0; k < 4; ++k) mma(sums, packed[k], kOnes, kOnes);
    wgmma_wait<0>();
    keep_registers(out);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = row + 8 * i;
    if (r >= a.n_query) continue;
    const float inverse = 1 / sums[2 * i];
    if (a.lse && lane % 4 == 0)
      a.lse[(b * a.n_head + h) * a.n_query + r] =
          high[i] == kMaskedLogit ? INFINITY : fmaf(high[i], a.scale2, log2f(sums[2 * i]));
#pragma unroll
    for (int j = 0; j < kC / 8; ++j) {
      const int channel = 8 * j + lane % 4 * 2;
      if (channel >= a.c_v) continue;
      float low = out[4 * j + 2 * i] * inverse, up = out[4 * j + 2 * i + 1] * inverse;
      if (a.gate.base) {
        const auto g = *reinterpret_cast<const uint32_t*>(a.gate.at(b, r, h) + channel);
        low *= 1 / (1 + exp2_fast(-kLog2e * low_bf16(g)));
        up *= 1 / (1 + exp2_fast(-kLog2e * high_bf16(g)));
      }
      *reinterpret_cast<uint32_t*>(a.o.at(b, r, h) + channel) = pack_bf16(low, up);
    }
  }
#endif
}

template <int kC>
void forward(const Operands& a) {
  const PackedBias bias(a, false);
  const int64_t blocks = ceil_div(a.n_query, kTileRows) * a.batch * int64_t(a.n_head),
                shared = Layout<kC>::kBitsAt + (a.mask ? 4 * ceil_div(a.n_key, 32) : 0);
  if (a.bias)
    launch<forward_kernel<kC, true>>("attention", blocks, kThreads, shared, a, bias.pieces());
  else
    launch<forward_kernel<kC, false>>("attention", blocks, kThreads, shared, a, bias.pieces());
}

}  // namespace

bool attention_hopper(const Operands& a) {
  const int c = std::max(a.c, a.c_v);
  if (c > 32 || a.n_query < kTileRows || a.n_key < kTileRows) return false;
  c <= 16 ? forward<16>(a) : forward<32>(a);
  return true;
}

}  // namespace ff::cuda
