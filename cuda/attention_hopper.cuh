// Steps that the attention kernels of Hopper share: tiles of 64 rows in shared memory.
#pragma once

#include <algorithm>

#include "cuda/attention_mma.cuh"
#include "cuda/wgmma.cuh"

namespace ff::cuda {

constexpr int kTileRows = 64, kGroupThreads = 128;  ///< of a warpgroup

/// Whether the kernels of Hopper are for these shapes.
inline bool suits_hopper(const Operands& a) {
  return std::max(a.c, a.c_v) <= 32 && std::min(a.n_query, a.n_key) >= kTileRows;
}

/// What a thread copies of tile after tile of one (b, h) where kThreads copy them: the same chunk
/// of every kStep rows. Rows and channels that do not exist are 0.
template <int kC, int kThreads>
struct TileCopy {
  static constexpr int kChunks = kC / 8, kStep = kThreads / kChunks;
  static constexpr bool kIdle = kStep > kTileRows;  ///< whether some threads copy nothing

  const __nv_bfloat16* from;
  int row;     ///< of a tile
  bool there;  ///< whether its channels are
  uint32_t to;

  __device__ __forceinline__ TileCopy(const HeadView<const __nv_bfloat16>& view, int64_t b,
                                      int64_t h, int row0, int c, int thread)
      : from(view.at(b, row0 + thread / kChunks, h) + thread % kChunks * 8),
        row(thread / kChunks),
        there(thread % kChunks * 8 < c),
        to(chunk_offset<kC>(thread / kChunks, thread % kChunks)) {}
  /// A tile of which n rows exist, `beyond` elements further on.
  __device__ __forceinline__ void copy(const HeadView<const __nv_bfloat16>& view, uint32_t tile,
                                       int n, int64_t beyond = 0) const {
    if (kIdle && row >= kTileRows) return;
#pragma unroll
    for (int i = 0; i < kTileRows; i += kStep)
      copy_async16(tile + to + i * kC * 2, from + beyond + i * view.row,
                   there && row + i < n ? 16 : 0);
  }
  /// To the next tile.
  __device__ __forceinline__ void advance(const HeadView<const __nv_bfloat16>& view) {
    from += kTileRows * view.row;
  }
};

}  // namespace ff::cuda
