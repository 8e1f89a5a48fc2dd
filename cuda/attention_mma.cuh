// Steps that the tensor-core kernels of attention share. A warp owns 32 rows (queries, or keys in
// the backward of keys and values) in registers and passes over the other side in tiles of 32.
#pragma once

#include "cuda/attention.cuh"
#include "cuda/mma.cuh"

namespace ff::cuda {

constexpr int kWarpRows = 32, kTile = 32;
constexpr int kPartWarps = 4;  ///< warps that share a row of the batch
constexpr int kPartThreads = 32 * kPartWarps;
constexpr int kPartRows = kWarpRows * kPartWarps;

using Operands = Attention<__nv_bfloat16>;

/// The bias in units of `scale` as f16, in the order in which a warp reads it: a piece of 16 rows x
/// 16 columns is 16 bytes of each lane, the A operands of two products with 8 columns of the unit
/// matrix, which put it where the logits are summed. Numbers that do not exist are 0. Pieces come
/// in runs of `kPieceRun` in both directions.
constexpr int kPieceRun = 4;
struct BiasPieces {
  const uint4* at = nullptr;  ///< [head, row / 16, column / 16, lane]
  int rows = 0, columns = 0;  ///< pieces of them
  /// Of a lane: the first piece of a row of pieces.
  __device__ __forceinline__ const uint4* row(int64_t h, int row_piece, int lane) const {
    return at + ((h * rows + row_piece) * columns) * 32 + lane;
  }
};

/// Two numbers of a piece: query i, keys j and j + 1. What f16 cannot hold becomes the most that
/// it can: an infinite one would spoil its row in the product that adds it.
__device__ __forceinline__ uint32_t bias_pair(const Operands& a, int64_t h, int i, int j) {
  float x[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const bool there = i < a.n_query && j + e < a.n_key;
    x[e] = there ? a.bias[h * a.bias_head + i * a.bias_row + j + e] * a.inverse_scale : 0.0f;
    constexpr float kMost = 65504;
    if (x[e] > kMost) x[e] = kMost;
    if (x[e] < -kMost) x[e] = -kMost;
  }
  return pack_f16(x[0], x[1]);
}

/// Pieces in temporary memory, rows are queries; none where there is no bias.
class PackedBias {
 public:
  explicit PackedBias(const Operands& a);
  const BiasPieces& pieces() const { return pieces_; }

 private:
  BiasPieces pieces_;
  std::optional<Scratch> memory_;
};

/// x (16 rows x 16 columns as two fragments) += a piece of the bias.
__device__ __forceinline__ void add_piece(float (&low)[4], float (&high)[4], const uint4& piece,
                                          uint32_t unit) {
  mma_f16(low, piece.x, piece.y, unit);
  mma_f16(high, piece.z, piece.w, unit);
}

/// x = a piece of the bias.
__device__ __forceinline__ void begin_with_piece(float (&x)[8], const uint4& piece, uint32_t unit) {
  mma_f16_first(reinterpret_cast<float(&)[4]>(x[0]), piece.x, piece.y, unit);
  mma_f16_first(reinterpret_cast<float(&)[4]>(x[4]), piece.z, piece.w, unit);
}

/// x = a piece of the bias, transposed: the unit matrix times it.
__device__ __forceinline__ void begin_with_transposed(float (&x)[8], const uint4& piece,
                                                      uint32_t unit) {
  mma_f16_first(reinterpret_cast<float(&)[4]>(x[0]), unit, 0, 0, unit, piece.x, piece.z);
  mma_f16_first(reinterpret_cast<float(&)[4]>(x[4]), unit, 0, 0, unit, piece.y, piece.w);
}

/// Rows of a warp as A operands: rows `row` + 16 m + ..., from memory; rows from n and channels
/// from c are 0.
template <int kC>
struct RowFragments {
  uint32_t a[2][kC / 16][4];

  __device__ __forceinline__ void load(const HeadView<const __nv_bfloat16>& view, int64_t b,
                                       int64_t h, int row, int n, int c, int lane) {
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int r = row + 16 * m + 8 * i + lane / 4;
        const __nv_bfloat16* from = view.at(b, r < n ? r : 0, h);
#pragma unroll
        for (int k = 0; k < kC / 16; ++k)
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int channel = 16 * k + 8 * j + lane % 4 * 2;
            a[m][k][i + 2 * j] =
                r < n && channel < c ? *reinterpret_cast<const uint32_t*>(from + channel) : 0u;
          }
      }
  }
};

/// Copies rows row0 ... row0 + kRows - 1 of (b, h) to a tile by `kPartThreads` threads; `thread`
/// counts them.
template <int kC, int kRows = kTile>
__device__ __forceinline__ void copy_tile(uint32_t tile, const HeadView<const __nv_bfloat16>& view,
                                          int64_t b, int64_t h, int row0, int n, int c,
                                          int thread) {
  constexpr int kChunks = kC / 8;
#pragma unroll
  for (int i = thread; i < kRows * kChunks; i += kPartThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const bool there = row0 + row < n && chunk * 8 < c;
    const __nv_bfloat16* from = view.at(b, there ? row0 + row : 0, h) + (there ? chunk * 8 : 0);
    copy_async16(tile + chunk_offset<kC>(row, chunk), from, there ? 16 : 0);
  }
}

/// Copies a kRows x kColumns piece of bias[h] to shared memory, rows kPitch floats apart.
template <int kRows, int kColumns, int kPitch>
__device__ __forceinline__ void copy_bias(uint32_t to, const Operands& a, int64_t h, int row0,
                                          int column0, int thread, int threads) {
  const float* base = a.bias + h * a.bias_head;
  if (a.wide_bias) {
    for (int i = thread; i < kRows * kColumns / 4; i += threads) {
      const int row = i / (kColumns / 4), column = i % (kColumns / 4) * 4;
      const int left = row0 + row < a.n_query ? a.n_key - column0 - column : 0;
      const float* from = left > 0 ? base + (row0 + row) * a.bias_row + column0 + column : base;
      copy_async16(to + (row * kPitch + column) * 4, from,
                   left <= 0  ? 0
                   : left < 4 ? 4 * left
                              : 16);
    }
  } else {
    for (int i = thread; i < kRows * kColumns; i += threads) {
      const int row = i / kColumns, column = i % kColumns;
      const bool there = row0 + row < a.n_query && column0 + column < a.n_key;
      const float* from = there ? base + (row0 + row) * a.bias_row + column0 + column : base;
      copy_async4(to + (row * kPitch + column) * 4, from, there ? 4 : 0);
    }
  }
}

/// Which of 32 keys from key0 exist, and which of them are not masked; a bit a key.
struct KeyBits {
  unsigned there, kept;
};
__device__ __forceinline__ KeyBits key_bits(const Operands& a, int64_t b, int key0, int lane) {
  const bool there = key0 + lane < a.n_key;
  bool kept = there;
  if (a.mask && there) kept = a.mask[b * a.mask_batch + int64_t(key0 + lane) * a.mask_key] != 0;
  return {__ballot_sync(~0u, there), __ballot_sync(~0u, kept)};
}

/// d (32 rows x 16 columns) += the warp's rows times rows n0 ... n0 + 15 of a tile.
template <int kC>
__device__ __forceinline__ void multiply_rows(float (&d)[2][2][4], const RowFragments<kC>& rows,
                                              uint32_t tile, int n0, int lane) {
#pragma unroll
  for (int k = 0; k < kC / 16; ++k) {
    uint32_t b[4];
    load_b_rows<kC>(b, tile, n0, k, lane);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      mma(d[m][0], rows.a[m][k], b[0], b[1]);
      mma(d[m][1], rows.a[m][k], b[2], b[3]);
    }
  }
}

/// sum (32 rows x kC channels) += x (32 x 16) times rows k0 ... k0 + 15 of a tile.
template <int kC>
__device__ __forceinline__ void multiply_channels(float (&sum)[2][kC / 8][4],
                                                  const uint32_t (&x)[2][4], uint32_t tile, int k0,
                                                  int lane) {
#pragma unroll
  for (int n = 0; n < kC / 16; ++n) {
    uint32_t b[4];
    load_b_channels<kC>(b, tile, k0, n, lane);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      mma(sum[m][2 * n], x[m], b[0], b[1]);
      mma(sum[m][2 * n + 1], x[m], b[2], b[3]);
    }
  }
}

/// A 32 x 16 piece of weights as the A operand of the next product.
__device__ __forceinline__ void pack(uint32_t (&to)[2][4], const float (&x)[2][2][4]) {
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      to[m][2 * n] = pack_bf16(x[m][n][0], x[m][n][1]);
      to[m][2 * n + 1] = pack_bf16(x[m][n][2], x[m][n][3]);
    }
}

/// One row's pair of channels: to += factor * (x, y).
__device__ __forceinline__ void add_pair(__nv_bfloat16* to, float factor, float x, float y) {
  auto* p = reinterpret_cast<uint32_t*>(to);
  *p = pack_bf16(low_bf16(*p) + factor * x, high_bf16(*p) + factor * y);
}

/// to += factor * sum, rows `row` + ... below n, channels below c.
template <int kC>
__device__ __forceinline__ void add_rows(const HeadView<__nv_bfloat16>& to,
                                         const float (&sum)[2][kC / 8][4], float factor, int64_t b,
                                         int64_t h, int row, int n, int c, int lane) {
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = row + 16 * m + 8 * i + lane / 4;
      if (r >= n) continue;
#pragma unroll
      for (int j = 0; j < kC / 8; ++j) {
        const int channel = 8 * j + lane % 4 * 2;
        if (channel >= c) continue;
        add_pair(to.at(b, r, h) + channel, factor, sum[m][j][2 * i], sum[m][j][2 * i + 1]);
      }
    }
}

/// Two numbers of the bias's gradient, of keys j and j + 1, j even, of `part` of the batch: into
/// `sums`, or added to the gradient where there is one part.
__device__ __forceinline__ void leave_bias(const Operands& a,
                                           const AttentionGradients<__nv_bfloat16>& d, float* sums,
                                           int64_t part, int64_t h, int i, int j, float x,
                                           float y) {
  if (i >= a.n_query || j >= a.n_key) return;
  if (sums) {
    float* to = sums + ((part * a.n_head + h) * a.n_query + i) * a.n_key + j;
    if (a.n_key % 2 == 0) {
      *reinterpret_cast<float2*>(to) = make_float2(x, y);
    } else {
      to[0] = x;
      if (j + 1 < a.n_key) to[1] = y;
    }
  } else {
    float* to = d.bias + h * d.bias_head + i * d.bias_row + j;
    to[0] += x;
    if (j + 1 < a.n_key) to[1] += y;
  }
}

}  // namespace ff::cuda
