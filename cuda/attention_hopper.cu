// Attention forward on Hopper's asynchronous matrix unit. A block is two warpgroups: each takes 64
// queries of two rows of the batch, which share the bias, and passes over the keys in tiles of 64.
#include "cuda/attention_hopper.cuh"

namespace ff::cuda {
namespace {

constexpr int kGroups = 2, kThreads = kGroups * kGroupThreads, kQueries = kGroups * kTileRows;

template <int kC>
struct Layout {
  static constexpr int kTileBytes = kTileRows * kC * 2;
  /// q, and as much again: the gate, and then the output.
  static constexpr int kOwnBytes = kRows * kGroups * kTileBytes;
  static constexpr int kStages = 3, kStageBytes = 2 * kRows * kTileBytes;  ///< keys, values
  static constexpr int kStagesAt = 2 * kOwnBytes, kOnesAt = kStagesAt + kStages * kStageBytes,
                       kBitsAt = kOnesAt + 16 * kC * 2;
};

template <int kC, bool kBias>
__global__ void __launch_bounds__(kThreads, 2) forward_kernel(Operands a, BiasPieces bias) {
  after_earlier();
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using L = Layout<kC>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const int lane = threadIdx.x % 32, index = __shfl_sync(~0u, int(threadIdx.x) / 32, 0),
            warp = index % 4, group = index / 4;
  const int tiles = (a.n_key + kTileRows - 1) / kTileRows, words = 2 * tiles;
  const int query0 = blockIdx.x * kQueries, b0 = blockIdx.y * kRows;
  const int h = blockIdx.z;
  const int there = min(kRows, a.batch - b0);  // of the rows of the batch

  const uint32_t own = shared_address(shared), stages = own + L::kStagesAt;
  using Copy = TileCopy<kC, kThreads>;
  Copy k(a.k, b0, h, 0, a.c, threadIdx.x), v(a.v, b0, h, 0, a.c_v, threadIdx.x);
  const auto beyond = [&](const HeadView<const __nv_bfloat16>& view, int r) {
    return r < there ? r * view.batch : 0;
  };
  // Keys and values: tiles in their order.
  const auto copy = [&](int tile, int stage) {
    const uint32_t to = stages + stage * L::kStageBytes;
    const int n = a.n_key - tile * kTileRows;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      k.copy(a.k, to + 2 * r * L::kTileBytes, n, beyond(a.k, r));
      v.copy(a.v, to + (2 * r + 1) * L::kTileBytes, n, beyond(a.v, r));
    }
    k.from += kTileRows * a.k.row;
    v.from += kTileRows * a.v.row;
  };
  // Tiles [r][group] of queries or of what is as large.
  const auto copy_own = [&](uint32_t to, const HeadView<const __nv_bfloat16>& view, int c) {
    const Copy from(view, b0, h, query0, c, threadIdx.x);
#pragma unroll
    for (int i = 0; i < kRows * kGroups; ++i) {
      const int r = i / kGroups, row0 = i % kGroups * kTileRows;
      from.copy(view, to + i * L::kTileBytes, a.n_query - query0 - row0,
                beyond(view, r) + row0 * view.row);
    }
  };
  copy_own(own, a.q, a.c);
  copy(0, 0);
  copy_commit();
  if (tiles > 1) copy(1, 1);
  if (a.gate.base) copy_own(own + L::kOwnBytes, a.gate, a.c_v);
  copy_commit();

  // Weights are 2^-32 where a row's logit is what the largest of the first keys was. Their sums are
  // f32, and bf16 reaches as far: only 2 and more, of a logit 33 powers of two above those, are a
  // reason to count again from the largest so far.
  constexpr float kBelowFirst = 32;
  constexpr uint32_t kTooLarge = 0x40004000;      // bits of a pair of bf16, set from 2 on
  float out[kRows][kC / 2 + 4] = {}, w[32] = {};  // out: after the channels the sum, twice
  float shift[kRows][2];  // a weight's exponent is its logit in powers of two and this
#pragma unroll
  for (int r = 0; r < kRows; ++r) shift[r][0] = shift[r][1] = -kMaskedLogit * a.scale2;
  uint32_t packed[4][4];
  const int query = query0 + group * kTileRows;  // the warpgroup's first
  const int last = (a.n_query - 1) / kTileRows * kTileRows;
  const uint4* const pieces = kBias ? bias.row(h, min(query, last) / 16 + warp, lane) : nullptr;
  uint32_t unit = unit_fragment(lane);
  asm volatile("" : "+r"(unit));  // or every tile would find it anew
  uint4 piece[4];
  const auto fetch = [&](int tile) {
#pragma unroll
    for (int n = 0; n < 4; ++n) piece[n] = __ldg(pieces + (tile * 4 + n) * 32);
  };
  if constexpr (kBias) fetch(0);

  static_assert(kRows == kGroups);
  auto* const kept_words = reinterpret_cast<unsigned*>(shared + L::kBitsAt);
  keep_key_bits(a, b0 + min(group, there - 1), kept_words + group * words, words, warp, lane);
  if (threadIdx.x < 8 * kC)
    reinterpret_cast<uint32_t*>(shared + L::kOnesAt)[threadIdx.x] = 0x3f803f80;
  const uint64_t q_tile = wgmma_tile<kC>(own + group * L::kTileBytes),
                 first_tile = wgmma_tile<kC>(stages),
                 first_values = wgmma_tile<kC>(stages, L::kOnesAt - L::kStagesAt);
  // The values so many 16 bytes further on, beside the same ones.
  const auto values_at = [](uint64_t values, uint32_t chunks) {
    return wgmma_tile_at(values, chunks - (chunks << 16));
  };
  // w = the bias. By the warp's own products: after those below it would wait for them.
  const auto begin_logits = [&] {
    if constexpr (kBias) {
#pragma unroll
      for (int n = 0; n < 4; ++n)
        begin_with_piece(reinterpret_cast<float(&)[8]>(w[8 * n]), piece[n], unit);
      keep_registers(w);
    }
  };
  // w += the logits of row r and a tile of keys; = where there is no bias.
  const auto multiply_keys = [&](int r, int stage) {
    const uint64_t q = wgmma_tile_at(q_tile, r * (kGroups * L::kTileBytes / 16)),
                   keys = wgmma_tile_at(
                       first_tile, unsigned(stage * L::kStageBytes + 2 * r * L::kTileBytes) / 16);
    wgmma_rows<!kBias>(w, q, keys);
#pragma unroll
    for (int i = 1; i < kC / 16; ++i)
      wgmma_rows<false>(w, wgmma_tile_at(q, 2 * i), wgmma_tile_at(keys, 2 * i));
  };
  // out of row r += the weights times a tile of values, and times ones.
  const auto multiply_values = [&](int r, int stage) {
    const uint64_t values = values_at(
        first_values, unsigned(stage * L::kStageBytes + (2 * r + 1) * L::kTileBytes) / 16);
#pragma unroll
    for (int i = 0; i < 4; ++i) wgmma_channels(out[r], packed[i], values_at(values, i * 2 * kC));
  };
  copy_wait<1>();
  fence_shared();
  __syncthreads();
  begin_logits();
  wgmma_fence();
  multiply_keys(0, 0);
  wgmma_commit();
  wgmma_wait<0>();
  keep_registers(w);

  // Rows of the batch whose keys are all masked: all have the same weight.
  unsigned masked = 0;
  if (a.mask) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      bool any = false;
#pragma unroll 1
      for (int i = lane; i < words; i += 32) any |= kept_words[r * words + i] != 0;
      masked |= unsigned(!__any_sync(~0u, any)) << r;
    }
  }
  int stage = 0;
#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile) {
    const int next_stage = stage == L::kStages - 1 ? 0 : stage + 1;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const auto& both = *reinterpret_cast<const uint2*>(kept_words + r * words + 2 * tile);
      const unsigned kept[2] = {both.x, both.y};
      if ((kept[0] & kept[1]) != ~0u) {
        // Where all are masked, those that exist have one logit.
        const int first = lane % 4 * 2,
                  left = masked >> r & 1 ? a.n_key - tile * kTileRows - first : 0;
#pragma unroll
        for (int e = 0; e < 32; ++e) {
          const int key = e / 4 * 8 + e % 2;
          if (!(kept[e / 16] >> first >> key % 32 & 1)) w[e] = key < left ? 0 : -INFINITY;
        }
      }
      bool count_again = tile == 0;
#pragma unroll 1
      while (true) {
        if (count_again) {
          float top[2] = {w[0], w[2]};
#pragma unroll
          for (int e = 0; e < 32; ++e) top[e / 2 % 2] = fmaxf(top[e / 2 % 2], w[e]);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float t = top[i];
            t = fmaxf(t, __shfl_xor_sync(~0u, t, 1));
            t = fmaxf(t, __shfl_xor_sync(~0u, t, 2));
            t = fminf(fmaf(-t, a.scale2, -kBelowFirst), shift[r][i]);
            const float factor = exp2_fast(t - shift[r][i]);
            shift[r][i] = t;
#pragma unroll
            for (int e = 0; e < kC / 2; ++e)
              if (e / 2 % 2 == i) out[r][e] *= factor;
            out[r][kC / 2 + 2 * i] *= factor;
          }
        }
        uint32_t any = 0;
#pragma unroll
        for (int e = 0; e < 32; e += 2) {
          const float s = shift[r][e / 2 % 2];
          any |= packed[e / 8][e / 2 % 4] =
              pack_bf16(exp2_fast(fmaf(w[e], a.scale2, s)), exp2_fast(fmaf(w[e + 1], a.scale2, s)));
        }
        if (count_again || !__any_sync(~0u, any & kTooLarge)) break;
        count_again = true;
      }
      begin_logits();
      if (kBias && r == 0 && tile + 1 < tiles) fetch(tile + 1);
      keep_registers(out[r]);
      keep_registers(packed);
      // The warpgroups tell each other in the middle of a tile that the next is there and the one
      // before done with, and ask at its end: neither waits for the other's last weights.
      const int barrier = 1 + tile % 2 * kGroups;
      if (r == kRows - 1) barrier_wait<kThreads>(barrier + group);
      // After the last tile no keys are there, and these logits are not used.
      wgmma_fence();
      multiply_keys(1 - r, r == kRows - 1 ? next_stage : stage);
      multiply_values(r, stage);
      wgmma_commit();
      if (r == kRows - 1) {
        if (tile + 2 < tiles) copy(tile + 2, stage ? stage - 1 : L::kStages - 1);
        copy_commit();
      } else {
        copy_wait<0>();
        fence_shared();
        barrier_arrive<kThreads>(barrier + 1 - group);
      }
      wgmma_wait<0>();
      keep_registers(out[r]);
      keep_registers(packed);
      keep_registers(w);
    }
    stage = next_stage;
  }

  // Through shared memory, where the gate is, so that rows are written 16 bytes at a time.
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    unsigned char* const tile = shared + L::kOwnBytes + (r * kGroups + group) * L::kTileBytes;
    const int64_t b = b0 + r;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = warp * 16 + lane / 4 + 8 * i;
      const float inverse = reciprocal_fast(out[r][kC / 2 + 2 * i]);
      if (a.lse && r < there) {
        const float lse = masked >> r & 1 ? INFINITY : log2f(out[r][kC / 2 + 2 * i]) - shift[r][i];
        if (lane % 4 == 0 && query + row < a.n_query)
          a.lse[(b * a.n_head + h) * a.n_query + query + row] = lse;
      }
#pragma unroll
      for (int j = 0; j < kC / 8; ++j) {
        uint32_t& pair = tile_pair<kC>(tile, row, j, lane);
        float low = out[r][4 * j + 2 * i] * inverse, up = out[r][4 * j + 2 * i + 1] * inverse;
        if (a.gate.base) {
          low *= sigmoid_fast(low_bf16(pair));
          up *= sigmoid_fast(high_bf16(pair));
        }
        pair = pack_bf16(low, up);
      }
    }
    store_rows<kC>(a.o, b, h, query, r < there ? a.n_query : 0, a.c_v, tile, warp, lane);
  }
#endif
}

template <int kC, bool kBias>
void forward(const Operands& a) {
  using L = Layout<kC>;
  const PackedBias bias(a);
  const int64_t words = 2 * kRows * ceil_div(a.n_key, kTileRows);
  launch<forward_kernel<kC, kBias>>("attention", row_blocks(a, ceil_div(a.n_query, kQueries)),
                                    kThreads, L::kBitsAt + 4 * words, a, bias.pieces());
}

}  // namespace

void attention_hopper(const Operands& a) {
  if (std::max(a.c, a.c_v) <= 16)
    a.bias ? forward<16, true>(a) : forward<16, false>(a);
  else
    a.bias ? forward<32, true>(a) : forward<32, false>(a);
}

}  // namespace ff::cuda
