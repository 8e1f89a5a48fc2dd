// Attention backward on Hopper: as attention_mma_backward.cu, by the asynchronous matrix unit. For
// dq and for dk with dv a block is one warpgroup: it takes 64 queries (for dq) or keys (for dk and
// dv) of one row of the batch, and passes over the other side in tiles of 64.
#include "cuda/attention_mma.cuh"
#include "cuda/wgmma.cuh"

namespace ff::cuda {
namespace {

constexpr int kTileRows = 64, kThreads = kPartThreads;

template <int kC>
struct Layout {
  static constexpr int kTileBytes = kTileRows * kC * 2;
  static constexpr int kOwnBytes = 2 * kTileBytes;  ///< k and v, or q and d_out
  /// The same of the other side, and [lse, delta] of queries or the mask of keys.
  static constexpr int kOtherBytes = 2 * kTileBytes, kStageBytes = kOtherBytes + 1024;
  static constexpr int kBytes = kOwnBytes + 2 * kStageBytes;
};

/// `first` is dq, or dk; `second` is dv.
template <int kC, bool kBias, bool kKeys>
__global__ void __launch_bounds__(kThreads, 3)
    backward_kernel(Operands a, BiasPieces bias, HeadView<__nv_bfloat16> first,
                    HeadView<__nv_bfloat16> second) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using L = Layout<kC>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, thread = threadIdx.x;
  const int n_own = kKeys ? a.n_key : a.n_query, n_other = kKeys ? a.n_query : a.n_key;
  const int tiles = (n_own + kTileRows - 1) / kTileRows;
  const int row0 = blockIdx.x % tiles * kTileRows;
  const int64_t b = blockIdx.x / tiles % a.batch, h = blockIdx.x / tiles / a.batch;
  const int row = row0 + warp * 16 + lane / 4;  // and 8 rows on
  const auto &own_c = kKeys ? a.k : a.q, &own_v = kKeys ? a.v : a.d_out,
             &other_c = kKeys ? a.q : a.k, &other_v = kKeys ? a.d_out : a.v;

  const uint32_t own = shared_address(shared), stages = own + L::kOwnBytes;
  unsigned char* const stage_memory = shared + L::kOwnBytes;
  const auto copy = [&](int other0, int stage) {
    const uint32_t to = stages + stage * L::kStageBytes;
    copy_tile<kC, kTileRows>(to, other_c, b, h, other0, n_other, a.c, thread);
    copy_tile<kC, kTileRows>(to + L::kTileBytes, other_v, b, h, other0, n_other, a.c_v, thread);
    if constexpr (kKeys) {
      const int query = other0 + thread % kTileRows;
      auto* numbers =
          reinterpret_cast<float*>(stage_memory + stage * L::kStageBytes + L::kOtherBytes);
      const int64_t from = (b * a.n_head + h) * a.n_query + query;
      // A query that does not exist has weights 0.
      numbers[thread] = thread < kTileRows ? (query < a.n_query ? a.lse[from] : INFINITY)
                                           : (query < a.n_query ? a.delta[from] : 0.0f);
    } else if (a.mask && thread < kTileRows) {
      const int key = other0 + thread;
      const float* from = a.mask + b * a.mask_batch;
      copy_async4(to + L::kOtherBytes + thread * 4, key < a.n_key ? from + key * a.mask_key : from,
                  key < a.n_key ? 4 : 0);
    }
  };
  copy_tile<kC, kTileRows>(own, own_c, b, h, row0, n_own, a.c, thread);
  copy_tile<kC, kTileRows>(own + L::kTileBytes, own_v, b, h, row0, n_own, a.c_v, thread);
  copy(0, 0);
  copy_commit();

  // Of the two rows of this thread: queries' sums, or whether the keys are there and kept.
  float lse[2] = {}, delta[2] = {};
  bool kept[2] = {true, true};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = row + 8 * i;
    if constexpr (kKeys) {
      kept[i] = r < a.n_key && (!a.mask || a.mask[b * a.mask_batch + int64_t(r) * a.mask_key] != 0);
    } else {
      const int64_t at = (b * a.n_head + h) * a.n_query + r;
      lse[i] = r < a.n_query ? a.lse[at] : INFINITY;
      delta[i] = r < a.n_query ? a.delta[at] : 0;
    }
  }
  const bool all_kept = __all_sync(~0u, kept[0] && kept[1]);
  float sum_first[kC / 2] = {}, sum_second[kC / 2] = {}, w[32] = {}, dx[32] = {};

  const uint4* const pieces = kBias ? bias.row(h, row0 / 16 + warp, lane) : nullptr;
  const uint32_t unit = unit_fragment(lane);

  int stage = 0;
  for (int other0 = 0; other0 < n_other; other0 += kTileRows, stage ^= 1) {
    copy_wait<0>();
    fence_shared();
    __syncthreads();  // this tile is there, and all are done with the one before
    if (other0 + kTileRows < n_other) copy(other0 + kTileRows, stage ^ 1);
    copy_commit();
    uint4 piece[4];
    if constexpr (kBias) {
#pragma unroll
      for (int n = 0; n < 4; ++n) piece[n] = __ldg(pieces + (other0 / 16 + n) * 32);
    }
    const uint32_t other = stages + stage * L::kStageBytes;
    const uint64_t own_tile = wgmma_tile<kC>(own), own_tile_v = wgmma_tile<kC>(own + L::kTileBytes),
                   tile = wgmma_tile<kC>(other), tile_v = wgmma_tile<kC>(other + L::kTileBytes);
    wgmma_fence();
    wgmma_rows<true>(w, own_tile, tile);
#pragma unroll
    for (int k = 1; k < kC / 16; ++k) wgmma_rows<false>(w, own_tile + 2 * k, tile + 2 * k);
    wgmma_rows<true>(dx, own_tile_v, tile_v);
#pragma unroll
    for (int k = 1; k < kC / 16; ++k) wgmma_rows<false>(dx, own_tile_v + 2 * k, tile_v + 2 * k);
    wgmma_commit();
    const auto* rows =
        reinterpret_cast<const float*>(stage_memory + stage * L::kStageBytes + L::kOtherBytes);
    unsigned there[2] = {~0u, ~0u};  // of keys that are passed over
    if (!kKeys && (a.mask || other0 + kTileRows > a.n_key)) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        there[i] = __ballot_sync(
            ~0u, other0 + 32 * i + lane < a.n_key && (!a.mask || rows[32 * i + lane] != 0));
    }
    wgmma_wait<0>();
    keep_registers(w);
    keep_registers(dx);
    if constexpr (kBias) {
#pragma unroll
      for (int n = 0; n < 4; ++n)
        add_piece(reinterpret_cast<float(&)[4]>(w[8 * n]),
                  reinterpret_cast<float(&)[4]>(w[8 * n + 4]), piece[n], unit);
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const int column = 8 * n + lane % 4 * 2;
      float2 column_lse = {0, 0}, column_delta = {0, 0};
      if constexpr (kKeys) {
        column_lse = *reinterpret_cast<const float2*>(rows + column);
        column_delta = *reinterpret_cast<const float2*>(rows + kTileRows + column);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 shift =
            kKeys ? make_float2(-column_lse.x, -column_lse.y) : make_float2(-lse[i], -lse[i]);
        const int e = 4 * n + 2 * i;
        w[e] = exp2_fast(fmaf(w[e], a.scale2, shift.x));
        w[e + 1] = exp2_fast(fmaf(w[e + 1], a.scale2, shift.y));
        dx[e] = w[e] * (dx[e] - (kKeys ? column_delta.x : delta[i]));
        dx[e + 1] = w[e + 1] * (dx[e + 1] - (kKeys ? column_delta.y : delta[i]));
      }
    }
    if constexpr (kKeys) {
      if (!all_kept) {
#pragma unroll
        for (int e = 0; e < 32; ++e)
          if (!kept[e / 2 % 2]) {
            const float column_lse = rows[e / 4 * 8 + lane % 4 * 2 + e % 2];
            w[e] = column_lse == INFINITY ? 1 / float(a.n_key) : 0.0f;
            dx[e] = 0;
          }
      }
    } else if ((there[0] & there[1]) != ~0u) {
#pragma unroll
      for (int e = 0; e < 32; ++e)
        if (!(there[e / 16] >> ((e / 4 * 8 + lane % 4 * 2 + e % 2) & 31) & 1)) dx[e] = 0;
    }
    uint32_t packed[4][4], packed_d[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if constexpr (kKeys) packed[k][e] = pack_bf16(w[8 * k + 2 * e], w[8 * k + 2 * e + 1]);
        packed_d[k][e] = pack_bf16(dx[8 * k + 2 * e], dx[8 * k + 2 * e + 1]);
      }
    keep_registers(sum_first);
    if constexpr (kKeys) keep_registers(sum_second);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if constexpr (kKeys) wgmma_channels(sum_second, packed[k], tile_v + k * 2 * kC);
      wgmma_channels(sum_first, packed_d[k], tile + k * 2 * kC);
    }
    wgmma_commit();
    wgmma_wait<0>();
    keep_registers(sum_first);
    if constexpr (kKeys) keep_registers(sum_second);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = row + 8 * i;
    if (r >= n_own) continue;
#pragma unroll
    for (int j = 0; j < kC / 8; ++j) {
      const int channel = 8 * j + lane % 4 * 2, e = 4 * j + 2 * i;
      if (first.base && channel < a.c)
        add_pair(first.at(b, r, h) + channel, a.scale, sum_first[e], sum_first[e + 1]);
      if (second.base && channel < a.c_v)
        add_pair(second.at(b, r, h) + channel, 1, sum_second[e], sum_second[e + 1]);
    }
  }
#endif
}

// dbias: a block is two warpgroups, each takes 64 queries, both the same 64 keys of one head, and
// passes over a part of the batch.

constexpr int kBiasGroups = 2, kBiasThreads = kBiasGroups * kThreads;

template <int kC>
struct BiasLayout {
  static constexpr int kTileBytes = kTileRows * kC * 2;
  /// q and d_out of each warpgroup, k, v; then lse and delta of each, and the keys' mask.
  static constexpr int kKeysAt = 2 * kBiasGroups * kTileBytes,
                       kNumbersAt = kKeysAt + 2 * kTileBytes,
                       kNumbers = (2 * kBiasGroups + 1) * kTileRows;
  static constexpr int kStageBytes = kNumbersAt + (kNumbers * 4 + 1023) / 1024 * 1024;
};

template <int kC>
__global__ void __launch_bounds__(kBiasThreads, 2)
    bias_kernel(Operands a, BiasPieces bias, AttentionGradients<__nv_bfloat16> d, float* sums,
                int parts) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using L = BiasLayout<kC>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const int lane = threadIdx.x % 32, group = threadIdx.x / kThreads,
            thread = threadIdx.x % kThreads, warp = thread / 32;
  const int key_blocks = (a.n_key + kTileRows - 1) / kTileRows,
            query_blocks = (a.n_query + kBiasGroups * kTileRows - 1) / (kBiasGroups * kTileRows);
  int64_t block = blockIdx.x;
  const int key0 = int(block % key_blocks) * kTileRows;
  block /= key_blocks;
  const int query0 = (int(block % query_blocks) * kBiasGroups + group) * kTileRows;
  block /= query_blocks;
  const int64_t h = block % a.n_head, part = block / a.n_head;
  const int first = int(part * a.batch / parts), last = int((part + 1) * a.batch / parts);
  const int row = warp * 16 + lane / 4;  // of the warpgroup's, and 8 rows on

  const uint32_t base = shared_address(shared);
  const auto copy = [&](int64_t b, int stage) {
    const uint32_t to = base + stage * L::kStageBytes, mine = to + 2 * group * L::kTileBytes;
    copy_tile<kC, kTileRows>(mine, a.q, b, h, query0, a.n_query, a.c, thread);
    copy_tile<kC, kTileRows>(mine + L::kTileBytes, a.d_out, b, h, query0, a.n_query, a.c_v, thread);
    copy_tile<kC, kTileRows>(to + L::kKeysAt + group * L::kTileBytes, group ? a.v : a.k, b, h, key0,
                             a.n_key, group ? a.c_v : a.c, thread);
    // Queries and keys that do not exist have no sums to spoil.
    const uint32_t numbers = to + L::kNumbersAt;
    const int query = query0 + thread % kTileRows, key = key0 + thread;
    copy_async4(numbers + threadIdx.x * 4,
                (thread < kTileRows ? a.lse : a.delta) + (b * a.n_head + h) * a.n_query +
                    min(query, a.n_query - 1),
                4);
    if (a.mask && group == 0 && thread < kTileRows)
      copy_async4(numbers + (kBiasThreads + thread) * 4,
                  a.mask + b * a.mask_batch + int64_t(min(key, a.n_key - 1)) * a.mask_key, 4);
  };
  copy(first, 0);
  copy_commit();
  const bool active = query0 < a.n_query;
  const uint4* const pieces = bias.row(h, active ? query0 / 16 + warp : 0, lane) + key0 / 16 * 32;
  const uint32_t unit = unit_fragment(lane);
  float sum[32] = {}, w[32] = {}, dx[32] = {};
  for (int b = first, stage = 0; b < last; ++b, stage ^= 1) {
    copy_wait<0>();
    fence_shared();
    __syncthreads();  // this row of the batch is there, and all are done with the one before
    if (b + 1 < last) copy(b + 1, stage ^ 1);
    copy_commit();
    uint4 piece[2] = {__ldg(pieces), __ldg(pieces + 32)};
    const uint32_t at = base + stage * L::kStageBytes, mine = at + 2 * group * L::kTileBytes;
    const uint64_t q = wgmma_tile<kC>(mine), d_out = wgmma_tile<kC>(mine + L::kTileBytes),
                   k = wgmma_tile<kC>(at + L::kKeysAt),
                   v = wgmma_tile<kC>(at + L::kKeysAt + L::kTileBytes);
    keep_registers(w);
    keep_registers(dx);
    wgmma_fence();
    wgmma_rows<true>(w, q, k);
#pragma unroll
    for (int i = 1; i < kC / 16; ++i) wgmma_rows<false>(w, q + 2 * i, k + 2 * i);
    wgmma_rows<true>(dx, d_out, v);
#pragma unroll
    for (int i = 1; i < kC / 16; ++i) wgmma_rows<false>(dx, d_out + 2 * i, v + 2 * i);
    wgmma_commit();
    const auto* numbers =
        reinterpret_cast<const float*>(shared + stage * L::kStageBytes + L::kNumbersAt);
    const float* own = numbers + group * kThreads + row;
    const float lse[2] = {own[0], own[8]}, delta[2] = {own[kTileRows], own[kTileRows + 8]};
    unsigned kept[2] = {~0u, ~0u};
    if (a.mask)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        kept[i] = __ballot_sync(~0u, numbers[kBiasThreads + 32 * i + lane] != 0);
    wgmma_wait<0>();
    keep_registers(w);
    keep_registers(dx);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      add_piece(reinterpret_cast<float(&)[4]>(w[8 * n]),
                reinterpret_cast<float(&)[4]>(w[8 * n + 4]), piece[n % 2], unit);
      if (n < 2) piece[n] = __ldg(pieces + (n + 2) * 32);
    }
#pragma unroll
    for (int e = 0; e < 32; ++e) w[e] = exp2_fast(fmaf(w[e], a.scale2, -lse[e / 2 % 2]));
    if ((kept[0] & kept[1]) != ~0u) {
#pragma unroll
      for (int e = 0; e < 32; ++e)
        if (!(kept[e / 16] >> ((e / 4 * 8 + lane % 4 * 2 + e % 2) & 31) & 1)) w[e] = 0;
    }
#pragma unroll
    for (int e = 0; e < 32; ++e) sum[e] = fmaf(w[e], dx[e] - delta[e / 2 % 2], sum[e]);
  }
#pragma unroll
  for (int e = 0; e < 32; ++e)
    leave_bias(a, d, sums, part, h, query0 + row + e / 2 % 2 * 8,
               key0 + e / 4 * 8 + lane % 4 * 2 + e % 2, sum[e]);
#endif
}

template <int kC>
void backward_bias(const Operands& a, const AttentionGradients<__nv_bfloat16>& d) {
  const int64_t blocks = ceil_div(a.n_query, kBiasGroups * kTileRows) *
                         ceil_div(a.n_key, kTileRows) * int64_t(a.n_head);
  const BiasParts parts(blocks, a.batch, int64_t(a.n_head) * a.n_query * a.n_key);
  launch<bias_kernel<kC>>("attention's backward of the bias", blocks * parts.count(), kBiasThreads,
                          2 * BiasLayout<kC>::kStageBytes, a, PackedBias(a, false).pieces(), d,
                          parts.sums(), parts.count());
  parts.add_to(a, d);
}

bool suits(const Operands& a) {
  return std::max(a.c, a.c_v) <= 32 && a.n_query >= kTileRows && a.n_key >= kTileRows;
}

template <int kC, bool kBias>
void backward(const Operands& a, const AttentionGradients<__nv_bfloat16>& d) {
  const int64_t batches = a.batch * int64_t(a.n_head);
  if (d.k.base || d.v.base)
    launch<backward_kernel<kC, kBias, true>>(
        "attention's backward of keys and values", ceil_div(a.n_key, kTileRows) * batches, kThreads,
        Layout<kC>::kBytes, a, PackedBias(a, true).pieces(), d.k, d.v);
  if (d.q.base)
    launch<backward_kernel<kC, kBias, false>>(
        "attention's backward of queries", ceil_div(a.n_query, kTileRows) * batches, kThreads,
        Layout<kC>::kBytes, a, PackedBias(a, false).pieces(), d.q, HeadView<__nv_bfloat16>());
}

}  // namespace

bool attention_hopper_backward(const Operands& a, const AttentionGradients<__nv_bfloat16>& d) {
  if (!suits(a)) return false;
  if (std::max(a.c, a.c_v) <= 16)
    a.bias ? backward<16, true>(a, d) : backward<16, false>(a, d);
  else
    a.bias ? backward<32, true>(a, d) : backward<32, false>(a, d);
  return true;
}

bool attention_hopper_backward_bias(const Operands& a, const AttentionGradients<__nv_bfloat16>& d) {
  if (!suits(a)) return false;
  std::max(a.c, a.c_v) <= 16 ? backward_bias<16>(a, d) : backward_bias<32>(a, d);
  return true;
}

}  // namespace ff::cuda
