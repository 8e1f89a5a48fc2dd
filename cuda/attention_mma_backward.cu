// Attention backward on tensor cores, from the forward's log-sum-exp. Three kernels compute the
// weights again, each with its own sums in registers and in a fixed order: dq over the keys; dk and
// dv over the queries; the bias's gradient over the batch.
//   w = softmax(x),  dw = d_out . v,  dx = w (dw - delta),  delta = sum_j w dw
//   dq = scale sum_j dx k,  dk = scale sum_i dx q,  dv = sum_i w d_out,  dbias = sum_b dx
#include "cuda/attention_mma.cuh"

namespace ff::cuda {
namespace {

using Gradients = AttentionGradients<__nv_bfloat16>;

/// What the forward left for one query: a row that does not exist has weights 0.
struct RowSums {
  float lse, delta;
};
__device__ __forceinline__ RowSums row_sums(const Operands& a, int64_t b, int64_t h, int i) {
  if (i >= a.n_query) return {INFINITY, 0};
  const int64_t at = (b * a.n_head + h) * a.n_query + i;
  return {a.lse[at], a.delta[at]};
}

// dq: a warp owns 32 queries.

constexpr int kBiasPitch = kTile + 8;  ///< 8-byte reads of 8 rows meet no bank twice

template <int kC, int kParts, bool kBias>
struct QueryStage {
  static constexpr int kTileBytes = kTile * kC * 2;
  static constexpr int kBiasAt = 2 * kParts * kTileBytes;
  static constexpr int kBytes = kBiasAt + (kBias ? kPartRows * kBiasPitch * 4 : 0);
};

template <int kC, int kParts, bool kBias>
__global__ void __launch_bounds__(kParts* kPartThreads, kC == 64 ? 1 : 4 / kParts)
    query_kernel(Operands a, HeadView<__nv_bfloat16> dq) {
  after_earlier();
  using S = QueryStage<kC, kParts, kBias>;
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

  RowFragments<kC> q, d_out;
  q.load(a.q, b, h, row, a.n_query, a.c, lane);
  d_out.load(a.d_out, b, h, row, a.n_query, a.c_v, lane);
  RowSums rows[2][2];
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) rows[m][i] = row_sums(a, b, h, row + 16 * m + 8 * i + lane / 4);
  float sum[2][kC / 8][4] = {};

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
    const unsigned kept = key_bits(a, b, key0, lane).kept;
    copy_wait<1>();
    __syncthreads();
    const uint32_t k_tile = base + stage * S::kBytes + part * 2 * S::kTileBytes,
                   v_tile = k_tile + S::kTileBytes;
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      float x[2][2][4], dx[2][2][4];
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
            x[m][n][2 * i] = value.x;
            x[m][n][2 * i + 1] = value.y;
            dx[m][n][2 * i] = dx[m][n][2 * i + 1] = -rows[m][i].delta;
          }
      multiply_rows<kC>(x, q, k_tile, 16 * p, lane);
      multiply_rows<kC>(dx, d_out, v_tile, 16 * p, lane);
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            dx[m][n][e] *= exp2_fast(fmaf(x[m][n][e], a.scale2, -rows[m][e / 2].lse));
      if (kept != ~0u) {
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e)
              if (!(kept >> (16 * p + 8 * n + lane % 4 * 2 + e % 2) & 1)) dx[m][n][e] = 0;
      }
      uint32_t packed[2][4];
      pack(packed, dx);
      multiply_channels<kC>(sum, packed, k_tile, 16 * p, lane);
    }
    __syncthreads();
  }
  if (active) add_rows<kC>(dq, sum, a.scale, b, h, row, a.n_query, a.c, lane);
}

// dk and dv: a warp owns 32 keys; everything is transposed.

constexpr int kWideBiasPitch = kPartRows + 4;  ///< a warp's reads of 4 rows meet no bank twice

template <int kC, int kParts, bool kBias>
struct KeyStage {
  static constexpr int kTileBytes = kTile * kC * 2;
  static constexpr int kSumsAt = 2 * kParts * kTileBytes;  ///< [part][lse, delta][query]
  static constexpr int kBiasAt = kSumsAt + kParts * 2 * kTile * 4;
  static constexpr int kBytes = kBiasAt + (kBias ? kTile * kWideBiasPitch * 4 : 0);
};

template <int kC, int kParts, bool kBias>
__global__ void __launch_bounds__(kParts* kPartThreads)
    key_kernel(Operands a, HeadView<__nv_bfloat16> dk, HeadView<__nv_bfloat16> dv) {
  after_earlier();
  using S = KeyStage<kC, kParts, kBias>;
  extern __shared__ __align__(128) unsigned char shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % kPartWarps;
  const int part = threadIdx.x / kPartThreads, thread = threadIdx.x % kPartThreads;
  const int tiles = (a.n_key + kPartRows - 1) / kPartRows, groups = (a.batch + kParts - 1) / kParts;
  const int k_tile = blockIdx.x % tiles, group = blockIdx.x / tiles % groups;
  const int64_t h = blockIdx.x / tiles / groups;
  const bool active = group * kParts + part < a.batch;
  const int64_t b = active ? group * kParts + part : a.batch - 1;
  const int row0 = k_tile * kPartRows, row = row0 + warp * kWarpRows;

  RowFragments<kC> k, v;
  k.load(a.k, b, h, row, a.n_key, a.c, lane);
  v.load(a.v, b, h, row, a.n_key, a.c_v, lane);
  const unsigned kept = key_bits(a, b, row, lane).kept;
  const float even_weight = 1 / float(a.n_key);
  float sum_k[2][kC / 8][4] = {}, sum_v[2][kC / 8][4] = {};

  const uint32_t base = shared_address(shared);
  const auto copy = [&](int query0, int stage) {
    const uint32_t at = base + stage * S::kBytes, mine = at + part * 2 * S::kTileBytes;
    copy_tile<kC>(mine, a.q, b, h, query0, a.n_query, a.c, thread);
    copy_tile<kC>(mine + S::kTileBytes, a.d_out, b, h, query0, a.n_query, a.c_v, thread);
    if (thread < kTile) {
      const RowSums s = row_sums(a, b, h, query0 + thread);
      auto* to = reinterpret_cast<float*>(shared + stage * S::kBytes + S::kSumsAt) +
                 part * 2 * kTile + thread;
      to[0] = s.lse;
      to[kTile] = s.delta;
    }
    if constexpr (kBias)
      copy_bias<kTile, kPartRows, kWideBiasPitch>(at + S::kBiasAt, a, h, query0, row0, threadIdx.x,
                                                  kParts * kPartThreads);
  };
  copy(0, 0);
  copy_commit();
  int stage = 0;
  for (int query0 = 0; query0 < a.n_query; query0 += kTile, stage ^= 1) {
    if (query0 + kTile < a.n_query) copy(query0 + kTile, stage ^ 1);
    copy_commit();
    copy_wait<1>();
    __syncthreads();
    const uint32_t q_tile = base + stage * S::kBytes + part * 2 * S::kTileBytes,
                   d_tile = q_tile + S::kTileBytes;
    const auto* sums =
        reinterpret_cast<const float*>(shared + stage * S::kBytes + S::kSumsAt) + part * 2 * kTile;
    const auto* bias = reinterpret_cast<const float*>(shared + stage * S::kBytes + S::kBiasAt);
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      float x[2][2][4], dx[2][2][4];
      float2 lse[2];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int query = 16 * p + 8 * n + lane % 4 * 2;
        lse[n] = *reinterpret_cast<const float2*>(sums + query);
        const float2 delta = *reinterpret_cast<const float2*>(sums + kTile + query);
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            x[m][n][e] = 0;
            if constexpr (kBias)
              x[m][n][e] = bias[(query + e % 2) * kWideBiasPitch + warp * kWarpRows + 16 * m +
                                e / 2 * 8 + lane / 4] *
                           a.inverse_scale;
            dx[m][n][e] = e % 2 ? -delta.y : -delta.x;
          }
      }
      multiply_rows<kC>(x, k, q_tile, 16 * p, lane);
      multiply_rows<kC>(dx, v, d_tile, 16 * p, lane);
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            x[m][n][e] = exp2_fast(fmaf(x[m][n][e], a.scale2, -(e % 2 ? lse[n].y : lse[n].x)));
            dx[m][n][e] *= x[m][n][e];
          }
      if (kept != ~0u) {
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e)
              if (!(kept >> (16 * m + e / 2 * 8 + lane / 4) & 1)) {
                x[m][n][e] = (e % 2 ? lse[n].y : lse[n].x) == INFINITY ? even_weight : 0.0f;
                dx[m][n][e] = 0;
              }
      }
      uint32_t packed[2][4];
      pack(packed, x);
      multiply_channels<kC>(sum_v, packed, d_tile, 16 * p, lane);
      pack(packed, dx);
      multiply_channels<kC>(sum_k, packed, q_tile, 16 * p, lane);
    }
    __syncthreads();
  }
  if (!active) return;
  if (dk.base) add_rows<kC>(dk, sum_k, a.scale, b, h, row, a.n_key, a.c, lane);
  if (dv.base) add_rows<kC>(dv, sum_v, 1.0f, b, h, row, a.n_key, a.c_v, lane);
}

// dbias: a block owns 64 queries x 128 keys of one head, a warp 32 x 32, and passes over a part of
// the batch.

constexpr int kBlockQueries = 64, kBlockKeys = 128, kBiasThreads = 256;

template <int kC>
struct BiasStage {
  static constexpr int kTileBytes = kTile * kC * 2;
  static constexpr int kQueryTiles = kBlockQueries / kTile, kKeyTiles = kBlockKeys / kTile;
  static constexpr int kTiles = 2 * (kQueryTiles + kKeyTiles);  ///< q, d_out, k, v
  static constexpr int kNumbersAt = kTiles * kTileBytes;        ///< lse, delta, mask
  static constexpr int kBytes = kNumbersAt + (2 * kBlockQueries + kBlockKeys) * 4;
};

template <int kC>
__global__ void __launch_bounds__(kBiasThreads, kC == 64 ? 1 : 2)
    bias_kernel(Operands a, Gradients d, float* sums, int parts) {
  after_earlier();
  using S = BiasStage<kC>;
  extern __shared__ __align__(128) unsigned char shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int query_blocks = (a.n_query + kBlockQueries - 1) / kBlockQueries,
            key_blocks = (a.n_key + kBlockKeys - 1) / kBlockKeys;
  int64_t block = blockIdx.x;
  const int key_block = int(block % key_blocks);
  block /= key_blocks;
  const int query_block = int(block % query_blocks);
  block /= query_blocks;
  const int64_t h = block % a.n_head, part = block / a.n_head;
  const int first = int(part * a.batch / parts), last = int((part + 1) * a.batch / parts);
  const int query_tile = warp / S::kKeyTiles, key_tile = warp % S::kKeyTiles;
  const int query0 = query_block * kBlockQueries, key0 = key_block * kBlockKeys;
  const int query = query0 + query_tile * kTile + lane / 4,
            key = key0 + key_tile * kTile + lane % 4 * 2;

  // The bias as operands of products with the unit matrix, by 16 keys, 16 rows, 8 keys, 8 rows.
  uint32_t bias[2][2][2][2];
  float sum[2][2][2][4] = {};
#pragma unroll
  for (int p = 0; p < 2; ++p)
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          bias[p][m][n][e] = bias_pair(a, h, query + 16 * m + 8 * e, key + 16 * p + 8 * n);
  const uint32_t unit = unit_fragment(lane);
  const uint32_t base = shared_address(shared);
  const auto copy = [&](int64_t b, int stage) {
    const int half = threadIdx.x / kPartThreads, thread = threadIdx.x % kPartThreads;
    const uint32_t at = base + stage * S::kBytes;
    for (int t = half; t < S::kTiles; t += kBiasThreads / kPartThreads) {
      const uint32_t to = at + t * S::kTileBytes;
      if (t < S::kQueryTiles)
        copy_tile<kC>(to, a.q, b, h, query0 + t * kTile, a.n_query, a.c, thread);
      else if (t < 2 * S::kQueryTiles)
        copy_tile<kC>(to, a.d_out, b, h, query0 + (t - S::kQueryTiles) * kTile, a.n_query, a.c_v,
                      thread);
      else if (t < 2 * S::kQueryTiles + S::kKeyTiles)
        copy_tile<kC>(to, a.k, b, h, key0 + (t - 2 * S::kQueryTiles) * kTile, a.n_key, a.c, thread);
      else
        copy_tile<kC>(to, a.v, b, h, key0 + (t - 2 * S::kQueryTiles - S::kKeyTiles) * kTile,
                      a.n_key, a.c_v, thread);
    }
    // Queries and keys that do not exist have no sums to spoil.
    const uint32_t to = at + S::kNumbersAt + threadIdx.x * 4;
    const int i = query0 + int(threadIdx.x) % kBlockQueries, j = key0 + thread;
    if (half == 0) {
      const float* from = int(threadIdx.x) < kBlockQueries ? a.lse : a.delta;
      copy_async4(to, from + (b * a.n_head + h) * a.n_query + min(i, a.n_query - 1), 4);
    } else if (a.mask) {
      copy_async4(to, a.mask + b * a.mask_batch + int64_t(min(j, a.n_key - 1)) * a.mask_key, 4);
    }
  };
  copy(first, 0);
  copy_commit();
  for (int b = first, stage = 0; b < last; ++b, stage ^= 1) {
    if (b + 1 < last) copy(b + 1, stage ^ 1);
    copy_commit();
    copy_wait<1>();
    __syncthreads();
    const auto* numbers =
        reinterpret_cast<const float*>(shared + stage * S::kBytes + S::kNumbersAt);
    const float *lse = numbers + query_tile * kTile + lane / 4, *delta = lse + kBlockQueries;
    const unsigned kept =
        a.mask ? __ballot_sync(~0u, numbers[2 * kBlockQueries + key_tile * kTile + lane] != 0)
               : ~0u;
    const uint32_t at = base + stage * S::kBytes;
    RowFragments<kC> q, d_out;
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int k = 0; k < kC / 16; ++k) {
        load_a_rows<kC>(q.a[m][k], at + query_tile * S::kTileBytes, 16 * m, k, lane);
        load_a_rows<kC>(d_out.a[m][k], at + (S::kQueryTiles + query_tile) * S::kTileBytes, 16 * m,
                        k, lane);
      }
    const uint32_t k_tile = at + (2 * S::kQueryTiles + key_tile) * S::kTileBytes,
                   v_tile = k_tile + S::kKeyTiles * S::kTileBytes;
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      float x[2][2][4], dx[2][2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            x[m][n][e] = 0;
            dx[m][n][e] = -delta[16 * m + e / 2 * 8];
          }
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 2; ++n) mma_f16(x[m][n], bias[p][m][n][0], bias[p][m][n][1], unit);
      multiply_rows<kC>(x, q, k_tile, 16 * p, lane);
      multiply_rows<kC>(dx, d_out, v_tile, 16 * p, lane);
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            float w = exp2_fast(fmaf(x[m][n][e], a.scale2, -lse[16 * m + e / 2 * 8]));
            if (kept != ~0u && !(kept >> (16 * p + 8 * n + lane % 4 * 2 + e % 2) & 1)) w = 0;
            sum[p][m][n][e] = fmaf(w, dx[m][n][e], sum[p][m][n][e]);
          }
    }
    __syncthreads();
  }
#pragma unroll
  for (int p = 0; p < 2; ++p)
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int e = 0; e < 4; e += 2)
          leave_bias(a, d, sums, part, h, query + 16 * m + e / 2 * 8, key + 16 * p + 8 * n,
                     sum[p][m][n][e], sum[p][m][n][e + 1]);
}

template <int kC, int kParts, bool kBias>
void backward(const Operands& a, const Gradients& d) {
  const int64_t groups = ceil_div(a.batch, kParts) * a.n_head;
  const int threads = kParts * kPartThreads;
  if (d.k.base || d.v.base)
    launch<key_kernel<kC, kParts, kBias>>("attention's backward of keys and values",
                                          ceil_div(a.n_key, kPartRows) * groups, threads,
                                          2 * KeyStage<kC, kParts, kBias>::kBytes, a, d.k, d.v);
  if (d.q.base)
    launch<query_kernel<kC, kParts, kBias>>("attention's backward of queries",
                                            ceil_div(a.n_query, kPartRows) * groups, threads,
                                            2 * QueryStage<kC, kParts, kBias>::kBytes, a, d.q);
}

template <int kC>
void backward_of(const Operands& a, const Gradients& d) {
  a.bias ? backward<kC, 2, true>(a, d) : backward<kC, 1, false>(a, d);
}

template <int kC>
void backward_bias(const Operands& a, const Gradients& d) {
  const int64_t blocks =
      ceil_div(a.n_query, kBlockQueries) * ceil_div(a.n_key, kBlockKeys) * int64_t(a.n_head);
  const BiasParts parts(blocks, a.batch, int64_t(a.n_head) * a.n_query * a.n_key);
  launch<bias_kernel<kC>>("attention's backward of the bias", blocks * parts.count(), kBiasThreads,
                          2 * BiasStage<kC>::kBytes, a, d, parts.sums(), parts.count());
  parts.add_to(a, d);
}

}  // namespace

void attention_mma_backward(const Operands& a, const Gradients& d) {
  const int c = std::max(a.c, a.c_v);
  c <= 16 ? backward_of<16>(a, d) : c <= 32 ? backward_of<32>(a, d) : backward_of<64>(a, d);
}

void attention_mma_backward_bias(const Operands& a, const Gradients& d) {
  const int c = std::max(a.c, a.c_v);
  c <= 16 ? backward_bias<16>(a, d) : c <= 32 ? backward_bias<32>(a, d) : backward_bias<64>(a, d);
}

}  // namespace ff::cuda
