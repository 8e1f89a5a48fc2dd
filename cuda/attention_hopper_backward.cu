// Attention backward on Hopper's asynchronous matrix unit. For dq and for dk with dv a block is two
// warpgroups, of two rows of the batch, which share the bias: each takes 64 queries (for dq) or
// keys (for dk and dv), and passes over the other side in tiles of 64. One launch has both kinds of
// blocks, so that the second finds what the first has read.
#include "cuda/attention_hopper.cuh"

namespace ff::cuda {
namespace {

constexpr int kGroups = 2, kThreads = kGroups * kGroupThreads;
constexpr int kNumberBytes = 4 * kThreads;  ///< [group][lse, delta][row] of a tile
static_assert(kTileRows == kDeltaRun);

template <int kC, bool kBias, bool kKeys>
struct Layout {
  static constexpr int kTileBytes = kTileRows * kC * 2, kPairBytes = 2 * kTileBytes;
  /// k and v, or q and d_out; then lse and delta of queries.
  static constexpr int kOwnNumbersAt = kGroups * kPairBytes,
                       kOwnBytes = kOwnNumbersAt + kNumberBytes;
  /// The same of the other side; the bias; and lse and delta of queries.
  static constexpr int kBiasAt = kOwnNumbersAt, kBiasBytes = kBias ? kTileRows * kTileRows * 2 : 0,
                       kNumbersAt = kBiasAt + kBiasBytes,
                       kStageBytes = kNumbersAt + (kKeys ? kNumberBytes : 0);
  static constexpr int kStages = 3;
  /// What is added to, and then the sum.
  static constexpr int kSumBytes = kKeys ? kPairBytes : kTileBytes,
                       kSumsAt = kOwnBytes + kStages * kStageBytes,
                       kBitsAt = kSumsAt + kGroups * kSumBytes;  ///< of keys passed over
};

/// Tile own_tile of a pair of rows of the batch.
template <int kC, bool kBias, bool kKeys>
__device__ __forceinline__ void backward_tile(const Operands& a, const BiasPieces& bias,
                                              const AttentionGradients<__nv_bfloat16>& d,
                                              int own_tile, int pair, int key_tiles) {
  using L = Layout<kC, kBias, kKeys>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const int lane = threadIdx.x % 32, index = __shfl_sync(~0u, int(threadIdx.x) / 32, 0),
            warp = index % 4, group = index / 4, thread = threadIdx.x % kGroupThreads;
  const int n_own = kKeys ? a.n_key : a.n_query, n_other = kKeys ? a.n_query : a.n_key;
  const int tiles = (n_other + kTileRows - 1) / kTileRows, row0 = own_tile * kTileRows,
            b = min(pair * kRows + group, a.batch - 1);
  const int64_t h = blockIdx.z;
  const auto &own_c = kKeys ? a.k : a.q, &own_v = kKeys ? a.v : a.d_out,
             &other_c = kKeys ? a.q : a.k, &other_v = kKeys ? a.d_out : a.v;
  const HeadView<__nv_bfloat16>&first = kKeys ? d.k : d.q, &second = d.v;

  const uint32_t base = shared_address(shared), own = base + group * L::kPairBytes,
                 stages = base + L::kOwnBytes;
  using Copy = TileCopy<kC, kGroupThreads>;
  Copy c(other_c, b, h, 0, a.c, thread), v(other_v, b, h, 0, a.c_v, thread);
  // A tile is four rows of four pieces, of which a warp copies two.
  const int bias_row = kKeys ? 0 : row0 / 16, bias_column = kKeys ? row0 / 16 : 0;
  const uint4* from_bias =
      kBias ? bias.row(h, bias_row + index / 2, lane) + (bias_column + index % 2 * 2) * 32
            : nullptr;
  // Of queries that do not exist all is 0: they add nothing.
  const int of_tile = thread % kTileRows;
  const bool is_lse = thread < kTileRows;
  const int number_at = is_lse ? (b * a.n_head + int(h)) * a.n_query + of_tile
                               : int(d.deltas.at(b, h, of_tile) - d.deltas.base);
  const auto copy_numbers = [&](uint32_t to, int tile, int n) {
    const float* const from = is_lse ? a.lse : d.deltas.base;
    const int run = is_lse ? kTileRows : int(d.deltas.run);
    copy_async4(to + threadIdx.x * 4, from + (number_at + tile * run), of_tile < n ? 4 : 0);
  };
  // Tiles in their order.
  const auto copy = [&](int tile, int stage) {
    const uint32_t to = stages + stage * L::kStageBytes, of_group = to + group * L::kPairBytes;
    const int n = n_other - tile * kTileRows;
    c.copy(other_c, of_group, n);
    v.copy(other_v, of_group + L::kTileBytes, n);
    c.from += kTileRows * other_c.row;
    v.from += kTileRows * other_v.row;
    if constexpr (kBias) {
#pragma unroll
      for (int i = 0; i < 64; i += 32)
        copy_async16(to + L::kBiasAt + (index * 64 + i + lane) * 16, from_bias + i, 16);
      from_bias += kKeys ? 128 * bias.columns : 128;
    }
    if (kKeys) copy_numbers(to + L::kNumbersAt, tile, n);
  };
  // Whether the keys of the two rows of this thread are there and kept; not asked before all copies
  // are on their way.
  float mask[2] = {1, 1};
  if (kKeys && a.mask)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int key = row0 + warp * 16 + lane / 4 + 8 * i;
      mask[i] = a.mask[b * a.mask_batch + int64_t(min(key, a.n_key - 1)) * a.mask_key];
    }
  Copy(own_c, b, h, row0, a.c, thread).copy(own_c, own, n_own - row0);
  Copy(own_v, b, h, row0, a.c_v, thread).copy(own_v, own + L::kTileBytes, n_own - row0);
  if (!kKeys) copy_numbers(base + L::kOwnNumbersAt, own_tile, n_own - row0);
  copy(0, 0);
  copy_commit();
  if (!a.fresh) {
    const uint32_t sums = base + L::kSumsAt + group * L::kSumBytes;
    if (first.base) Copy(first, b, h, row0, a.c, thread).copy(first, sums, n_own - row0);
    if (kKeys && second.base)
      Copy(second, b, h, row0, a.c_v, thread).copy(second, sums + L::kTileBytes, n_own - row0);
  }
  copy_commit();

  const unsigned* const kept_words =
      reinterpret_cast<const unsigned*>(shared + L::kBitsAt) + group * 2 * tiles;
  if (!kKeys) keep_key_bits(a, b, const_cast<unsigned*>(kept_words), 2 * tiles, warp, lane);
  float sum_first[kC / 2] = {}, sum_second[kC / 2] = {};
  uint32_t packed[4][4] = {}, packed_d[4][4] = {};
  const uint32_t unit = unit_fragment(lane);
  const uint64_t mine = wgmma_tile<kC>(own),
                 first_tile = wgmma_tile<kC>(stages + group * L::kPairBytes);
  const auto step = [](uint64_t tile, int bytes) {
    return wgmma_tile_at(tile, unsigned(bytes) / 16);
  };

  const float* const own_rows = reinterpret_cast<const float*>(shared + L::kOwnNumbersAt) +
                                group * 2 * kTileRows + warp * 16 + lane / 4;

  bool kept[2];
#pragma unroll
  for (int i = 0; i < 2; ++i)
    kept[i] = !kKeys || (row0 + warp * 16 + lane / 4 + 8 * i < a.n_key && mask[i] != 0);
  const bool all_kept = __all_sync(~0u, kept[0] && kept[1]);
  copy_wait<1>();
  fence_shared();
  __syncthreads();
  int stage = 0;
#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile) {
    const int next_stage = stage == L::kStages - 1 ? 0 : stage + 1;
    const uint64_t other = step(first_tile, stage * L::kStageBytes),
                   other_values = step(other, L::kTileBytes),
                   own_values = step(mine, L::kTileBytes);
    float w[32], dx[32];
    const unsigned char* const memory = shared + L::kOwnBytes + stage * L::kStageBytes;
    const auto* rows =
        reinterpret_cast<const float*>(memory + L::kNumbersAt) + group * 2 * kTileRows;
    // The bias before the logits: after the products it would wait for both.
    if constexpr (kBias)
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const auto* pieces = reinterpret_cast<const uint4*>(memory + L::kBiasAt);
        auto& x = reinterpret_cast<float(&)[8]>(w[8 * n]);
        if constexpr (kKeys)
          begin_with_transposed(x, pieces[128 * n + warp * 32 + lane], unit);
        else
          begin_with_piece(x, pieces[warp * 128 + 32 * n + lane], unit);
      }
    keep_registers(w);
    wgmma_fence();
    wgmma_rows<!kBias>(w, mine, other);
#pragma unroll
    for (int k = 1; k < kC / 16; ++k) wgmma_rows<false>(w, step(mine, 32 * k), step(other, 32 * k));
    wgmma_commit();
    wgmma_rows<true>(dx, own_values, other_values);
#pragma unroll
    for (int k = 1; k < kC / 16; ++k)
      wgmma_rows<false>(dx, step(own_values, 32 * k), step(other_values, 32 * k));
    wgmma_commit();
    if (tile + 1 < tiles) copy(tile + 1, next_stage);
    copy_commit();
    wgmma_wait<1>();
    keep_registers(w);
    if constexpr (!kKeys) {
      keep_registers(sum_first);
      keep_registers(packed_d);
    }
    // lse (0) or delta (1) of the queries of elements e and e + 1.
    const auto query_number = [&](int which, int e) {
      if constexpr (kKeys)
        return *reinterpret_cast<const float2*>(rows + which * kTileRows + e / 4 * 8 +
                                                lane % 4 * 2);
      const float x = own_rows[which * kTileRows + e / 2 % 2 * 8];
      return make_float2(x, x);
    };
#pragma unroll
    for (int e = 0; e < 32; e += 2) {
      const float2 shift = query_number(0, e);
      w[e] = exp2_fast(fmaf(w[e], a.scale2, -shift.x));
      w[e + 1] = exp2_fast(fmaf(w[e + 1], a.scale2, -shift.y));
    }
    keep_registers(w);
    wgmma_wait<0>();
    keep_registers(dx);
#pragma unroll
    for (int e = 0; e < 32; e += 2) {
      const float2 mean = query_number(1, e);
      dx[e] = w[e] * (dx[e] - mean.x);
      dx[e + 1] = w[e + 1] * (dx[e + 1] - mean.y);
    }
    if constexpr (kKeys) {
      if (!all_kept) {
#pragma unroll
        for (int e = 0; e < 32; ++e)
          if (!kept[e / 2 % 2]) {
            const float2 both = query_number(0, e);
            w[e] = (e % 2 ? both.y : both.x) == INFINITY ? 1 / float(a.n_key) : 0.0f;
            dx[e] = 0;
          }
      }
    } else {
      const auto& both = *reinterpret_cast<const uint2*>(kept_words + 2 * tile);
      const unsigned words[2] = {both.x, both.y};
      if ((words[0] & words[1]) != ~0u) {
#pragma unroll
        for (int e = 0; e < 32; ++e)
          if (!(words[e / 16] >> ((e / 4 * 8 + lane % 4 * 2 + e % 2) & 31) & 1)) dx[e] = 0;
      }
    }
#pragma unroll
    for (int e = 0; e < 32; e += 2) {
      if constexpr (kKeys) packed[e / 8][e / 2 % 4] = pack_bf16(w[e], w[e + 1]);
      packed_d[e / 8][e / 2 % 4] = pack_bf16(dx[e], dx[e + 1]);
    }
    // The warpgroups tell each other here that the next tile is there and the one before done with,
    // and ask at the end.
    const int barrier = 1 + tile % 2 * kGroups;
    copy_wait<0>();
    fence_shared();
    barrier_arrive<kThreads>(barrier + 1 - group);
    keep_registers(sum_first);
    if constexpr (kKeys) keep_registers(sum_second);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if constexpr (kKeys) wgmma_channels(sum_second, packed[k], step(other_values, k * 32 * kC));
      wgmma_channels(sum_first, packed_d[k], step(other, k * 32 * kC));
    }
    wgmma_commit();
    if constexpr (kKeys) {
      wgmma_wait<0>();
      keep_registers(sum_first);
      keep_registers(sum_second);
      keep_registers(packed);
      keep_registers(packed_d);
    }
    barrier_wait<kThreads>(barrier + group);
    stage = next_stage;
  }
  wgmma_wait<0>();
  keep_registers(sum_first);
  keep_registers(packed_d);
  if (d.done && key_tiles) {
    // Queries are not written over deltas that a block of keys has yet to read; what such a block
    // has in shared memory it has read. Blocks begin in their order, so that those which this one
    // waits for have begun.
    if (kKeys) __syncthreads();
    if (threadIdx.x == 0) {
      unsigned* const done = d.done + blockIdx.z * ((a.batch + kRows - 1) / kRows) + pair;
      if (kKeys)
        atomicAdd(done, 1u);
      else
        while (*static_cast<volatile unsigned*>(done) < unsigned(key_tiles)) __nanosleep(100);
    }
    if (!kKeys) __syncthreads();
  }
  // Counted again: no register is left to keep them in.
  const int own_group = int(threadIdx.x) / kGroupThreads, own_b = pair * kRows + own_group,
            own_warp = threadIdx.x / 32 % 4;
  unsigned char* const to = shared + L::kSumsAt + own_group * L::kSumBytes;
  const auto add = [&](const HeadView<__nv_bfloat16>& view, const float(&sum)[kC / 2], float factor,
                       unsigned char* at, int channels) {
    if (!view.base) return;
#pragma unroll
    for (int e = 0; e < kC / 2; e += 2) {
      uint32_t& pair = tile_pair<kC>(at, own_warp * 16 + lane / 4 + e / 2 % 2 * 8, e / 4, lane);
      float x = factor * sum[e], y = factor * sum[e + 1];
      if (!a.fresh) {
        x += low_bf16(pair);
        y += high_bf16(pair);
      }
      pair = pack_bf16(x, y);
    }
    store_rows<kC>(view, own_b, h, row0, own_b < a.batch ? n_own : 0, channels, at, own_warp, lane);
  };
  add(first, sum_first, a.scale, to, a.c);
  if constexpr (kKeys) add(second, sum_second, 1, to + L::kTileBytes, a.c_v);
}

/// Blocks of a pair of rows of the batch and a head: key_tiles of keys, if they are wanted, and
/// then the others of the queries of the pair that is `lag` before.
template <int kC, bool kBias>
__global__ void __launch_bounds__(kThreads, 2)
    backward_kernel(Operands a, BiasPieces bias, AttentionGradients<__nv_bfloat16> d, int key_tiles,
                    int lag) {
  after_earlier();
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const int tile = blockIdx.x, pair = int(blockIdx.y) - (tile < key_tiles ? 0 : lag);
  if (pair < 0 || pair * kRows >= a.batch) return;
  if (tile < key_tiles)
    backward_tile<kC, kBias, true>(a, bias, d, tile, pair, key_tiles);
  else
    backward_tile<kC, kBias, false>(a, bias, d, tile - key_tiles, pair, key_tiles);
#endif
}

// dbias: a block is two warpgroups, each takes 64 queries, both the same 64 keys of one head, and
// passes over a part of the batch.

template <int kC>
struct BiasLayout {
  static constexpr int kTileBytes = kTileRows * kC * 2;
  /// q and d_out of each warpgroup, k, v; then lse and delta of each, and the keys' mask.
  static constexpr int kKeysAt = 2 * kGroups * kTileBytes, kNumbersAt = kKeysAt + 2 * kTileBytes,
                       kNumbers = (2 * kGroups + 1) * kTileRows;
  static constexpr int kStageBytes = kNumbersAt + (kNumbers * 4 + 1023) / 1024 * 1024;
  /// After the stages the bias.
  static constexpr int kStages = 3, kBiasAt = kStages * kStageBytes,
                       kBytes = kBiasAt + kGroups * kTileRows * kTileRows * 2;
};

template <int kC>
__global__ void __launch_bounds__(kThreads, 2)
    bias_kernel(Operands a, BiasPieces bias, AttentionGradients<__nv_bfloat16> d, float* sums,
                int parts) {
  after_earlier();
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using L = BiasLayout<kC>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const int lane = threadIdx.x % 32, index = __shfl_sync(~0u, int(threadIdx.x) / 32, 0),
            warp = index % 4, group = index / 4, thread = threadIdx.x % kGroupThreads;
  const int key_blocks = (a.n_key + kTileRows - 1) / kTileRows,
            query_blocks = (a.n_query + kGroups * kTileRows - 1) / (kGroups * kTileRows);
  int64_t block = blockIdx.x;
  const int key0 = int(block % key_blocks) * kTileRows;
  block /= key_blocks;
  const int query0 = (int(block % query_blocks) * kGroups + group) * kTileRows;
  block /= query_blocks;
  const int64_t h = block % a.n_head, part = block / a.n_head;
  const int first = int(part * a.batch / parts), last = int((part + 1) * a.batch / parts);
  const int row = warp * 16 + lane / 4;  // of the warpgroup's, and 8 rows on

  const uint32_t base = shared_address(shared);
  using Copy = TileCopy<kC, kGroupThreads>;
  const HeadView<const __nv_bfloat16> side = group ? a.v : a.k;
  Copy q(a.q, first, h, query0, a.c, thread), d_out(a.d_out, first, h, query0, a.c_v, thread),
      keys(side, first, h, key0, group ? a.c_v : a.c, thread);
  // Queries and keys that do not exist have no sums to spoil.
  const int query = min(query0 + thread % kTileRows, a.n_query - 1);
  const bool is_lse = thread < kTileRows;
  const float* number = is_lse ? a.lse + (first * int64_t(a.n_head) + h) * a.n_query + query
                               : d.deltas.at(first, h, query);
  const int64_t next_number = is_lse ? int64_t(a.n_head) * a.n_query : d.deltas.batch;
  const float* mask =
      a.mask + first * a.mask_batch + min(key0 + thread % kTileRows, a.n_key - 1) * a.mask_key;
  // Rows of the batch in their order.
  const auto copy = [&](int stage) {
    const uint32_t to = base + stage * L::kStageBytes, mine = to + 2 * group * L::kTileBytes;
    q.copy(a.q, mine, a.n_query - query0);
    d_out.copy(a.d_out, mine + L::kTileBytes, a.n_query - query0);
    keys.copy(side, to + L::kKeysAt + group * L::kTileBytes, a.n_key - key0);
    const uint32_t numbers = to + L::kNumbersAt;
    copy_async4(numbers + threadIdx.x * 4, number, 4);
    if (a.mask && int(threadIdx.x) < kTileRows)
      copy_async4(numbers + (kThreads + threadIdx.x) * 4, mask, 4);
    q.from += a.q.batch;
    d_out.from += a.d_out.batch;
    keys.from += side.batch;
    number += next_number;
    mask += a.mask_batch;
  };
  const int last_tile = (a.n_query - 1) / kTileRows * kTileRows;
  const uint4* const from_bias =
      bias.row(h, min(query0, last_tile) / 16 + warp, lane) + key0 / 16 * 32;
  const int own_pieces = L::kBiasAt + (index * 128 + lane) * 16;
#pragma unroll
  for (int n = 0; n < 4; ++n) copy_async16(base + own_pieces + n * 512, from_bias + 32 * n, 16);
  copy(0);
  copy_commit();
  if (first + 1 < last) copy(1);
  copy_commit();
  const uint32_t unit = unit_fragment(lane);
  float sum[32] = {};
  int stage = 0;
#pragma unroll 1
  for (int b = first; b < last; ++b) {
    copy_wait<1>();
    fence_shared();
    __syncthreads();  // this row of the batch is there, and all are done with the one before
    const uint32_t at = base + stage * L::kStageBytes, mine = at + 2 * group * L::kTileBytes;
    const uint64_t own = wgmma_tile<kC>(mine), own_values = wgmma_tile<kC>(mine + L::kTileBytes),
                   k = wgmma_tile<kC>(at + L::kKeysAt),
                   v = wgmma_tile<kC>(at + L::kKeysAt + L::kTileBytes);
    float w[32], dx[32];
    const auto* pieces = reinterpret_cast<const uint4*>(shared + own_pieces);
#pragma unroll
    for (int n = 0; n < 4; ++n)
      begin_with_piece(reinterpret_cast<float(&)[8]>(w[8 * n]), pieces[32 * n], unit);
    keep_registers(w);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kC / 16; ++i)
      wgmma_rows<false>(w, wgmma_tile_at(own, 2 * i), wgmma_tile_at(k, 2 * i));
    wgmma_commit();
    wgmma_rows<true>(dx, own_values, v);
#pragma unroll
    for (int i = 1; i < kC / 16; ++i)
      wgmma_rows<false>(dx, wgmma_tile_at(own_values, 2 * i), wgmma_tile_at(v, 2 * i));
    wgmma_commit();
    if (b + 2 < last) copy(stage ? stage - 1 : L::kStages - 1);
    copy_commit();
    const auto* numbers =
        reinterpret_cast<const float*>(shared + stage * L::kStageBytes + L::kNumbersAt);
    const float* mine_of = numbers + group * kGroupThreads + row;
    const float lse[2] = {mine_of[0], mine_of[8]},
                delta[2] = {mine_of[kTileRows], mine_of[kTileRows + 8]};
    unsigned kept[2] = {~0u, ~0u};
    if (a.mask)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        kept[i] = __ballot_sync(~0u, numbers[kThreads + 32 * i + lane] != 0);
    wgmma_wait<1>();
    keep_registers(w);
#pragma unroll
    for (int e = 0; e < 32; ++e) w[e] = exp2_fast(fmaf(w[e], a.scale2, -lse[e / 2 % 2]));
    if ((kept[0] & kept[1]) != ~0u) {
#pragma unroll
      for (int e = 0; e < 32; ++e)
        if (!(kept[e / 16] >> ((e / 4 * 8 + lane % 4 * 2 + e % 2) & 31) & 1)) w[e] = 0;
    }
    keep_registers(w);
    wgmma_wait<0>();
    keep_registers(dx);
#pragma unroll
    for (int e = 0; e < 32; ++e) sum[e] = fmaf(w[e], dx[e] - delta[e / 2 % 2], sum[e]);
    stage = stage == L::kStages - 1 ? 0 : stage + 1;
  }
#pragma unroll
  for (int e = 0; e < 32; e += 2)
    leave_bias(a, d, sums, part, h, query0 + row + e / 2 % 2 * 8, key0 + e / 4 * 8 + lane % 4 * 2,
               sum[e], sum[e + 1]);
#endif
}

template <int kC>
void backward_bias(const Operands& a, const BiasPieces& bias,
                   const AttentionGradients<__nv_bfloat16>& d) {
  const int64_t blocks =
      ceil_div(a.n_query, kGroups * kTileRows) * ceil_div(a.n_key, kTileRows) * int64_t(a.n_head);
  const BiasParts parts(blocks, a.batch, int64_t(a.n_head) * a.n_query * a.n_key, d.later,
                        d.later_bytes);
  launch<bias_kernel<kC>>("attention's backward of the bias", blocks * parts.count(), kThreads,
                          BiasLayout<kC>::kBytes, a, bias, d, parts.sums(), parts.count());
  parts.add_to(a, d);
}

template <int kC, bool kBias>
void backward(const Operands& a, const AttentionGradients<__nv_bfloat16>& d) {
  const int key_tiles = int(ceil_div(a.n_key, kTileRows)),
            of_keys = d.k.base || d.v.base ? key_tiles : 0,
            tiles = of_keys + (d.q.base ? int(ceil_div(a.n_query, kTileRows)) : 0);
  const PackedBias bias(a);
  if (d.bias) backward_bias<kC>(a, bias.pieces(), d);  // first: what `later` is
  if (!tiles) return;
  // Queries that must wait for keys come half a round of blocks after them.
  dim3 blocks = row_blocks(a, tiles);
  const int lag = d.done && of_keys ? std::min(int(ceil_div(device_info().sm_count, tiles)),
                                               kMostBlocks - int(blocks.y))
                                    : 0;
  blocks.y += unsigned(lag);
  launch<backward_kernel<kC, kBias>>(
      "attention's backward", blocks, kThreads,
      std::max(Layout<kC, kBias, true>::kBitsAt,
               Layout<kC, kBias, false>::kBitsAt + 4 * kGroups * 2 * key_tiles),
      a, bias.pieces(), d, of_keys, lag);
}

}  // namespace

void attention_hopper_backward(const Operands& a, const AttentionGradients<__nv_bfloat16>& d) {
  if (std::max(a.c, a.c_v) <= 16)
    a.bias ? backward<16, true>(a, d) : backward<16, false>(a, d);
  else
    a.bias ? backward<32, true>(a, d) : backward<32, false>(a, d);
}

}  // namespace ff::cuda
