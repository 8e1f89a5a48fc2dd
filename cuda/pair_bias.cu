// Attention's bias from the pair representation: the layer norm and its product with at most eight
// heads in one pass over z, on the matrix unit. With d = z - mean, r = 1/std, x = r d and v = scale
// w, which is kept as the sum of two numbers of bf16: bias = r d . v + offset . w, where d . v =
// z . v - mean sum(v): z goes to the products as it is, and the sum of a row is its product with
// ones. With w = r dbias and g = d . v, dz = w . v + level - slope z, whose slope = r^2 w . g / c
// and level = slope mean - sum(w . v) / c are two numbers a row.
//
// A warp has 16 rows of z at a time. Thread (g, t) = (lane / 4, lane % 4) holds of rows g and g + 8
// the chunks of 8 channels at 32 j + 8 t: pair p of chunk j are channels 32 j + 8 t + 2 p and the
// next. So channel n of an 8-wide tile (j, p) of the matrix unit is 32 j + 8 (n / 2) + 2 p + n % 2.
#include <algorithm>
#include <type_traits>

#include "cuda/mma.cuh"
#include "cuda/table.h"
#include "cuda/walk.cuh"

namespace ff::cuda {
namespace {

using bf16_t = __nv_bfloat16;

constexpr int kThreads = 256, kWarps = kThreads / 32, kRows = 16, kHeads = 8, kV = 8;

/// Row r of a tensor [n, m, ..], all fewer than 2^31, begins at q i + (r - q m) j, q = r / m.
template <class T>
struct Cells {
  Cells(T* base, int64_t m, int64_t i, int64_t j)
      : base(base), i(uint32_t(i)), j(uint32_t(j)), by_m(m) {
    check(std::max({i, j, m}) <= UINT32_MAX, "rows ", i, " and ", j, " apart");
  }
  __device__ __forceinline__ T* row(uint32_t r) const {
    const uint32_t q = by_m.of(r);
    return base + int64_t(uint64_t(q) * i + uint64_t(r - q * by_m.m) * j);
  }
  T* base;
  uint32_t i, j;
  Division by_m;
};

/// z [n, m, c], or its gradient.
struct Grid : Cells<bf16_t> {
  explicit Grid(const Tensor& t)
      : Cells(data<bf16_t>(t), t.size(1), t.stride(0), t.stride(1)),
        n(uint32_t(t.size(0) * t.size(1))),
        c(int(t.size(2))) {}
  uint32_t n;
  int c;
};

/// A bias [h, n, m] of any strides, head after head.
struct Plane : Cells<float> {
  explicit Plane(const Tensor& t)
      : Cells(t.data<float>(), t.size(2), t.stride(1), t.stride(2)),
        head(t.stride(0)),
        heads(int(t.size(0))) {}
  int64_t head;
  int heads;
};

struct Layer {
  const float *scale, *offset;
  const bf16_t* w;
  int c, heads;
};

/// Two numbers as sums of two of bf16: the larger parts, the rest.
__device__ __forceinline__ void split_pair(float first, float second, uint32_t& most,
                                           uint32_t& rest) {
  most = pack_bf16(first, second);
  rest = pack_bf16(first - low_bf16(most), second - high_bf16(most));
}

/// v of 32 kChunks channels and kHeads heads, zero where there is none, made by the whole block:
/// the larger parts and the rest, by heads apart so that rows meet in no bank.
template <int kChunks>
struct Weights {
  static constexpr int kChannels = 32 * kChunks, kRow = kChannels + 8;
  __device__ __forceinline__ void make(const Layer& l) {
    const int head = threadIdx.x % kHeads;
    float sum = 0, total = 0;
    static_assert(kChannels % (kThreads / kHeads) == 0);
#pragma unroll
    for (int first = 0; first < kChannels; first += kThreads / kHeads) {
      const int channel = first + threadIdx.x / kHeads;
      const bool there = channel < l.c && head < l.heads;
      // What does not exist gets the first's numbers: no load waits for a condition.
      const int i = there ? channel : 0;
      const float w = to_float(l.w[there ? channel * l.heads + head : 0]),
                  v = there ? w * l.scale[i] : 0.0f, o = w * l.offset[i];
      sum += there ? o : 0.0f;
      const bf16_t larger = from_float<bf16_t>(v),
                   smaller = from_float<bf16_t>(v - to_float(larger));
      total += to_float(larger) + to_float(smaller);
      most[head * kRow + channel] = larger;
      rest[head * kRow + channel] = smaller;
    }
    for (int d = kHeads; d < 32; d *= 2) {
      sum += __shfl_xor_sync(~0u, sum, d);
      total += __shfl_xor_sync(~0u, total, d);
    }
    if (threadIdx.x % 32 < kHeads) of_warp[threadIdx.x / 32][head] = make_float2(sum, total);
    __syncthreads();
  }
  /// offset . w and sum(v) of a head.
  __device__ __forceinline__ float2 sums_of(int head) const {
    float2 sum = {};
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      sum.x += of_warp[warp][head].x;
      sum.y += of_warp[warp][head].y;
    }
    return sum;
  }
  alignas(16) bf16_t most[kHeads * kRow];
  alignas(16) bf16_t rest[kHeads * kRow];
  float2 of_warp[kWarps][kHeads];
};

using Chunk = Raw<bf16_t, kV>;

/// f(k, j, from, there) of a thread's chunks j in rows row0 + g + 8 k; in place of rows and chunks
/// that do not exist, the first. Nothing where the warp has no row: all of them would wait for the
/// first.
template <int kChunks, class F>
__device__ __forceinline__ void each_chunk(const Grid& grid, uint32_t row0, int g, int t, F f) {
  if (row0 >= grid.n) return;
  const bf16_t* row[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const uint32_t r = row0 + g + 8 * k;
    row[k] = grid.row(r < grid.n ? r : 0) + 8 * t;
  }
  const auto all = [&](auto there) {
#pragma unroll
    for (int k = 0; k < 2; ++k)
#pragma unroll
      for (int j = 0; j < kChunks; ++j) f(k, j, row[k] + (there(j) ? 32 * j : -8 * t), there(j));
  };
  if (grid.c == 32 * kChunks)
    all([](int) { return true; });
  else
    all([&](int j) { return 32 * j + 8 * t < grid.c; });
}

/// A warp's rows in shared memory, chunks that do not exist as zeros. Neither rows by lanes nor
/// columns by matrices meet in a bank.
template <int kChunks>
struct Stage {
  __device__ __forceinline__ Chunk& at(int row, int chunk) {
    return chunks[row * 4 * kChunks + (chunk ^ (row % 2 * 4 + row / 2 % 4))];
  }
  /// at(g + 8 k, 4 j + t), a place apart for all k and j.
  __device__ __forceinline__ Chunk& of(int g, int t, int k, int j) {
    return (chunks + g * 4 * kChunks + (t ^ g / 2) +
            (j % 2 ? -4 : 4) * (g % 2))[32 * kChunks * k + 4 * j];
  }
  /// Begins to copy rows row0, row0 + 1, ...
  __device__ __forceinline__ void fetch(const Grid& from, uint32_t row0, int g, int t) {
    __syncwarp();
    each_chunk<kChunks>(from, row0, g, t, [&](int k, int j, const bf16_t* chunk, bool there) {
      copy_async16(shared_address(&of(g, t, k, j)), chunk, there ? 16 : 0);
    });
    copy_commit();
  }
  Chunk chunks[kRows * 4 * kChunks];
};

/// A thread's part of two rows, zeros in place of chunks that do not exist.
template <int kChunks>
struct Held {
  __device__ __forceinline__ void load(const Grid& from, uint32_t row0, int g, int t) {
    each_chunk<kChunks>(from, row0, g, t, [&](int k, int j, const bf16_t* at, bool) {
      chunk[k][j] = load_raw<kV>(at);
    });
    if (from.c < 32 * kChunks)
#pragma unroll
      for (int k = 0; k < 2; ++k)
#pragma unroll
        for (int j = 0; j < kChunks; ++j)
          if (32 * j + 8 * t >= from.c) chunk[k][j] = Chunk();
  }
  __device__ __forceinline__ void load(Stage<kChunks>& from, int g, int t) {
#pragma unroll
    for (int k = 0; k < 2; ++k)
#pragma unroll
      for (int j = 0; j < kChunks; ++j) chunk[k][j] = from.of(g, t, k, j);
  }
  /// Adds pairs p and p + 1 of chunk j of 16 rows, times b.
  __device__ __forceinline__ void product(int j, int p, float (&to)[4], uint32_t b0,
                                          uint32_t b1) const {
    const uint32_t a[4] = {chunk[0][j].at[p], chunk[1][j].at[p], chunk[0][j].at[p + 1],
                           chunk[1][j].at[p + 1]};
    mma(to, a, b0, b1);
  }
  Chunk chunk[2][kChunks];
};

/// Both rows' mean and 1/std, and (z - mean) . v of heads 2 t and the next: element 2 k + e.
struct Normed {
  /// share: 1 / c; totals: sum(v) of the two heads.
  template <int kChunks>
  __device__ __forceinline__ Normed(const Held<kChunks>& rows, const Weights<kChunks>& weights,
                                    float share, const float (&totals)[2], int g, int t) {
    constexpr uint32_t kOnes = 0x3F803F80;  // two of bf16
    float sums[2][4] = {}, rest[4] = {}, squares[2][4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) logits[i] = 0;
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      const int at = g * weights.kRow + 32 * j + 8 * t;
      const auto larger = load_pack<4>(reinterpret_cast<const uint32_t*>(weights.most + at)),
                 smaller = load_pack<4>(reinterpret_cast<const uint32_t*>(weights.rest + at));
#pragma unroll
      for (int p = 0; p < 4; p += 2) {
        rows.product(j, p, sums[p / 2], kOnes, kOnes);
        rows.product(j, p, logits, larger.at[p], larger.at[p + 1]);
        rows.product(j, p, rest, smaller.at[p], smaller.at[p + 1]);
#pragma unroll
        for (int k = 0; k < 2; ++k)  // by rows 8 k, 8 k + 1, ...: what lies on the diagonal counts
          rows.product(j, p, squares[k], rows.chunk[k][j].at[p], rows.chunk[k][j].at[p + 1]);
      }
    }
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      mean[k] = (sums[0][2 * k] + sums[1][2 * k]) * share;
      // Where a mean is large beside the deviation the row has one exponent or two: f32 has the
      // sum of such squares without error.
      const float square = g % 2 ? squares[k][2 * k + 1] : squares[k][2 * k];
      const float variance =
          fmaxf(__shfl_sync(~0u, square, 4 * g + g / 2) * share - mean[k] * mean[k], 0);
      rstd[k] = rsqrtf(variance + kNormEpsilon);
#pragma unroll
      for (int e = 0; e < 2; ++e) logits[2 * k + e] += rest[2 * k + e] - mean[k] * totals[e];
    }
  }
  float mean[2], rstd[2], logits[4];
};

/// The next rows are on their way while these are worked on.
template <int kChunks>
__global__ void __launch_bounds__(kThreads, 2)
    forward_kernel(const __grid_constant__ Grid z, const __grid_constant__ Layer layer,
                   const __grid_constant__ Plane bias) {
  after_earlier();
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, c = layer.c;
  const uint32_t n = z.n, step = gridDim.x * kWarps * kRows;
  uint32_t row0 = (blockIdx.x * kWarps + threadIdx.x / 32) * kRows;
  Held<kChunks> rows, next;
  rows.load(z, row0, g, t);
  __shared__ Weights<kChunks> weights;
  weights.make(layer);
  const float2 sums[2] = {weights.sums_of(2 * t), weights.sums_of(2 * t + 1)};
  const float share = 1 / float(c), bases[2] = {sums[0].x, sums[1].x},
              totals[2] = {sums[0].y, sums[1].y};
  for (; row0 < n; row0 += step, rows = next) {
    next.load(z, row0 + step, g, t);
    const Normed normed(rows, weights, share, totals, g, t);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const uint32_t r = row0 + g + 8 * k;
      if (r >= n) continue;
      float* const to = bias.row(r) + 2 * t * bias.head;
#pragma unroll
      for (int e = 0; e < 2; ++e)
        if (2 * t + e < bias.heads)
          to[e * bias.head] = normed.logits[2 * k + e] * normed.rstd[k] + bases[e];
    }
  }
}

/// As many whatever the GPU: the sums' order is always the same.
constexpr int64_t kBackwardBlocks = 264;

/// A block's shared memory in the backward: too much for what kernels have by themselves.
template <int kChunks>
struct Room {
  Stage<kChunks> stages[2][kWarps];
  Weights<kChunks> weights;
  /// As lanes take them: v[channel n of a tile (j, p) = g, heads 2 t and the next], both parts.
  uint2 by_lane[kChunks * 4][32];
};

/// partial [blocks, c h + h]: the blocks' sums of x[c] dbias[h], and of dbias[h].
template <int kChunks, bool kAdds>
__global__ void __launch_bounds__(kThreads, 2)
    backward_kernel(const __grid_constant__ Grid z, const __grid_constant__ Layer layer,
                    const __grid_constant__ Plane dbias, const __grid_constant__ Grid dz,
                    float* partial) {
  after_earlier();
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, c = layer.c, heads = layer.heads;
  const uint32_t n = z.n, step = gridDim.x * kWarps * kRows;
  const float share = 1 / float(c);
  uint32_t row0 = (blockIdx.x * kWarps + threadIdx.x / 32) * kRows;
  extern __shared__ __align__(16) unsigned char shared[];
  auto& [stages, weights, by_lane] = *reinterpret_cast<Room<kChunks>*>(shared);
  auto *stage = &stages[0][threadIdx.x / 32], *other = &stages[1][threadIdx.x / 32];
  stage->fetch(z, row0, g, t);
  weights.make(layer);
  for (int tile = threadIdx.x / 32; tile < kChunks * 4; tile += kWarps) {
    const int at = 2 * t * weights.kRow + 32 * (tile / 4) + 8 * (g / 2) + 2 * (tile % 4) + g % 2;
    const auto pair = [&](const bf16_t* v) {
      return pack_bf16(to_float(v[at]), to_float(v[at + weights.kRow]));
    };
    by_lane[tile][lane] = make_uint2(pair(weights.most), pair(weights.rest));
  }
  __syncthreads();
  const float totals[2] = {weights.sums_of(2 * t).y, weights.sums_of(2 * t + 1).y};
  // Of head g: dbias, and mean w. Of channels 16 i + g and 16 i + 8 + g, heads 2 t and the next:
  // z w.
  float whole = 0, shift = 0, sums[2 * kChunks][4] = {};
  for (; row0 < n; row0 += step) {
    float of_head[4];  // dbias of head g, rows 2 t, 2 t + 1, 2 t + 8, 2 t + 9
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const uint32_t r = row0 + 2 * t + k % 2 + k / 2 * 8;
      of_head[k] = r < n && g < heads ? dbias.row(r)[g * dbias.head] : 0.0f;
    }
    other->fetch(z, row0 + step, g, t);
    copy_wait<1>();
    __syncwarp();
    Held<kChunks> rows;
    rows.load(*stage, g, t);
    const Normed normed(rows, weights, share, totals, g, t);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int owner = 8 * t + k % 2 * 4;
      whole += of_head[k];
      of_head[k] *= __shfl_sync(~0u, normed.rstd[k / 2], owner);
      shift += of_head[k] * __shfl_sync(~0u, normed.mean[k / 2], owner);
    }
    uint32_t up[4];  // w as rows of heads: the larger parts' first and last 8 columns, the rest's
    split_pair(of_head[0], of_head[1], up[0], up[1]);
    split_pair(of_head[2], of_head[3], up[2], up[3]);
    const uint32_t first = transpose_matrix(up[0]), last = transpose_matrix(up[2]),
                   by_row[4] = {first, last, first, last};
    float level[2], slope[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float w[2] = {low_bf16(by_row[k]), high_bf16(by_row[k])};
      slope[k] = quad_sum(w[0] * normed.logits[2 * k] + w[1] * normed.logits[2 * k + 1]) * share *
                 (normed.rstd[k] * normed.rstd[k]);
      level[k] = slope[k] * normed.mean[k] - quad_sum(w[0] * totals[0] + w[1] * totals[1]) * share;
    }
    bf16_t* to[2];
    bool stores[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const uint32_t r = row0 + g + 8 * k;
      stores[k] = dz.base && r < n;
      to[k] = dz.row(min(r, n - 1)) + 8 * t;
    }
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      const bool there = 32 * j + 8 * t < c;
      Chunk old[2], out[2];
      if (kAdds)
#pragma unroll
        for (int k = 0; k < 2; ++k) old[k] = load_raw<kV>(to[k] + (there ? 32 * j : -8 * t));
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        float d[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int k = i / 2, e = 2 * p + i % 2;
          d[i] = level[k] - slope[k] * unpacked<bf16_t, kV>(rows.chunk[k][j], e);
          if (kAdds) d[i] += unpacked<bf16_t, kV>(old[k], e);
        }
        const uint2 v = by_lane[4 * j + p][lane];
        mma(d, by_row, v.x, v.y);
#pragma unroll
        for (int k = 0; k < 2; ++k) out[k].at[p] = pack_bf16(d[2 * k], d[2 * k + 1]);
      }
#pragma unroll
      for (int i = 2 * j; i < 2 * j + 2; ++i) {
        uint32_t by_channel[4];
        load_matrices_transposed(
            by_channel, shared_address(&stage->at(lane % 8 + lane / 16 * 8, 2 * i + lane / 8 % 2)));
        mma(sums[i], by_channel, up[0], up[2]);
        mma(sums[i], by_channel, up[1], up[3]);
      }
#pragma unroll
      for (int k = 0; k < 2; ++k)
        if (there && stores[k]) {
          if constexpr (kAdds)  // whole stores would spill registers
            *reinterpret_cast<Chunk*>(to[k] + 32 * j) = out[k];
          else
            store_whole(to[k] + 32 * j,
                        make_uint4(out[k].at[0], out[k].at[1], out[k].at[2], out[k].at[3]));
        }
    }
    std::swap(stage, other);
  }
  // The block's warps one after the other, half of them added to the others before.
  constexpr int kEach = (32 * kChunks + 1) * kHeads, kHalf = kWarps / 2;
  static_assert(kHalf * kEach * sizeof(float) <= sizeof(stages));
  float* const room = reinterpret_cast<float*>(stages);
  const int warp = threadIdx.x / 32;
  float* const mine = room + warp % kHalf * kEach;
  copy_wait<0>();
  __syncthreads();
  whole = quad_sum(whole);
  shift = quad_sum(shift);
  const float less[2] = {__shfl_sync(~0u, shift, 8 * t), __shfl_sync(~0u, shift, 8 * t + 4)};
  for (const bool later : {true, false}) {
    if ((warp >= kHalf) == later) {
      const auto put = [&](int at, float sum) { mine[at] = later ? sum : mine[at] + sum; };
#pragma unroll
      for (int i = 0; i < 2 * kChunks; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          put((16 * i + e / 2 * 8 + g) * kHeads + 2 * t + e % 2, sums[i][e] - less[e % 2]);
      if (t == 0) put(kEach - kHeads + g, whole);
    }
    __syncthreads();
  }
  for (int k = threadIdx.x; k < (c + 1) * heads; k += kThreads) {
    const int row = k / heads, h = k % heads;
    float sum = 0;
    for (int w = 0; w < kHalf; ++w)
      sum += room[w * kEach + (row < c ? row : 32 * kChunks) * kHeads + h];
    partial[int64_t(blockIdx.x) * (c + 1) * heads + k] = sum;
  }
}

constexpr int kRuns = 8;

/// A block finishes kV columns: with s the sums of x dbias and t those of dbias, dw += scale s +
/// offset t, dscale += s . w, doffset += t . w. Threads: [kV heads + heads, kRuns].
__global__ void finish_kernel(const float* partial, int64_t parts,
                              const __grid_constant__ Layer layer, float* dscale, float* doffset,
                              float* dw) {
  after_earlier();
  __shared__ float room[kRuns][(kV + 1) * kHeads];
  const int heads = layer.heads, x = threadIdx.x, c0 = blockIdx.x * kV,
            stride = (layer.c + 1) * heads,
            column = x < kV * heads ? c0 * heads + x : (layer.c - kV) * heads + x;
  // What the end needs, before the sums.
  const bool first = threadIdx.y == 0, of_w = first && x < kV * heads && dw,
             of_layer = first && x < kV;
  float scale = 0, offset = 0, old_w = 0, old_scale = 0, old_offset = 0, weight[kHeads] = {};
  if (of_w) {
    scale = layer.scale[c0 + x / heads];
    offset = layer.offset[c0 + x / heads];
    old_w = dw[c0 * heads + x];
  }
  if (of_layer) {
    if (dscale) old_scale = dscale[c0 + x];
    if (doffset) old_offset = doffset[c0 + x];
#pragma unroll
    for (int h = 0; h < kHeads; ++h)
      if (h < heads) weight[h] = to_float(layer.w[(c0 + x) * heads + h]);
  }
  float sum = 0;
  constexpr int kAtOnce = 17;
  for (int64_t p = threadIdx.y; p < parts; p += kAtOnce * kRuns)
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int64_t part = p + k * kRuns;
      const float v = partial[min(part, parts - 1) * stride + column];
      sum += part < parts ? v : 0.0f;
    }
  room[threadIdx.y][x] = sum;
  __syncthreads();
  if (first) {
#pragma unroll
    for (int run = 1; run < kRuns; ++run) sum += room[run][x];
    room[0][x] = sum;
  }
  __syncthreads();
  const float* const whole = room[0] + kV * heads;
  if (of_w) dw[c0 * heads + x] = old_w + (scale * sum + offset * whole[x % heads]);
  if (!of_layer) return;
  float of_scale = 0, of_offset = 0;
#pragma unroll
  for (int h = 0; h < kHeads; ++h)
    if (h < heads) {
      of_scale += room[0][x * heads + h] * weight[h];
      of_offset += whole[h] * weight[h];
    }
  if (dscale) dscale[c0 + x] = old_scale + of_scale;
  if (doffset) doffset[c0 + x] = old_offset + of_offset;
}

Layer layer_of(const NormedLinear& l) {
  return {l.scale.data<float>(), l.offset.data<float>(), data<bf16_t>(l.w), int(l.w.size(0)),
          int(l.w.numel() / l.w.size(0))};
}

/// f(chunks of 32 channels) as a constant.
template <class F>
void by_size(const Layer& layer, F f) {
  check(layer.c <= 128 && layer.heads <= kHeads, "pair bias of ", layer.c, " channels and ",
        layer.heads, " heads");
  if (layer.c <= 64)
    f(std::integral_constant<int, 2>());
  else
    f(std::integral_constant<int, 4>());
}

}  // namespace

void pair_bias(const Tensor& z, const NormedLinear& l, const Tensor& bias) {
  if (!bias.numel()) return;
  const Grid from(z);
  const Layer layer = layer_of(l);
  by_size(layer, [&](auto chunks) {
    const int64_t blocks =
        std::min<int64_t>(ceil_div(int64_t(from.n), kWarps * kRows), 2 * device_info().sm_count);
    start_kernel(forward_kernel<chunks()>, blocks, kThreads, 0, from, layer, Plane(bias));
  });
  check_launch("pair_bias", z.shape());
}

void pair_bias_backward(const Tensor& z, const NormedLinear& l, const Tensor& dbias,
                        const Tensor& dz, bool add, const NormedLinear& grads) {
  if (!dbias.numel()) return;
  const Grid from(z);
  Grid to(dz ? dz : z);
  if (!dz) to.base = nullptr;
  const Layer layer = layer_of(l);
  const int c = layer.c, h = layer.heads;
  by_size(layer, [&](auto chunks) {
    const int64_t blocks = std::min(ceil_div(int64_t(from.n), kWarps * kRows), kBackwardBlocks);
    const Scratch partial(blocks * (c + 1) * h * 4);
    const auto start = [&](auto adds) {
      launch<backward_kernel<chunks(), adds()>>("pair_bias_backward", blocks, kThreads,
                                                sizeof(Room<chunks()>), from, layer, Plane(dbias),
                                                to, partial.data<float>());
    };
    if (add && dz)
      start(std::true_type());
    else
      start(std::false_type());
    start_kernel(finish_kernel, c / kV, dim3(unsigned((kV + 1) * h), kRuns), 0,
                 partial.data<float>(), blocks, layer, data_or_null<float>(grads.scale),
                 data_or_null<float>(grads.offset), data_or_null<float>(grads.w));
    check_launch("pair_bias_backward", z.shape());
  });
}

}  // namespace ff::cuda
