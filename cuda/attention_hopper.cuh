// Steps that the attention kernels of Hopper share: tiles of 64 rows in shared memory.
#pragma once

#include <algorithm>

#include "cuda/attention_mma.cuh"
#include "cuda/wgmma.cuh"

namespace ff::cuda {

constexpr int kTileRows = 64;  ///< of a warpgroup

constexpr int kRows = 2;  ///< of the batch, of a block: they share the bias

/// The most blocks that a launch may have in its second and third dimension.
constexpr int kMostBlocks = 65535;

/// Whether the kernels of Hopper are for this device and these shapes.
inline bool suits_hopper(const Operands& a) {
  return device_info().hopper() && std::max(a.c, a.c_v) <= 32 &&
         std::min(a.n_query, a.n_key) >= kTileRows && a.batch <= kRows * kMostBlocks &&
         a.n_head <= kMostBlocks;
}

/// Pairs of rows of the batch and head.
template <class T>
int64_t row_pairs(const Attention<T>& a) {
  return ceil_div(a.batch, kRows) * a.n_head;
}

/// Blocks (tile, rows of the batch, head): three numbers that no block must divide for.
inline dim3 row_blocks(const Operands& a, int64_t tiles) {
  return {unsigned(tiles), unsigned(ceil_div(a.batch, kRows)), unsigned(a.n_head)};
}

/// What a thread copies of tile after tile of one head where kThreads copy them: the same chunk of
/// every kStep rows. Rows and channels that do not exist are 0.
template <int kC, int kThreads>
struct TileCopy {
  static constexpr int kChunks = kC / 8, kStep = kThreads / kChunks;
  static constexpr bool kIdle = kStep > kTileRows;  ///< whether some threads copy nothing

  const __nv_bfloat16* from;
  int row;     ///< of a tile
  bool there;  ///< whether its channels are
  uint32_t to;

  template <class View>
  __device__ __forceinline__ TileCopy(const View& view, int64_t b, int64_t h, int row0, int c,
                                      int thread)
      : from(view.at(b, row0 + thread / kChunks, h) + thread % kChunks * 8),
        row(thread / kChunks),
        there(thread % kChunks * 8 < c),
        to(chunk_offset<kC>(thread / kChunks, thread % kChunks)) {}
  /// A tile of which n rows exist, `beyond` elements further on.
  template <class View>
  __device__ __forceinline__ void copy(const View& view, uint32_t tile, int n,
                                       int64_t beyond = 0) const {
    if (kIdle && row >= kTileRows) return;
#pragma unroll
    for (int i = 0; i < kTileRows; i += kStep)
      copy_async16(tile + to + i * kC * 2, from + beyond + i * view.row,
                   there && row + i < n ? 16 : 0);
  }
};

/// Where a thread of a product keeps two channels, 8 j + lane % 4 * 2 and the next, of row `row`.
template <int kC>
__device__ __forceinline__ uint32_t& tile_pair(unsigned char* tile, int row, int j, int lane) {
  return *reinterpret_cast<uint32_t*>(tile + chunk_offset<kC>(row, j) + lane % 4 * 4);
}

/// The warp's 16 rows of a tile to rows row0 + ... of `to`, of which n exist, 16 bytes at a time.
template <int kC>
__device__ __forceinline__ void store_rows(const HeadView<__nv_bfloat16>& to, int64_t b, int64_t h,
                                           int row0, int n, int c, const unsigned char* tile,
                                           int warp, int lane) {
  __syncwarp();
#pragma unroll
  for (int i = lane; i < 16 * kC / 8; i += 32) {
    const int row = warp * 16 + i / (kC / 8), chunk = i % (kC / 8);
    if (row0 + row < n && chunk * 8 < c)
      *reinterpret_cast<uint4*>(to.at(b, row0 + row, h) + chunk * 8) =
          *reinterpret_cast<const uint4*>(tile + chunk_offset<kC>(row, chunk));
  }
}

/// Bits of the keys of row b of the batch that are there and not masked, 32 at a time, by a
/// warpgroup; the loads of some are on their way at once.
__device__ __forceinline__ void keep_key_bits(const Operands& a, int64_t b, unsigned* bits,
                                              int words, int warp, int lane) {
  constexpr int kAtOnce = 8, kWarps = kGroupThreads / 32, kStep = 32 * kWarps;
  const int64_t step = kStep * a.mask_key;
  int64_t at = b * a.mask_batch + (warp * 32 + lane) * a.mask_key;
  for (int first = warp; first < words; first += kAtOnce * kWarps) {
    float mask[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u, at += step) {
      mask[u] = first * 32 + lane + u * kStep < a.n_key;
      if (a.mask && mask[u] != 0) mask[u] = a.mask[at];
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int word = first + u * kWarps;
      const unsigned kept = __ballot_sync(~0u, mask[u] != 0);
      if (lane == 0 && word < words) bits[word] = kept;
    }
  }
}

}  // namespace ff::cuda
