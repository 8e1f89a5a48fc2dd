// Attention's bias from the pair representation: the layer norm and its product with at most eight
// heads in one pass over z, on the matrix unit. With d = z - mean, r = 1/std, x = r d and v = scale
// w, which is kept as the sum of two numbers of bf16: bias = r d . v + offset . w. The sum of a row
// is its product with ones.
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

/// Threads of a block.
constexpr int kForward = 256, kBackward = 512;
constexpr int kRows = 16, kHeads = 8, kV = 8;

/// Element [head, row of z] of a bias [h, n, m] of any strides.
struct Plane {
  explicit Plane(const Tensor& t)
      : base(t.data<float>()),
        head(t.stride(0)),
        i(t.stride(1)),
        j(t.stride(2)),
        m(uint32_t(t.size(2))),
        heads(int(t.size(0))) {}
  __device__ __forceinline__ float* at(int64_t r) const {
    const uint32_t q = uint32_t(r) / m;
    return base + q * i + (uint32_t(r) - q * m) * j;
  }
  float* base;
  int64_t head, i, j;
  uint32_t m;
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
/// the larger parts and the rest, by channels, or by heads apart so that rows meet in no bank.
template <int kThreads, int kChunks, bool kByHead>
struct Weights {
  static constexpr int kWarps = kThreads / 32, kChannels = 32 * kChunks,
                       kRow = kByHead ? kChannels + 8 : kHeads,
                       kSize = kByHead ? kHeads * kRow : kChannels * kRow;
  __device__ __forceinline__ void make(const Layer& l) {
    const int head = threadIdx.x % kHeads;
    float sum = 0;
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
      const int at = kByHead ? head * kRow + channel : channel * kRow + head;
      most[at] = from_float<bf16_t>(v);
      rest[at] = from_float<bf16_t>(v - to_float(most[at]));
    }
    for (int d = kHeads; d < 32; d *= 2) sum += __shfl_xor_sync(~0u, sum, d);
    if (threadIdx.x % 32 < kHeads) base[threadIdx.x / 32][head] = sum;
    __syncthreads();
  }
  /// offset . w of a head.
  __device__ __forceinline__ float base_of(int head) const {
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) sum += base[warp][head];
    return sum;
  }
  alignas(16) bf16_t most[kSize];
  alignas(16) bf16_t rest[kSize];
  float base[kWarps][kHeads];
};

/// A thread's part of two rows, as it was loaded.
template <int kChunks>
struct Held {
  using Chunk = Raw<bf16_t, kV>;
  /// Rows and chunks that do not exist get the numbers of some that do.
  __device__ __forceinline__ void load(const View<bf16_t>& from, int64_t row0, int g, int t) {
    const bf16_t* row[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) row[k] = from.row(min(row0 + g + 8 * k, from.rows.n - 1));
#pragma unroll
    for (int k = 0; k < 2; ++k)
#pragma unroll
      for (int j = 0; j < kChunks; ++j) {
        const int channel = 32 * j + 8 * t;
        chunk[k][j] = load_raw<kV>(row[k] + (channel < from.rows.c ? channel : 0));
      }
  }
  /// Adds pairs p and p + 1 of chunk j of 16 rows, times b.
  __device__ __forceinline__ void product(int j, int p, float (&to)[4], uint32_t b0,
                                          uint32_t b1) const {
    const uint32_t a[4] = {chunk[0][j].at[p], chunk[1][j].at[p], chunk[0][j].at[p + 1],
                           chunk[1][j].at[p + 1]};
    mma(to, a, b0, b1);
  }
  /// Both rows' mean, by a product with ones; share: 1 / c.
  __device__ __forceinline__ void means(int c, float share, int t, float (&mean)[2]) const {
    float sums[4] = {};
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      const uint32_t ones = 32 * j + 8 * t < c ? 0x3F803F80 : 0;
      product(j, 0, sums, ones, ones);
      product(j, 2, sums, ones, ones);
    }
    for (int k = 0; k < 2; ++k) mean[k] = sums[2 * k] * share;
  }
  Chunk chunk[2][kChunks];
};

/// The same of z, with both rows' mean and 1/std.
template <int kChunks>
struct Normed : Held<kChunks> {
  __device__ __forceinline__ void find(int c, float share, int t) {
    this->means(c, share, t, mean);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      float squares = 0;
#pragma unroll
      for (int j = 0; j < kChunks; ++j)
        if (32 * j + 8 * t < c)
#pragma unroll
          for (int i = 0; i < kV; ++i) {
            const float d = unpacked<bf16_t, kV>(this->chunk[k][j], i) - mean[k];
            squares += d * d;
          }
      rstd[k] = rsqrtf(quad_sum(squares) * share + kNormEpsilon);
    }
  }
  __device__ __forceinline__ float x(int k, int j, int i) const {
    return (unpacked<bf16_t, kV>(this->chunk[k][j], i) - mean[k]) * rstd[k];
  }
  float mean[2], rstd[2];
};

/// The next rows are on their way while these are worked on.
template <int kChunks>
__global__ void __launch_bounds__(kForward, 2)
    forward_kernel(const __grid_constant__ View<bf16_t> z, const __grid_constant__ Layer layer,
                   const __grid_constant__ Plane bias) {
  after_earlier();
  constexpr int kWarps = kForward / 32;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, c = layer.c;
  const int64_t n = z.rows.n, step = int64_t(gridDim.x) * kWarps * kRows;
  int64_t row0 = (int64_t(blockIdx.x) * kWarps + threadIdx.x / 32) * kRows;
  Held<kChunks> rows, next;
  rows.load(z, row0, g, t);
  __shared__ Weights<kForward, kChunks, true> weights;
  weights.make(layer);
  const float share = 1 / float(c), bases[2] = {weights.base_of(2 * t), weights.base_of(2 * t + 1)};
  for (; row0 < n; row0 += step, rows = next) {
    next.load(z, row0 + step, g, t);
    float mean[2], squares[2] = {}, logits[4] = {};
    rows.means(c, share, t, mean);
#pragma unroll
    for (int k = 0; k < 2; ++k)
#pragma unroll
      for (int j = 0; j < kChunks; ++j)
        if (32 * j + 8 * t < c)
#pragma unroll
          for (int p = 0; p < 4; ++p) {
            uint32_t& pair = rows.chunk[k][j].at[p];
            const float first = low_bf16(pair) - mean[k], second = high_bf16(pair) - mean[k];
            squares[k] += first * first;
            squares[k] += second * second;
            pair = pack_bf16(first, second);
          }
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      const int at = g * weights.kRow + 32 * j + 8 * t;
      const auto most = load_pack<4>(reinterpret_cast<const uint32_t*>(weights.most + at)),
                 rest = load_pack<4>(reinterpret_cast<const uint32_t*>(weights.rest + at));
#pragma unroll
      for (int p = 0; p < 4; p += 2) {
        rows.product(j, p, logits, most.at[p], most.at[p + 1]);
        rows.product(j, p, logits, rest.at[p], rest.at[p + 1]);
      }
    }
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float rstd = rsqrtf(quad_sum(squares[k]) * share + kNormEpsilon);
      const int64_t r = row0 + g + 8 * k;
      if (r >= n) continue;
      float* const to = bias.at(r);
#pragma unroll
      for (int e = 0; e < 2; ++e)
        if (2 * t + e < bias.heads)
          to[(2 * t + e) * bias.head] = logits[2 * k + e] * rstd + bases[e];
    }
  }
}

/// As many whatever the GPU: the sums' order is always the same.
constexpr int64_t kBackwardBlocks = 132;

/// partial [blocks, c h + h]: the blocks' sums of x[c] dbias[h], and of dbias[h].
template <int kChunks, bool kAdds>
__global__ void __launch_bounds__(kBackward, 1)
    backward_kernel(const __grid_constant__ View<bf16_t> z, const __grid_constant__ Layer layer,
                    const __grid_constant__ Plane dbias, const __grid_constant__ View<bf16_t> dz,
                    float* partial) {
  after_earlier();
  constexpr int kWarps = kBackward / 32;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, c = layer.c, heads = layer.heads;
  const int64_t n = z.rows.n, step = int64_t(gridDim.x) * kWarps * kRows;
  const float share = 1 / float(c);
  // As lanes take them: v[channel n of a tile (j, p) = g, heads 2 t and the next], both parts.
  __shared__ uint2 by_lane[kChunks * 4][32];
  {
    __shared__ Weights<kBackward, kChunks, false> weights;
    weights.make(layer);
    for (int tile = threadIdx.x / 32; tile < kChunks * 4; tile += kWarps) {
      const int at =
          (32 * (tile / 4) + 8 * (g / 2) + 2 * (tile % 4) + g % 2) * weights.kRow + 2 * t;
      by_lane[tile][lane] = make_uint2(*reinterpret_cast<const uint32_t*>(weights.most + at),
                                       *reinterpret_cast<const uint32_t*>(weights.rest + at));
    }
    __syncthreads();
  }
  // Of tiles (j, p) and (j, p + 1): channel n = g, heads 2 t and the next; of head g.
  float sums[kChunks][2][4] = {}, whole = 0;
  for (int64_t row0 = (int64_t(blockIdx.x) * kWarps + threadIdx.x / 32) * kRows; row0 < n;
       row0 += step) {
    Normed<kChunks> rows;
    rows.load(z, row0, g, t);
    float of_head[4];  // dbias of head g, rows 2 t, 2 t + 1, 2 t + 8, 2 t + 9
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t r = row0 + 2 * t + k % 2 + k / 2 * 8;
      of_head[k] = r < n && g < heads ? dbias.at(r)[g * dbias.head] : 0.0f;
    }
    rows.find(c, share, t);
    whole += of_head[0] + of_head[1] + of_head[2] + of_head[3];
    uint32_t up[4];  // as rows of heads: the larger parts' first and last 8 columns, the rest's
    split_pair(of_head[0], of_head[1], up[0], up[1]);
    split_pair(of_head[2], of_head[3], up[2], up[3]);
    const uint32_t first = transpose_matrix(up[0]), last = transpose_matrix(up[2]),
                   by_row[4] = {first, last, first, last};
    // The gradient with regard to x of tile (j, p): rows g and g + 8, this thread's pair each.
    const auto gradient = [&](int j, int p, float(&to)[4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i) to[i] = 0;
      const uint2 v = by_lane[4 * j + p][lane];
      mma(to, by_row, v.x, v.y);
    };
    float mean[2] = {}, mean_x[2] = {};
#pragma unroll
    for (int j = 0; j < kChunks; ++j)
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        float d[4];
        gradient(j, p, d);
        if (32 * j + 8 * t < c)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            mean[i / 2] += d[i];
            mean_x[i / 2] += d[i] * rows.x(i / 2, j, 2 * p + i % 2);
          }
      }
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      mean[k] = quad_sum(mean[k]) * share;
      mean_x[k] = quad_sum(mean_x[k]) * share;
    }
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      const bool there = 32 * j + 8 * t < c;
      Raw<bf16_t, kV> old[2];
      if (kAdds)
#pragma unroll
        for (int k = 0; k < 2; ++k)
          old[k] =
              load_raw<kV>(dz.row(min(row0 + g + 8 * k, n - 1)) + (there ? 32 * j + 8 * t : 0));
      float out[2][kV];
#pragma unroll
      for (int p = 0; p < 4; p += 2) {
        uint32_t by_channel[4];
#pragma unroll
        for (int q = 0; q < 2; ++q) {
          float d[4], x[4];
          gradient(j, p + q, d);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int k = i / 2, e = 2 * (p + q) + i % 2;
            x[i] = there ? rows.x(k, j, e) : 0.0f;
            out[k][e] = rows.rstd[k] * (d[i] - mean[k] - x[i] * mean_x[k]);
            if (kAdds) out[k][e] += unpacked<bf16_t, kV>(old[k], e);
          }
          by_channel[q] = transpose_matrix(pack_bf16(x[0], x[1]));
          by_channel[2 + q] = transpose_matrix(pack_bf16(x[2], x[3]));
        }
        mma(sums[j][p / 2], by_channel, up[0], up[2]);
        mma(sums[j][p / 2], by_channel, up[1], up[3]);
      }
#pragma unroll
      for (int k = 0; k < 2; ++k)
        if (dz.base && there && row0 + g + 8 * k < n)
          store_floats<kV>(dz.row(row0 + g + 8 * k) + 32 * j + 8 * t, out[k]);
    }
  }
  // The block's warps one after the other, half of them added to the others before.
  constexpr int kEach = (32 * kChunks + 1) * kHeads, kHalf = kWarps / 2;
  __shared__ float room[kHalf][kEach];
  const int warp = threadIdx.x / 32;
  float* const mine = room[warp % kHalf];
  whole = quad_sum(whole);
  for (const bool later : {true, false}) {
    if ((warp >= kHalf) == later) {
      const auto put = [&](int at, float sum) { mine[at] = later ? sum : mine[at] + sum; };
#pragma unroll
      for (int j = 0; j < kChunks; ++j)
#pragma unroll
        for (int p = 0; p < 4; ++p)
#pragma unroll
          for (int e = 0; e < 2; ++e)
            put((32 * j + 8 * (g / 2) + 2 * p + g % 2) * kHeads + 2 * t + e,
                sums[j][p / 2][p % 2 * 2 + e]);
      if (t == 0) put(kEach - kHeads + g, whole);
    }
    __syncthreads();
  }
  for (int k = threadIdx.x; k < (c + 1) * heads; k += kBackward) {
    const int row = k / heads, h = k % heads;
    float sum = 0;
    for (int w = 0; w < kHalf; ++w) sum += room[w][(row < c ? row : 32 * kChunks) * kHeads + h];
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
  float sum = 0;
#pragma unroll 8
  for (int64_t p = threadIdx.y; p < parts; p += kRuns) sum += partial[p * stride + column];
  room[threadIdx.y][x] = sum;
  __syncthreads();
  if (threadIdx.y == 0)
    for (int run = 1; run < kRuns; ++run) room[0][x] += room[run][x];
  __syncthreads();
  if (threadIdx.y) return;
  const float* const whole = room[0] + kV * heads;
  if (x < kV * heads && dw) {
    const int i = c0 + x / heads;
    dw[c0 * heads + x] += layer.scale[i] * room[0][x] + layer.offset[i] * whole[x % heads];
  }
  if (x >= kV) return;
  float of_scale = 0, of_offset = 0;
  for (int h = 0; h < heads; ++h) {
    const float weight = to_float(layer.w[(c0 + x) * heads + h]);
    of_scale += room[0][x * heads + h] * weight;
    of_offset += whole[h] * weight;
  }
  if (dscale) dscale[c0 + x] += of_scale;
  if (doffset) doffset[c0 + x] += of_offset;
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
  const View<bf16_t> from(z);
  const Layer layer = layer_of(l);
  by_size(layer, [&](auto chunks) {
    const int64_t blocks =
        std::min<int64_t>(ceil_div(from.rows.n, kForward / 32 * kRows), 2 * device_info().sm_count);
    start_kernel(forward_kernel<chunks()>, blocks, kForward, 0, from, layer, Plane(bias));
  });
  check_launch("pair_bias", z.shape());
}

void pair_bias_backward(const Tensor& z, const NormedLinear& l, const Tensor& dbias,
                        const Tensor& dz, bool add, const NormedLinear& grads) {
  if (!dbias.numel()) return;
  const View<bf16_t> from(z), to(dz);
  const Layer layer = layer_of(l);
  const int c = layer.c, h = layer.heads;
  by_size(layer, [&](auto chunks) {
    const int64_t blocks = std::min(ceil_div(from.rows.n, kBackward / 32 * kRows), kBackwardBlocks);
    const Scratch partial(blocks * (c + 1) * h * 4);
    const auto kernel =
        add && dz ? backward_kernel<chunks(), true> : backward_kernel<chunks(), false>;
    start_kernel(kernel, blocks, kBackward, 0, from, layer, Plane(dbias), to,
                 partial.data<float>());
    check_launch("pair_bias_backward", z.shape());
    start_kernel(finish_kernel, c / kV, dim3(unsigned((kV + 1) * h), kRuns), 0,
                 partial.data<float>(), blocks, layer, data_or_null<float>(grads.scale),
                 data_or_null<float>(grads.offset), data_or_null<float>(grads.w));
    check_launch("pair_bias_backward", z.shape());
  });
}

}  // namespace ff::cuda
