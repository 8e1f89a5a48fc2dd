// The pair embedding: its one-hot products are gathers, and so are their gradients.
#include <algorithm>

#include "cuda/sums.h"
#include "cuda/table.h"
#include "cuda/walk.cuh"

namespace ff::cuda {
namespace {

constexpr int kThreads = 256;
/// Rows i of a block, and j's of one of its threads.
constexpr int kRows = 4, kEach = 4;
/// j's whose rows the backward looks up at a time, and those whose gradients it has in registers.
constexpr int kKeys = 256, kAtOnce = 32;

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
  /// Bin of the distance between pseudo-beta positions i and j; -1 for none.
  __device__ int bin(int64_t i, int64_t j) const {
    if (!beta) return -1;
    const float *a = beta + 3 * i, *b = beta + 3 * j;
    const float x = a[0] - b[0], y = a[1] - b[1], z = a[2] - b[2], dist2 = x * x + y * y + z * z;
    int found = -1;
    for (int k = 0; k < bins; ++k)
      if (dist2 > edges[k] && dist2 < (k + 1 < bins ? edges[k + 1] : 1e8f)) found = k;
    return found;
  }
  /// Both as one number.
  __device__ int key(int64_t i, int64_t j) const { return position(i, j) << 16 | (bin(i, j) + 1); }
  __device__ static int position_of(int key) { return key >> 16; }
  __device__ static int bin_of(int key) { return (key & 0xffff) - 1; }
};

/// Block (tile of j's, kRows rows i): a thread has V channels of kEach j's of all its rows, per j's
/// apart. A distance without a bin adds zeros.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    embed_kernel(const T* left, const T* right, const T* relpos, const T* dgram,
                 const __grid_constant__ Lookup lookup, int64_t first_row, int64_t rows, int64_t n,
                 int c, T* z, int64_t stride_i, int64_t stride_j) {
  after_earlier();
  __shared__ int keys[kRows][kEach * kThreads];
  const int packs = c / V, width = min(packs, kThreads), per = kThreads / width, tile = per * kEach,
            own = threadIdx.x / width;
  const int64_t tiles = (n + tile - 1) / tile, j0 = blockIdx.x % tiles * tile,
                i0 = blockIdx.x / tiles * kRows;
#pragma unroll
  for (int i = 0; i < kRows; ++i)
    for (int j = threadIdx.x; j < tile; j += kThreads)
      if (i0 + i < rows && j0 + j < n) keys[i][j] = lookup.key(first_row + i0 + i, j0 + j);
  __syncthreads();
  if (own >= per) return;
  const bool distances = lookup.beta && lookup.bins > 0;
  for (int k = threadIdx.x % width * V; k < c; k += width * V) {
    // What does not exist is read from where something does, so that no load waits for a condition.
    int at[kEach];
    Raw<T, V> of_right[kEach];
#pragma unroll
    for (int q = 0; q < kEach; ++q) {
      at[q] = int(min(int64_t(own + q * per), n - 1 - j0));
      of_right[q] = load_raw<V>(right + (j0 + at[q]) * c + k);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (i0 + i >= rows) break;
      const Raw<T, V> of_left = load_raw<V>(left + (i0 + i) * c + k);
      Raw<T, V> of_position[kEach], of_bin[kEach];
      int bin[kEach];
#pragma unroll
      for (int q = 0; q < kEach; ++q) {
        const int key = keys[i][at[q]];
        bin[q] = lookup.bin_of(key);
        of_position[q] = load_raw<V>(relpos + int64_t(lookup.position_of(key)) * c + k);
        if (distances) of_bin[q] = load_raw<V>(dgram + int64_t(max(bin[q], 0)) * c + k);
      }
#pragma unroll
      for (int q = 0; q < kEach; ++q) {
        float sum[V];
#pragma unroll
        for (int e = 0; e < V; ++e) {
          sum[e] = unpacked<T, V>(of_left, e) + unpacked<T, V>(of_right[q], e);
          sum[e] += unpacked<T, V>(of_position[q], e);
          if (distances) sum[e] += bin[q] >= 0 ? unpacked<T, V>(of_bin[q], e) : 0.0f;
        }
        if (own + q * per < n - j0)
          store_floats<V>(z + (i0 + i) * stride_i + (j0 + at[q]) * stride_j + k, sum);
      }
    }
  }
}

/// Block (part of the rows i, kThreads times V channels): dleft, and the part's sums for both
/// tables, partial [parts, rows, c], V channels a thread. Neighbouring pairs mostly have the same
/// rows: their sum goes to shared memory where the row changes.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    embed_backward_kernel(const T* dz, const __grid_constant__ Lookup lookup, int64_t first_row,
                          int64_t rows, int64_t n, int c, float* dleft, int table_rows,
                          float* partial) {
  after_earlier();
  extern __shared__ float sums[];  // [table_rows, blockDim.x, V]
  __shared__ int keys[kKeys];
  const int channel = int(blockIdx.y * blockDim.x + threadIdx.x) * V;
  const bool inside = channel < c;
  const auto sum_of = [&](int row) { return sums + (row * blockDim.x + threadIdx.x) * V; };
  for (int row = 0; row < table_rows; ++row)
#pragma unroll
    for (int e = 0; e < V; ++e) sum_of(row)[e] = 0;
  const int relative = 2 * lookup.far + 1;
  const int64_t first = rows * blockIdx.x / gridDim.x, last = rows * (blockIdx.x + 1) / gridDim.x,
                batches = (n + kAtOnce - 1) / kAtOnce;
  // Of the present rows of the tables, -1 for none; and of row i.
  int present[2] = {-1, -1};
  float run[2][V] = {}, left[V] = {};
  const auto change = [&](int table, int row) {
    if (row == present[table]) return;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      if (present[table] >= 0) sum_of(present[table])[e] += run[table][e];
      run[table][e] = 0;
    }
    present[table] = row;
  };
  using Batch = Raw<T, V>[kAtOnce];
  // In place of j's beyond the last, the last.
  const auto load = [&](int64_t i, int64_t batch, Batch& d) {
    const int64_t j0 = batch * kAtOnce;
    const T* const from = dz + (i * n + j0) * c + (inside ? channel : 0);
    const int beyond = int(min(int64_t(kAtOnce), n - j0)) - 1;
#pragma unroll
    for (int q = 0; q < kAtOnce; ++q) d[q] = load_raw<V>(from + int64_t(min(q, beyond)) * c);
  };
  Batch now, next;
  load(first, 0, now);
  for (int64_t i = first; i < last; ++i)
    for (int64_t batch = 0; batch < batches; ++batch) {
      const int64_t j0 = batch * kAtOnce;
      const bool ends = batch + 1 == batches;
      if (!ends || i + 1 < last) load(ends ? i + 1 : i, ends ? 0 : batch + 1, next);
      if (j0 % kKeys == 0 && partial) {
        __syncthreads();
        for (int k = threadIdx.x; k < kKeys && j0 + k < n; k += blockDim.x)
          keys[k] = lookup.key(first_row + i, j0 + k);
        __syncthreads();
      }
#pragma unroll
      for (int q = 0; q < kAtOnce; ++q) {
        if (j0 + q >= n) break;
        if (partial) {
          const int key = keys[j0 % kKeys + q], bin = lookup.bin_of(key);
          change(0, lookup.position_of(key));
          change(1, bin < 0 ? -1 : relative + bin);
        }
#pragma unroll
        for (int e = 0; e < V; ++e) {
          const float d = unpacked<T, V>(now[q], e);
          left[e] += d;
          run[0][e] += d;
          run[1][e] += d;
        }
      }
      if (ends)
#pragma unroll
        for (int e = 0; e < V; ++e) {
          if (inside && dleft) dleft[i * c + channel + e] += left[e];
          left[e] = 0;
        }
#pragma unroll
      for (int q = 0; q < kAtOnce; ++q) now[q] = next[q];
    }
  change(0, -1);
  change(1, -1);
  if (inside && partial)
    for (int row = 0; row < table_rows; ++row)
#pragma unroll
      for (int e = 0; e < V; ++e)
        partial[(int64_t(blockIdx.x) * table_rows + row) * c + channel + e] = sum_of(row)[e];
}

Lookup lookup_of(const Tensor& residue_index, const Tensor& beta, const Tensor& breaks,
                 int64_t relative) {
  const int64_t bins = breaks.defined() ? breaks.size(0) : 0;
  // A key has 16 bits for each.
  check(std::max(relative, bins) <= INT16_MAX, "pair embedding's tables of ", relative, " and ",
        bins, " rows: too many for a GPU");
  return {residue_index.data<int32_t>(), data_or_null<float>(beta), data_or_null<float>(breaks),
          int((relative - 1) / 2), int(bins)};
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
  bool packed = in_packs(z);
  for (const Tensor* t : {&left, &right, &relpos, &dgram}) packed = packed && in_packs(*t);
  by_type(left, [&](auto zero) {
    using T = decltype(zero);
    const auto go = [&](auto width) {
      constexpr int V = decltype(width)::value;
      const int64_t tile = kThreads / std::min<int64_t>(c / V, kThreads) * kEach;
      start_kernel(embed_kernel<T, V>, ceil_div(z.size(0), kRows) * ceil_div(n, tile), kThreads, 0,
                   data<T>(left), data<T>(right), data<T>(relpos), data<T>(dgram),
                   lookup_of(residue_index, beta, breaks, relpos.size(0)), first_row, z.size(0), n,
                   int(c), data<T>(z), z.stride(0), z.stride(1));
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
  if (dright.defined()) add_column_sums(dz.view({n_row, n * c}), dright);
  const bool tables = drelpos.defined() || (ddgram.defined() && beta.defined());
  if (!tables && !dleft.defined()) return;
  // Without a table of positions all pairs fall into one row, which nobody reads.
  const Lookup lookup =
      lookup_of(residue_index, beta, breaks, drelpos.defined() ? drelpos.size(0) : 1);
  const int64_t relative = 2 * lookup.far + 1, rows = tables ? relative + lookup.bins : 0;
  const int64_t parts = std::min<int64_t>(n_row, 528);
  const Scratch partial(parts * rows * c * 4);
  by_type(dz, [&](auto zero) {
    using T = decltype(zero);
    const auto go = [&](auto width) {
      constexpr int V = decltype(width)::value;
      int64_t threads = kThreads;
      while (threads > 32 && (threads / 2 * V >= c || rows * threads * V * 4 > 64 << 10))
        threads /= 2;
      const int64_t shared = rows * threads * V * 4;
      check(shared <= device_info().shared_bytes, "pair embedding's tables of ", rows,
            " rows: too many for a GPU");
      const auto kernel = embed_backward_kernel<T, V>;
      check_cuda(
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)),
          "cudaFuncSetAttribute", shared, " bytes of shared memory");
      start_kernel(kernel, dim3(unsigned(parts), unsigned(ceil_div(c, threads * V))), threads,
                   shared, data<T>(dz), lookup, first_row, n_row, n, int(c),
                   data_or_null<float>(dleft), int(rows), tables ? partial.data<float>() : nullptr);
    };
    if (c % 2)
      go(std::integral_constant<int, 1>());
    else
      go(std::integral_constant<int, 4 / int(sizeof(T))>());
  });
  check_launch("pair_embed_backward", dz.shape());
  add_partials(partial.data<float>(), parts, rows * c, relative * c, drelpos);
  if (beta.defined())
    add_partials(partial.data<float>() + relative * c, parts, rows * c, lookup.bins * c, ddgram);
}

}  // namespace ff::cuda
