// The pair embedding: its one-hot products are gathers, and so are their gradients.
#include <algorithm>

#include "cuda/mma.cuh"
#include "cuda/sums.h"
#include "cuda/table.h"
#include "cuda/walk.cuh"

namespace ff::cuda {
namespace {

constexpr int kThreads = 256;
/// Rows i of a forward's block, and its j's at most.
constexpr int kRows = 4, kTile = 128;

/// Which rows of the tables a pair reads.
struct Lookup {
  const int32_t* index;
  const float *beta, *edges;  ///< beta nullptr: no distances
  int far, bins;

  /// Row of the relative positions' table.
  __device__ int position(int64_t i, int64_t j) const {
    const int64_t d = int64_t(index[i]) - index[j] + far;
    return int(d < 0 ? 0 : d > 2 * far ? 2 * far : d);
  }
  /// Bins of the distances between pseudo-beta positions i[0], i[1], ... and j; -1 for none.
  template <int kN>
  __device__ void look_up_bins(const int64_t (&i)[kN], int64_t j, int (&bin)[kN]) const {
#pragma unroll
    for (int r = 0; r < kN; ++r) bin[r] = -1;
    if (!beta || !bins) return;
    const float* const b = beta + 3 * j;
    float dist2[kN], lower = edges[0];
#pragma unroll
    for (int r = 0; r < kN; ++r) {
      const float* const a = beta + 3 * i[r];
      const float x = a[0] - b[0], y = a[1] - b[1], z = a[2] - b[2];
      dist2[r] = x * x + y * y + z * z;
    }
#pragma unroll 5
    for (int k = 0; k < bins; ++k) {
      const float next = edges[min(k + 1, bins - 1)], upper = k + 1 < bins ? next : 1e8f;
#pragma unroll
      for (int r = 0; r < kN; ++r) bin[r] = (dist2[r] > lower) & (dist2[r] < upper) ? k : bin[r];
      lower = upper;
    }
  }
  __device__ int bin(int64_t i, int64_t j) const {
    int bin[1];
    look_up_bins({i}, j, bin);
    return bin[0];
  }
  /// Rows of the relative positions' table, before those of the bins.
  __host__ __device__ int relative() const { return 2 * far + 1; }
};

/// p and as many bytes more.
template <class T>
__device__ __forceinline__ T* bytes_after(T* p, int64_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(p) + bytes);
}

/// Block (tile of j's, kRows rows i): a thread has V channels of all rows, and of every j that is a
/// block's width apart. A distance without a bin adds zeros.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2)
    embed_kernel(const T* left, const T* right, const T* relpos, const T* dgram,
                 const __grid_constant__ Lookup lookup, int64_t first_row, int64_t rows, int64_t n,
                 int c, int tile, T* z, int64_t stride_i, int64_t stride_j) {
  after_earlier();
  /// At which byte a pair's row begins in each of the tables; negative for none.
  __shared__ Pack<int, 2> begins[kTile][kRows];
  const int width = min(c / V, kThreads), per = min(kThreads / width, kTile),
            own = threadIdx.x / width, bytes = c * int(sizeof(T));
  const int64_t tiles = (n + tile - 1) / tile, j0 = blockIdx.x % tiles * tile,
                i0 = blockIdx.x / tiles * kRows;
  const int pairs = int(min(n - j0, int64_t(tile))), last = int(min(rows - i0, int64_t(kRows))) - 1;
  // In place of rows beyond the last, the last again, so that nothing waits for a condition.
  for (int k = threadIdx.x; k < pairs * kRows; k += kThreads) {
    const int64_t i = first_row + i0 + min(k % kRows, last), j = j0 + k / kRows;
    begins[k / kRows][k % kRows] = {lookup.position(i, j) * bytes, lookup.bin(i, j) * bytes};
  }
  __syncthreads();
  for (int k = threadIdx.x % width * V; own < min(per, pairs) && k < c; k += width * V) {
    float of_left[kRows][V];
    T* to[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      load_floats<V>(left + (i0 + min(i, last)) * c + k, of_left[i]);
      to[i] = z + (i0 + min(i, last)) * stride_i + (j0 + own) * stride_j + k;
    }
    const T* const from = right + j0 * c + k;
    Raw<T, V> of_right = load_raw<V>(from + own * c);
    for (int j = own; j < pairs; j += per) {
      Raw<T, V> of_position[kRows], of_bin[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const Pack<int, 2> begin = begins[j][i];
        of_position[i] = load_raw<V>(bytes_after(relpos + k, begin.at[0]));
        of_bin[i] = {};
        if (begin.at[1] >= 0) of_bin[i] = load_raw<V>(bytes_after(dgram + k, begin.at[1]));
      }
      const auto next = load_raw<V>(from + min(j + per, pairs - 1) * c);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        Pack<T, V> sums;
#pragma unroll
        for (int e = 0; e < V; ++e)
          sums.at[e] =
              from_float<T>(of_left[i][e] + unpacked<T, V>(of_right, e) +
                            unpacked<T, V>(of_position[i], e) + unpacked<T, V>(of_bin[i], e));
        if constexpr (sizeof(sums) == 16)
          store_whole(to[i], *reinterpret_cast<const uint4*>(&sums));
        else
          store_pack(to[i], sums);
        to[i] += per * stride_j;
      }
      of_right = next;
    }
  }
}

/// Backward, in any type and of any sizes, a channel a thread: dleft, and the block's sums for both
/// tables, partial [blocks, table_rows, c].
template <class T>
__global__ void __launch_bounds__(kThreads)
    embed_backward_kernel(const T* dz, const __grid_constant__ Lookup lookup, int64_t first_row,
                          int64_t rows, int64_t n, int c, float* dleft, int table_rows,
                          float* partial) {
  after_earlier();
  extern __shared__ float sums[];  // [table_rows, blockDim.x]
  const int channel = int(blockIdx.y * blockDim.x + threadIdx.x);
  if (channel >= c) return;
  for (int k = 0; k < table_rows; ++k) sums[k * blockDim.x + threadIdx.x] = 0;
  const int64_t first = rows * blockIdx.x / gridDim.x, last = rows * (blockIdx.x + 1) / gridDim.x;
  for (int64_t i = first; i < last; ++i) {
    float left = 0;
    for (int64_t j = 0; j < n; ++j) {
      const float d = to_float(dz[(i * n + j) * c + channel]);
      left += d;
      if (!partial) continue;
      const int bin = lookup.bin(first_row + i, j);
      sums[lookup.position(first_row + i, j) * blockDim.x + threadIdx.x] += d;
      if (bin >= 0) sums[(lookup.relative() + bin) * blockDim.x + threadIdx.x] += d;
    }
    if (dleft) dleft[i * c + channel] += left;
  }
  if (partial)
    for (int k = 0; k < table_rows; ++k)
      partial[(int64_t(blockIdx.x) * table_rows + k) * c + channel] =
          sums[k * blockDim.x + threadIdx.x];
}

/// The backward in bf16 is products on the matrix unit: a sum over pairs is one with ones where a
/// pair counts. A block has kPairs j's and a slab of channels of its rows i, a warp 16 channels. As
/// many blocks whatever the GPU: the sums' order is always the same.
constexpr int kPairs = 64, kSlab = 128, kTiles = 5, kTableRows = 16 * kTiles, kStages = 3,
              kAhead = 16, kBlocks = 264;

struct Room {
  uint4 dz[kStages][kPairs * kSlab / 8];  ///< of rows i; chunks of 8 channels where chunk_of says
  /// [row of both tables, pair]: one where the pair reads it; of two rows i. The last row is for
  /// what reads none.
  uint16_t counts[2][kTableRows + 1][kPairs + 8];
  /// Of 2 kAhead rows i: where in counts a pair's row of positions begins, and of bins; and which
  /// tiles of 16 table rows each half of the pairs reads, as bits.
  uint16_t begins[2 * kAhead][2 * kPairs];
  Pack<unsigned, 2> tiles[2 * kAhead];
};

/// Eight pairs meet in no bank.
__device__ __forceinline__ int chunk_of(int pair, int chunk) {
  return pair * (kSlab / 8) + (chunk ^ pair % 8);
}

/// of_tables [blocks, table_rows, c], of_right [parts of the rows i, n, c], of_left [tiles of j's,
/// rows, c]. Blocks: (tile of j's, part, slab); a part's rows are as many rows apart as there are
/// parts, so that all have as many pairs near the diagonal.
__global__ void __launch_bounds__(kThreads, 2)
    embed_backward_products_kernel(const __nv_bfloat16* dz, const __grid_constant__ Lookup lookup,
                                   int64_t first_row, int64_t rows, int64_t n, int c,
                                   int table_rows, float* of_tables, float* of_right,
                                   float* of_left) {
  after_earlier();
  extern __shared__ __align__(16) unsigned char shared[];
  Room& room = *reinterpret_cast<Room*>(shared);
  constexpr uint32_t kOne = 0x3F80, kOnes = 0x3F803F80;  // of bf16
  constexpr int kChunks = kSlab / 8, kAtOnce = kThreads / kChunks;
  const int thread = int(threadIdx.x), lane = thread % 32, g = lane / 4, t = lane % 4,
            warp = thread / 32, chunk = thread % kChunks, own = thread / kChunks,
            slab = int(blockIdx.z) * kSlab, relative = lookup.relative();
  const int64_t j0 = int64_t(blockIdx.x) * kPairs, part = blockIdx.y, parts = gridDim.y;
  // Row i of the block is part + i parts.
  const unsigned count = unsigned((rows - part + parts - 1) / parts);
  const int pairs = int(min(n - j0, int64_t(kPairs))),
            present = slab + 8 * chunk < c ? pairs - own : 0;
  const int64_t step = parts * n * c, next = kAtOnce * c, left_step = parts * c;
  const __nv_bfloat16* from = dz + (present > 0 ? (part * n + j0 + own) * c + slab + 8 * chunk : 0);
  const uint32_t dz_to = shared_address(&room.dz[0][chunk_of(own, chunk)]),
                 dz_from = shared_address(&room.dz[0][chunk_of(lane % 16, 2 * warp + lane / 16)]),
                 counts_from = shared_address(&room.counts[0][lane % 16][lane / 16 * 8]);
  // Row after row.
  const auto fetch = [&](unsigned i, int stage) {
    const uint32_t to = dz_to + stage * sizeof(room.dz[0]);
    const int there = i < count ? present : 0;
    const __nv_bfloat16* at = from;
#pragma unroll
    for (int k = 0; k < kPairs / kAtOnce; ++k, at += next)
      copy_async16(to + k * kAtOnce * kChunks * 16, at, k * kAtOnce < there ? 16 : 0);
    copy_commit();
    from += step;
  };
  // Of kAhead rows from i, as many at once.
  const auto look_up = [&](unsigned i) {
    constexpr int kN = 4, kApart = kThreads / kPairs;
    const int pair = thread % kPairs;
    const int64_t j = j0 + min(pair, pairs - 1);
    const unsigned last = min(i + kAhead, count);
    for (i += thread / kPairs; i < last; i += kN * kApart) {
      int64_t row[kN];
      int position[kN], bin[kN];
      unsigned tiles[kN];
#pragma unroll
      for (int r = 0; r < kN; ++r) {
        row[r] = first_row + part + min(i + r * kApart, count - 1) * parts;
        position[r] = lookup.position(row[r], j);
      }
      lookup.look_up_bins(row, j, bin);
#pragma unroll
      for (int r = 0; r < kN; ++r) {
        const int of_bin = bin[r] < 0 ? kTableRows : relative + bin[r];
        const unsigned slot = (i + r * kApart) % (2 * kAhead);
        room.begins[slot][pair] = uint16_t(position[r] * (kPairs + 8));
        room.begins[slot][kPairs + pair] = uint16_t(of_bin * (kPairs + 8));
        tiles[r] = 1u << position[r] / 16 | 1u << of_bin / 16;
      }
      for (int d = 1; d < 32; d *= 2)
#pragma unroll
        for (int r = 0; r < kN; ++r) tiles[r] |= __shfl_xor_sync(~0u, tiles[r], d);
#pragma unroll
      for (int r = 0; r < kN; ++r)
        if (lane == 0) room.tiles[(i + r * kApart) % (2 * kAhead)].at[pair / 32] = tiles[r];
    }
  };
  // Ones of row i in place of those of row i - 2, a thread a pair's in one table.
  const auto mark = [&](unsigned i) {
    if (thread >= 2 * kPairs) return;
    uint16_t* const column = &room.counts[i % 2][0][thread % kPairs];
    if (i >= 2) column[room.begins[(i - 2) % (2 * kAhead)][thread]] = 0;
    if (i < count) column[room.begins[i % (2 * kAhead)][thread]] = kOne;
  };
#pragma unroll
  for (int k = 0; k < kStages - 1; ++k) fetch(k, k);
  constexpr int kWords = sizeof(room.counts) / 16;
  static_assert(sizeof(room.counts) % 16 == 0);
  for (int k = thread; k < kWords; k += kThreads)
    reinterpret_cast<uint4*>(room.counts)[k] = make_uint4(0, 0, 0, 0);
  look_up(0);
  __syncthreads();
  mark(0);
  const uint32_t one = unit_fragment(lane, kOne), unit[4] = {one, 0, 0, one},
                 ones[4] = {kOnes, kOnes, kOnes, kOnes};
  float tables[kTiles][2][4] = {}, right[kPairs / 16][2][4] = {};
  float* left_to = of_left + (blockIdx.x * rows + part) * c + slab + 16 * warp + 2 * t;
  int stage = 0;
  for (unsigned i = 0; i < count; ++i) {
    copy_wait<kStages - 2>();
    __syncthreads();
    fetch(i + kStages - 1, stage ? stage - 1 : kStages - 1);
    if (i % kAhead == 1 && i - 1 + kAhead < count) look_up(i - 1 + kAhead);
    mark(i + 1);
    const Pack<unsigned, 2> halves = room.tiles[i % (2 * kAhead)];
    const unsigned tiles = halves.at[0] | halves.at[1];
    const uint32_t pairs_at = dz_from + stage * sizeof(room.dz[0]),
                   counts_at = counts_from + i % 2 * sizeof(room.counts[0]);
    float left[2][4] = {};
    uint32_t d[kPairs / 16][4];
#pragma unroll
    for (int k = 0; k < kPairs / 16; ++k) {
      load_matrices_transposed(d[k], pairs_at + k * 16 * kChunks * 16);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        mma(right[k][half], unit, d[k][2 * half], d[k][2 * half + 1]);
        mma(left[half], ones, d[k][2 * half], d[k][2 * half + 1]);
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      if (!(tiles >> tile & 1)) continue;
#pragma unroll
      for (int k = 0; k < kPairs / 16; ++k) {
        uint32_t a[4];
        load_matrices(a, counts_at + tile * 16 * sizeof(room.counts[0][0]) + k * 32);
#pragma unroll
        for (int half = 0; half < 2; ++half)
          mma(tables[tile][half], a, d[k][2 * half], d[k][2 * half + 1]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (g == 0 && slab + 16 * warp + 8 * half + 2 * t < c)
        *reinterpret_cast<float2*>(left_to + 8 * half) = make_float2(left[half][0], left[half][1]);
    left_to += left_step;
    stage = stage + 1 < kStages ? stage + 1 : 0;
  }
  copy_wait<0>();
  const int64_t block = int64_t(blockIdx.x) * gridDim.y + part;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int channel = slab + 16 * warp + 8 * half + 2 * t;
    if (channel >= c) continue;
#pragma unroll
    for (int k = 0; k < 2 * kTiles; ++k)
      if (8 * k + g < table_rows)
        *reinterpret_cast<float2*>(of_tables + (block * table_rows + 8 * k + g) * c + channel) =
            make_float2(tables[k / 2][half][k % 2 * 2], tables[k / 2][half][k % 2 * 2 + 1]);
#pragma unroll
    for (int k = 0; k < kPairs / 8; ++k)
      if (8 * k + g < pairs)
        *reinterpret_cast<float2*>(of_right + (part * n + j0 + 8 * k + g) * c + channel) =
            make_float2(right[k / 2][half][k % 2 * 2], right[k / 2][half][k % 2 * 2 + 1]);
  }
}

/// As add_partials has it, but four sums in one launch: to[k] += the sum over parts p of
/// partial[p * stride + k], k < n, a multiple of 4. A block has packs of four and `runs`
/// interleaved runs of the parts of each.
struct Sum {
  static constexpr int kAtOnce = 8;
  Sum(const float* partial, int64_t stride, int64_t parts, int64_t n, float* to)
      : partial(partial),
        stride(stride),
        parts(parts),
        n(n),
        to(to),
        runs(int(std::min<int64_t>(ceil_div(parts, kAtOnce), 32))),
        blocks(to ? int(ceil_div(n / 4, kThreads / runs)) : 0) {}
  const float* partial;
  int64_t stride, parts, n;
  float* to;
  int runs, blocks;
};
struct Sums {
  Sum of[4];
};

/// The sums' blocks one sum after the other.
__global__ void __launch_bounds__(kThreads) finish_kernel(const __grid_constant__ Sums sums) {
  after_earlier();
  __shared__ Pack<float, 4> room[kThreads];
  int block = int(blockIdx.x), which = 0;
  while (block >= sums.of[which].blocks) block -= sums.of[which++].blocks;
  const Sum& sum = sums.of[which];
  const int packs = kThreads / sum.runs, run = int(threadIdx.x) / packs;
  const int64_t pack = int64_t(block) * packs + threadIdx.x % packs;
  const bool has = run < sum.runs && pack < sum.n / 4;
  const int64_t at = has ? 4 * pack : 0;
  Pack<float, 4> total = {};
  if (has && run == 0) total = load_pack<4>(sum.to + at);
  if (has)
    for (int64_t p = run; p < sum.parts; p += Sum::kAtOnce * sum.runs) {
      Pack<float, 4> v[Sum::kAtOnce];
#pragma unroll
      for (int k = 0; k < Sum::kAtOnce; ++k)
        v[k] = load_pack<4>(sum.partial + min(p + k * sum.runs, sum.parts - 1) * sum.stride + at);
#pragma unroll
      for (int k = 0; k < Sum::kAtOnce; ++k)
#pragma unroll
        for (int e = 0; e < 4; ++e) total.at[e] += p + k * sum.runs < sum.parts ? v[k].at[e] : 0.0f;
    }
  room[threadIdx.x] = total;
  __syncthreads();
  if (!has || run) return;
  for (int other = 1; other < sum.runs; ++other)
#pragma unroll
    for (int e = 0; e < 4; ++e) total.at[e] += room[other * packs + threadIdx.x].at[e];
  store_pack(sum.to + at, total);
}

Lookup lookup_of(const Tensor& residue_index, const Tensor& beta, const Tensor& breaks,
                 int64_t relative) {
  return {residue_index.data<int32_t>(), data_or_null<float>(beta), data_or_null<float>(breaks),
          int((relative - 1) / 2), breaks.defined() ? int(breaks.size(0)) : 0};
}

/// A thread a channel: neighbours write neighbouring elements.
template <class T>
__global__ void __launch_bounds__(kThreads)
    extra_msa_kernel(const int32_t* letters, const float* has, const float* value, int64_t n,
                     T* out) {
  after_earlier();
  constexpr int kLetters = 23, kChannels = 25;
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x; e < n * kChannels; e += step) {
    const int64_t i = e / kChannels;
    const int k = int(e - i * kChannels);
    out[e] = from_float<T>(k < kLetters    ? float(letters[i] == k)
                           : k == kLetters ? has[i]
                                           : value[i]);
  }
}

struct Template {
  const int32_t* type;
  const float *beta, *beta_mask, *backbone, *edges;
  const double* frames;
  int bins;
  bool unit_vector;
};

/// A warp a pair, its lanes the channels: neighbours write neighbouring elements. In the CPU's
/// precisions.
__global__ void __launch_bounds__(kThreads)
    template_kernel(const __grid_constant__ Template t, int64_t first_row, int64_t pairs, int64_t n,
                    int channels, float* out) {
  after_earlier();
  constexpr int kLetters = 22;
  const int64_t pair = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (pair >= pairs) return;
  const int64_t i = first_row + pair / n, j = pair % n;
  const float keep = t.backbone[i] * t.backbone[j];
  float dist2 = 0, unit[3] = {};
#pragma unroll
  for (int x = 0; x < 3; ++x) {
    const float gap = t.beta[3 * i + x] - t.beta[3 * j + x];
    dist2 = __fadd_rn(dist2, __fmul_rn(gap, gap));
  }
  if (t.unit_vector) {
    const double *r = t.frames + 12 * i, *other = t.frames + 12 * j + 9;
    const double d[] = {other[0] - r[9], other[1] - r[10], other[2] - r[11]};
    double v[3], square = 1e-6;
#pragma unroll
    for (int x = 0; x < 3; ++x) {
      v[x] = r[x] * d[0] + r[3 + x] * d[1] + r[6 + x] * d[2];
      square += v[x] * v[x];
    }
    const double scale = keep / sqrt(square);
#pragma unroll
    for (int x = 0; x < 3; ++x) unit[x] = float(v[x] * scale);
  }
  for (int k = lane; k < channels; k += 32) {
    const int c = k - t.bins;  // after the distance's bins
    float value = keep;
    if (c < 0)
      value = dist2 > t.edges[k] && dist2 < t.edges[k + 1] ? keep : 0.0f;
    else if (c == 0)
      value = t.beta_mask[i] * t.beta_mask[j] * keep;
    else if (c <= kLetters)
      value = t.type[j] == c - 1 ? keep : 0.0f;
    else if (c <= 2 * kLetters)
      value = t.type[i] == c - 1 - kLetters ? keep : 0.0f;
    else if (c <= 2 * kLetters + 3)
      value = c == 2 * kLetters + 1 ? unit[0] : c == 2 * kLetters + 2 ? unit[1] : unit[2];
    out[pair * channels + k] = keep == 0 ? 0.0f : value;
  }
}

}  // namespace

void template_pair_features(const TemplateTensors& in, int64_t first_row, const Tensor& out) {
  const int64_t pairs = out.size(0) * out.size(1);
  if (!pairs) return;
  const Template t{in.types.data<int32_t>(),  in.beta.data<float>(),  in.beta_mask.data<float>(),
                   in.backbone.data<float>(), in.edges.data<float>(), in.frames.data<double>(),
                   int(in.edges.numel() - 1), in.unit_vector};
  start_kernel(template_kernel, ceil_div(pairs, kThreads / 32), kThreads, 0, t, first_row, pairs,
               out.size(1), int(out.size(2)), out.data<float>());
  check_launch("template_pair_features", out.shape());
}

void extra_msa_features(const Tensor& letters, const Tensor& has_deletion,
                        const Tensor& deletion_value, const Tensor& out) {
  const int64_t n = letters.numel();
  if (!n) return;
  const int64_t blocks =
      std::min(ceil_div(out.numel(), kThreads), int64_t(device_info().sm_count) * 16);
  by_type(out, [&](auto zero) {
    using T = decltype(zero);
    start_kernel(extra_msa_kernel<T>, blocks, kThreads, 0, letters.data<int32_t>(),
                 has_deletion.data<float>(), deletion_value.data<float>(), n, data<T>(out));
  });
  check_launch("extra_msa_features", out.shape());
}

void pair_embed(const Tensor& left, const Tensor& right, const Tensor& residue_index,
                const Tensor& relpos, const Tensor& beta, const Tensor& dgram, const Tensor& breaks,
                int64_t first_row, const Tensor& z) {
  if (!z.numel()) return;
  const int64_t n = right.size(0), c = right.size(1);
  check(std::max(relpos.numel(), dgram.numel()) < INT32_MAX / 4, "pair embedding's tables of ",
        relpos.shape(), " and ", dgram.shape(), ": too large for a GPU");
  bool packed = in_packs(z);
  for (const Tensor* t : {&left, &right, &relpos, &dgram}) packed = packed && in_packs(*t);
  by_type(left, [&](auto zero) {
    using T = decltype(zero);
    const auto go = [&](auto width) {
      constexpr int V = decltype(width)::value;
      // A quarter of a row, so that there are blocks for the whole GPU.
      const int64_t per = std::min<int64_t>(kThreads / std::min<int64_t>(c / V, kThreads), kTile),
                    tile = per * std::clamp<int64_t>(ceil_div(n, 4 * per), 1, kTile / per),
                    bands = ceil_div(z.size(0), kRows);
      start_kernel(embed_kernel<T, V>, bands * ceil_div(n, tile), kThreads, 0, data<T>(left),
                   data<T>(right), data<T>(relpos), data<T>(dgram),
                   lookup_of(residue_index, beta, breaks, relpos.size(0)), first_row, z.size(0), n,
                   int(c), int(tile), data<T>(z), z.stride(0), z.stride(1));
    };
    if (packed)
      go(std::integral_constant<int, 16 / int(sizeof(T))>());
    else
      go(std::integral_constant<int, 1>());
  });
  check_launch("pair_embed", z.shape());
}

void pair_embed_backward(const Tensor& residue_index, const Tensor& beta, const Tensor& breaks,
                         int64_t first_row, const Tensor& dz, const Tensor& dleft,
                         const Tensor& dright, const Tensor& drelpos, const Tensor& ddgram) {
  if (!dz.numel()) return;
  const int64_t n_row = dz.size(0), n = dz.size(1), c = dz.size(2);
  // Without a table of positions all pairs fall into one row, which nobody reads.
  const Lookup lookup =
      lookup_of(residue_index, beta, breaks, drelpos.defined() ? drelpos.size(0) : 1);
  const bool distances = ddgram.defined() && beta.defined();
  const int64_t relative = lookup.relative(), all_rows = relative + lookup.bins;
  bool packed = dz.dtype() == Dtype::bf16 && in_packs(dz) && all_rows <= kTableRows;
  for (const Tensor* t : {&dleft, &dright, &drelpos, &ddgram}) packed = packed && in_packs(*t);
  if (packed) {
    const int64_t tiles = ceil_div(n, kPairs), slabs = ceil_div(c, kSlab),
                  parts = std::clamp<int64_t>(kBlocks / (tiles * slabs), 1, ceil_div(n_row, 8));
    const Scratch partial((tiles * parts * all_rows + parts * n + tiles * n_row) * c * 4);
    float *const of_tables = partial.data<float>(),
                 *const of_right = of_tables + tiles * parts * all_rows * c,
                 *const of_left = of_right + parts * n * c;
    launch<embed_backward_products_kernel>(
        "pair_embed_backward", dim3(unsigned(tiles), unsigned(parts), unsigned(slabs)), kThreads,
        sizeof(Room), data<__nv_bfloat16>(dz), lookup, first_row, n_row, n, int(c), int(all_rows),
        of_tables, of_right, of_left);
    const Sums sums = {
        Sum(of_right, n * c, parts, n * c, data_or_null<float>(dright)),
        Sum(of_left, n_row * c, tiles, n_row * c, data_or_null<float>(dleft)),
        Sum(of_tables, all_rows * c, tiles * parts, relative * c, data_or_null<float>(drelpos)),
        Sum(of_tables + relative * c, all_rows * c, tiles * parts, lookup.bins * c,
            distances ? data<float>(ddgram) : nullptr)};
    int64_t blocks = 0;
    for (const Sum& sum : sums.of) blocks += sum.blocks;
    if (blocks) start_kernel(finish_kernel, blocks, kThreads, 0, sums);
    return check_launch("pair_embed_backward", dz.shape());
  }
  if (dright.defined()) add_column_sums(dz.view({n_row, n * c}), dright);
  const bool tables = drelpos.defined() || distances;
  if (!tables && !dleft.defined()) return;
  const int64_t rows = tables ? all_rows : 0;
  int64_t threads = kThreads;
  while (threads > 32 && (threads / 2 >= c || rows * threads * 4 > 64 << 10)) threads /= 2;
  check(rows * threads * 4 <= device_info().shared_bytes, "pair embedding's tables of ", rows,
        " rows: too many for a GPU");
  const int64_t parts = std::min<int64_t>(n_row, 528);
  const Scratch partial(parts * rows * c * 4);
  by_type(dz, [&](auto zero) {
    using T = decltype(zero);
    launch<embed_backward_kernel<T>>(
        "pair_embed_backward", dim3(unsigned(parts), unsigned(ceil_div(c, threads))), int(threads),
        rows * threads * 4, data<T>(dz), lookup, first_row, n_row, n, int(c),
        data_or_null<float>(dleft), int(rows), tables ? partial.data<float>() : nullptr);
  });
  add_partials(partial.data<float>(), parts, rows * c, relative * c, drelpos);
  if (distances)
    add_partials(partial.data<float>() + relative * c, parts, rows * c, lookup.bins * c, ddgram);
}

}  // namespace ff::cuda
