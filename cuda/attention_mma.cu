// Attention forward on tensor cores: softmax and both products of a tile stay in registers.
#include "cuda/attention_mma.cuh"

namespace ff::cuda {
namespace {

constexpr int kStageKeys = 64;

__global__ void __launch_bounds__(kPartThreads) pack_bias_kernel(Operands a, BiasPieces to) {
  after_earlier();
  const int lane = threadIdx.x % 32;
  const unsigned piece = blockIdx.x * kPartWarps + threadIdx.x / 32;
  const int column = int(piece % to.columns) * 16 + lane % 4 * 2;
  const int row = int(piece / to.columns % to.rows) * 16 + lane / 4;
  const int h = piece / to.columns / to.rows;
  if (h >= a.n_head) return;
  const auto pair = [&](int i, int j) { return bias_pair(a, h, i, j); };
  const_cast<uint4*>(to.at)[int64_t(piece) * 32 + lane] = make_uint4(
      pair(row, column), pair(row + 8, column), pair(row, column + 8), pair(row + 8, column + 8));
}

template <int kC>
struct Stage {
  static constexpr int kTileBytes = kTile * kC * 2, kTiles = kStageKeys / kTile;
  static constexpr int kBytes = 2 * kTiles * kTileBytes;  ///< keys, values
};

template <int kC, bool kBias>
__global__ void __launch_bounds__(kPartThreads, kC == 64 ? 2 : 4)
    forward_kernel(Operands a, BiasPieces bias) {
  after_earlier();
  using S = Stage<kC>;
  extern __shared__ __align__(128) unsigned char shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, thread = threadIdx.x;
  const int tiles = (a.n_query + kPartRows - 1) / kPartRows;
  const int row = blockIdx.x % tiles * kPartRows + warp * kWarpRows;
  const int64_t b = blockIdx.x / tiles % a.batch, h = blockIdx.x / tiles / a.batch;

  RowFragments<kC> q;
  q.load(a.q, b, h, row, a.n_query, a.c, lane);
  float out[2][kC / 8][4] = {}, sums[2][4] = {}, high[2][2];
#pragma unroll
  for (int m = 0; m < 2; ++m) high[m][0] = high[m][1] = -INFINITY;
  const float slack = 8 / a.scale2;

  const uint32_t base = shared_address(shared);
  const auto copy = [&](int key0, int stage) {
    const uint32_t to = base + stage * S::kBytes;
#pragma unroll
    for (int t = 0; t < S::kTiles; ++t) {
      copy_tile<kC>(to + 2 * t * S::kTileBytes, a.k, b, h, key0 + t * kTile, a.n_key, a.c, thread);
      copy_tile<kC>(to + (2 * t + 1) * S::kTileBytes, a.v, b, h, key0 + t * kTile, a.n_key, a.c_v,
                    thread);
    }
  };
  copy(0, 0);
  copy_commit();
  // Bits of the keys that are not masked, 32 at a time.
  auto* const kept_words = reinterpret_cast<unsigned*>(shared + 2 * S::kBytes);
  // Orders the copies and matrix loads alone, which are volatile: other loads may pass it.
  const auto barrier = [] { asm volatile("bar.sync 0;\n"); };
  if (a.mask)
    for (int key0 = warp * kTile; key0 < a.n_key; key0 += kPartRows) {
      const unsigned kept = key_bits(a, b, key0, lane).kept;
      if (lane == 0) kept_words[key0 / kTile] = kept;
    }

  __syncthreads();

  uint4 next[2][2];
  const uint4* const pieces = kBias && row < a.n_query ? bias.row(h, row / 16, lane) : nullptr;
  const auto fetch = [&](int key0, int p) {
#pragma unroll
    for (int m = 0; m < 2; ++m)
      next[m][p] = pieces && key0 < a.n_key
                       ? __ldg(pieces + (m * bias.columns + key0 / 16 + p) * 32)
                       : make_uint4(0, 0, 0, 0);
  };
  if constexpr (kBias) {
    fetch(0, 0);
    fetch(0, 1);
  }
  const uint32_t unit = unit_fragment(lane);

  for (int first = 0, stage = 0; first < a.n_key; first += kStageKeys, stage ^= 1) {
    copy_wait<0>();
    barrier();  // these keys are there, and all are done with those before
    if (first + kStageKeys < a.n_key) copy(first + kStageKeys, stage ^ 1);
    copy_commit();
#pragma unroll 1
    for (int t = 0; t < S::kTiles; ++t) {
      const int key0 = first + t * kTile;
      if (key0 >= a.n_key) break;
      const uint32_t k_tile = base + stage * S::kBytes + 2 * t * S::kTileBytes,
                     v_tile = k_tile + S::kTileBytes;
      float x[2][2][2][4];  // by 16 keys, 16 rows, 8 keys
#pragma unroll
      for (int p = 0; p < 2; ++p) {
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) x[p][m][n][e] = 0;
        if constexpr (kBias) {
#pragma unroll
          for (int m = 0; m < 2; ++m) add_piece(x[p][m][0], x[p][m][1], next[m][p], unit);
        }
        multiply_rows<kC>(x[p], q, k_tile, 16 * p, lane);
      }
      // Bit e of a thread's key n of p: 16 p + 8 n + 2 t + e.
      const int left = a.n_key - key0;
      const unsigned all_there = left >= kTile ? ~0u : (1u << left) - 1;
      const unsigned all_kept = a.mask ? kept_words[key0 / kTile] : all_there;
      const unsigned there = all_there >> lane % 4 * 2, kept = all_kept >> lane % 4 * 2;
      if (all_kept != ~0u) {
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
          grows |= top[m][i] > high[m][i] + slack;
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
        if (all_kept != ~0u) {
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
        if constexpr (kBias) fetch(key0 + kTile, p);
      }
    }
  }
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

template <int kC, bool kBias>
void forward(const Operands& a) {
  const PackedBias bias(a);
  const int64_t blocks = ceil_div(a.n_query, kPartRows) * a.batch * int64_t(a.n_head),
                words = a.mask ? ceil_div(a.n_key, kTile) : 0;
  launch<forward_kernel<kC, kBias>>("attention", blocks, kPartThreads,
                                    2 * Stage<kC>::kBytes + 4 * words, a, bias.pieces());
}

template <int kC>
void forward_of(const Operands& a) {
  a.bias ? forward<kC, true>(a) : forward<kC, false>(a);
}

}  // namespace

PackedBias::PackedBias(const Operands& a) {
  if (!a.bias) return;
  const auto pieces = [](int n) { return int(kPieceRun * ceil_div(n, 16 * kPieceRun)); };
  pieces_.rows = pieces(a.n_query);
  pieces_.columns = pieces(a.n_key);
  const int64_t count = int64_t(a.n_head) * pieces_.rows * pieces_.columns;
  memory_.emplace(count * 32 * int64_t(sizeof(uint4)));
  pieces_.at = memory_->data<uint4>();
  launch<pack_bias_kernel>("attention's bias", ceil_div(count, kPartWarps), kPartThreads, 0, a,
                           pieces_);
}

void attention_mma(const Operands& a) {
  const int c = std::max(a.c, a.c_v);
  c <= 16 ? forward_of<16>(a) : c <= 32 ? forward_of<32>(a) : forward_of<64>(a);
}

}  // namespace ff::cuda
