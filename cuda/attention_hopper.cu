// Attention forward on Hopper. A block takes 128 queries of one head, 64 a warpgroup, for four rows
// of the batch: a tile of the bias is read once for the four, and while the exponentials of one
// row are computed the matrix unit has the next row's logits and the last row's averages.
#include "cuda/attention_mma.cuh"
#include "cuda/wgmma.cuh"

namespace ff::cuda {
namespace {

constexpr int kQueries = 128, kKeys = 64, kParts = 4, kThreads = 256, kGroupRows = 64;
constexpr int kBiasPitch = kKeys + 8;  ///< 8-byte reads of 8 rows meet no bank twice

template <int kC, bool kBias>
struct Layout {
  static constexpr int kTileBytes =
      kKeys * kC * 2;  ///< of keys, of values, of a warpgroup's queries
  static constexpr int kQueryBytes = kParts * kQueries / kGroupRows * kTileBytes;
  static constexpr int kMaskAt = 2 * kParts * kTileBytes;
  static constexpr int kBiasAt = kMaskAt + kParts * kKeys * 4;
  static constexpr int kBytes = kBiasAt + (kBias ? kQueries * kBiasPitch * 4 : 0);
  static_assert(kTileBytes % 1024 == 0 && kBytes % 1024 == 0);
};

template <int kC, bool kBias>
__global__ void __launch_bounds__(kThreads, 1) forward_kernel(Operands a) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using L = Layout<kC, kBias>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const int lane = threadIdx.x % 32, warpgroup = threadIdx.x / 128;
  const int tiles = (a.n_query + kQueries - 1) / kQueries, groups = (a.batch + kParts - 1) / kParts;
  const int q_tile = blockIdx.x % tiles, b0 = int(blockIdx.x / tiles % groups) * kParts;
  const int64_t h = blockIdx.x / tiles / groups;
  const int row0 = q_tile * kQueries;
  const int local = warpgroup * kGroupRows + threadIdx.x / 32 % 4 * 16 + lane / 4;
  const auto batch_row = [&](int r) { return int64_t(min(b0 + r, a.batch - 1)); };
  const uint32_t base = shared_address(shared), stages = base + L::kQueryBytes;

  constexpr int kChunks = kC / 8, kCopies = kKeys * kChunks;
  const auto copy_rows = [&](uint32_t to, const HeadView<const __nv_bfloat16>& view, int64_t b,
                             int first, int n, int c, int i) {
    const int row = i / kChunks, chunk = i % kChunks;
    const bool there = first + row < n && chunk * 8 < c;
    const __nv_bfloat16* from = view.at(b, there ? first + row : 0, h) + (there ? chunk * 8 : 0);
    copy_async16(to + chunk_offset<kC>(row, chunk), from, there ? 16 : 0);
  };
  const auto copy = [&](int key0, int stage) {
    const uint32_t at = stages + stage * L::kBytes;
#pragma unroll
    for (int r = 0; r < kParts; ++r)
#pragma unroll
      for (int i = 0; i < 2 * kCopies; i += kThreads) {
        const int copy = i + threadIdx.x;
        if (copy < kCopies)
          copy_rows(at + 2 * r * L::kTileBytes, a.k, batch_row(r), key0, a.n_key, a.c, copy);
        else
          copy_rows(at + (2 * r + 1) * L::kTileBytes, a.v, batch_row(r), key0, a.n_key, a.c_v,
                    copy - kCopies);
      }
    if (a.mask) {
      const int r = threadIdx.x / kKeys, key = key0 + threadIdx.x % kKeys;
      const float* from = a.mask + batch_row(r) * a.mask_batch;
      copy_async4(at + L::kMaskAt + threadIdx.x * 4, key < a.n_key ? from + key * a.mask_key : from,
                  key < a.n_key ? 4 : 0);
    }
    if constexpr (kBias)
      copy_bias<kQueries, kKeys, kBiasPitch>(at + L::kBiasAt, a, h, row0, key0, threadIdx.x,
                                             kThreads);
  };
#pragma unroll
  for (int r = 0; r < kParts; ++r)
    for (int i = threadIdx.x; i < kQueries * kChunks; i += kThreads) {
      const int group = i / (kGroupRows * kChunks);
      copy_rows(base + (2 * r + group) * L::kTileBytes, a.q, batch_row(r),
                row0 + group * kGroupRows, a.n_query, a.c, i % (kGroupRows * kChunks));
    }
  copy(0, 0);
  copy_commit();

  float out[kParts][kC / 2] = {}, sum[kParts][2] = {}, high[kParts][2], x[2][32] = {};
  uint32_t weights[4][4];
#pragma unroll
  for (int r = 0; r < kParts; ++r) high[r][0] = high[r][1] = -INFINITY;

  int stage = 0;
  for (int key0 = 0; key0 < a.n_key; key0 += kKeys, stage ^= 1) {
    copy_wait<0>();
    fence_shared();
    __syncthreads();  // this tile is there, and all are done with the one before
    if (key0 + kKeys < a.n_key) copy(key0 + kKeys, stage ^ 1);
    copy_commit();
    const uint32_t at = stages + stage * L::kBytes;
    const auto scores = [&](int r) {
      const uint64_t q = wgmma_tile<kC>(base + (2 * r + warpgroup) * L::kTileBytes),
                     k = wgmma_tile<kC>(at + 2 * r * L::kTileBytes);
      wgmma_fence();
      wgmma_rows<true>(x[r & 1], q, k);
#pragma unroll
      for (int step = 1; step < kC / 16; ++step)
        wgmma_rows<false>(x[r & 1], q + 2 * step, k + 2 * step);
      wgmma_commit();
    };
    scores(0);
    float bias[32];
    if constexpr (kBias) {
      const auto* from =
          reinterpret_cast<const float*>(shared + L::kQueryBytes + stage * L::kBytes + L::kBiasAt) +
          local * kBiasPitch + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float2 v = *reinterpret_cast<const float2*>(from + 8 * i * kBiasPitch + 8 * n);
          bias[4 * n + 2 * i] = v.x * kLog2e;
          bias[4 * n + 2 * i + 1] = v.y * kLog2e;
        }
    }
#pragma unroll
    for (int r = 0; r < kParts; ++r) {
      float(&w)[32] = x[r & 1];
      // In order: logits of r, averages of r - 1, logits of r + 1.
      if (r + 1 < kParts) {
        scores(r + 1);
        r ? wgmma_wait<2>() : wgmma_wait<1>();
      } else {
        wgmma_wait<1>();
      }
      keep_registers(w);
#pragma unroll
      for (int e = 0; e < 32; ++e) w[e] = kBias ? fmaf(w[e], a.scale2, bias[e]) : w[e] * a.scale2;
      if (a.mask || key0 + kKeys > a.n_key) {
        const auto* mask = reinterpret_cast<const float*>(shared + L::kQueryBytes +
                                                          stage * L::kBytes + L::kMaskAt) +
                           r * kKeys;
        unsigned kept[2];
#pragma unroll
        for (int i = 0; i < 2; ++i)
          kept[i] = __ballot_sync(
              ~0u, key0 + 32 * i + lane < a.n_key && (!a.mask || mask[32 * i + lane] != 0));
        if ((kept[0] & kept[1]) != ~0u) {
#pragma unroll
          for (int e = 0; e < 32; ++e) {
            const int key = e / 4 * 8 + lane % 4 * 2 + e % 2;
            if (!(kept[e / 16] >> (key & 31) & 1))
              w[e] = key0 + key < a.n_key ? kMaskedLogit : -INFINITY;
          }
        }
      }
      // As in attention_mma.cu: the reference may stay behind by 8 powers of two.
      float top[2] = {w[0], w[2]};
#pragma unroll
      for (int e = 0; e < 32; ++e) top[e / 2 % 2] = fmaxf(top[e / 2 % 2], w[e]);
      if (__any_sync(~0u, top[0] > high[r][0] + 8 || top[1] > high[r][1] + 8)) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float t = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], 1));
          t = fmaxf(t, __shfl_xor_sync(~0u, t, 2));
          t = fmaxf(t, high[r][i]);
          const float factor = exp2_fast(high[r][i] - t);
          high[r][i] = t;
          sum[r][i] *= factor;
#pragma unroll
          for (int j = 0; j < kC / 8; ++j) {
            out[r][4 * j + 2 * i] *= factor;
            out[r][4 * j + 2 * i + 1] *= factor;
          }
        }
      }
#pragma unroll
      for (int e = 0; e < 32; ++e) {
        w[e] = exp2_fast(w[e] - high[r][e / 2 % 2]);
        sum[r][e / 2 % 2] += w[e];
      }
      r + 1 < kParts ? wgmma_wait<1>() : wgmma_wait<0>();  // averages of r - 1 use `weights`
#pragma unroll
      for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          weights[k][e] = pack_bf16(w[8 * k + 2 * e], w[8 * k + 2 * e + 1]);
      const uint64_t v = wgmma_tile<kC>(at + (2 * r + 1) * L::kTileBytes);
      keep_registers(out[r]);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k) wgmma_channels(out[r], weights[k], v + k * 2 * kC);
      wgmma_commit();
    }
    wgmma_wait<0>();
#pragma unroll
    for (int r = 0; r < kParts; ++r) keep_registers(out[r]);
  }
#pragma unroll
  for (int r = 0; r < kParts; ++r) {
    const int64_t b = b0 + r;
    if (b >= a.batch) break;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float total = sum[r][i];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      const int row = row0 + local + 8 * i;
      if (row >= a.n_query) continue;
      if (a.lse && lane % 4 == 0)
        a.lse[(b * a.n_head + h) * a.n_query + row] =
            high[r][i] == kMaskedLogit ? INFINITY : high[r][i] + log2f(total);
      const float inverse = 1 / total;
#pragma unroll
      for (int j = 0; j < kC / 8; ++j) {
        const int channel = 8 * j + lane % 4 * 2;
        if (channel >= a.c_v) continue;
        float low = out[r][4 * j + 2 * i] * inverse, up = out[r][4 * j + 2 * i + 1] * inverse;
        if (a.gate.base) {
          const auto g = *reinterpret_cast<const uint32_t*>(a.gate.at(b, row, h) + channel);
          low *= 1 / (1 + exp2_fast(-kLog2e * low_bf16(g)));
          up *= 1 / (1 + exp2_fast(-kLog2e * high_bf16(g)));
        }
        *reinterpret_cast<uint32_t*>(a.o.at(b, row, h) + channel) = pack_bf16(low, up);
      }
    }
  }
#endif
}

template <int kC, bool kBias>
void forward(const Operands& a) {
  using L = Layout<kC, kBias>;
  launch<forward_kernel<kC, kBias>>(
      "attention", ceil_div(a.n_query, kQueries) * ceil_div(a.batch, kParts) * int64_t(a.n_head),
      kThreads, L::kQueryBytes + 2 * L::kBytes, a);
}

}  // namespace

bool attention_hopper(const Operands& a) {
  const int c = std::max(a.c, a.c_v);
  if (c > 32 || a.n_query < kGroupRows || a.n_key < kKeys) return false;
  if (c <= 16)
    a.bias ? forward<16, true>(a) : forward<16, false>(a);
  else
    a.bias ? forward<32, true>(a) : forward<32, false>(a);
  return true;
}

}  // namespace ff::cuda
