// Invariant point attention in f32. Scores and averages are one head's products of features,
// scalars first, then points; the attention over pairs reads z once, all heads at a time. The
// weights of a range of queries exist at a time. The backward makes them again; what belongs to
// keys and values is summed over the queries in their order.
#include <algorithm>

#include "cuda/rigid.cuh"
#include "cuda/table.h"
#include "cuda/walk.cuh"

namespace ff::cuda {
namespace {

constexpr int kWarps = 4, kOwn = 16, kEach = kOwn / kWarps;  // rows of a block, and of its warps
constexpr int kMostFeatures = 240;                           // of a head: a block's shared memory

struct Sizes {
  explicit Sizes(const IpaTensors& in)
      : n_query(in.z.size(0)),
        n(in.z.size(1)),
        h(int(in.bias.size(2))),
        qk(int(in.q_scalar.size(1)) / h),
        v(int(in.kv_scalar.size(1)) / h - qk),
        point_qk(int(in.q_point.size(1)) / (3 * h)),
        point_v(int(in.kv_point.size(1)) / (3 * h) - point_qk),
        c_z(int(in.z.size(2))) {
    check(keys() <= kMostFeatures && values() <= kMostFeatures, "invariant point attention of ",
          keys(), " and ", values(), " numbers a head: at most ", kMostFeatures, " fit a GPU");
  }
  constexpr int keys() const { return qk + 3 * point_qk; }
  constexpr int values() const { return v + 3 * point_v; }
  constexpr int points() const { return h * point_v; }
  constexpr int width() const { return h * (v + 4 * point_v + c_z); }
  int64_t n_query, n;
  int h, qk, v, point_qk, point_v, c_z;
};

/// A head's numbers of every residue: `scalars` and three times `points`; each part may be absent.
struct Features {
  float* scalar = nullptr;
  int64_t scalar_residue = 0, scalar_head = 0;
  float* point = nullptr;
  int64_t point_residue = 0, point_axis = 0, point_head = 0;
  int scalars = 0, points = 0;

  __host__ __device__ int count() const { return scalars + 3 * points; }
  /// nullptr where the part is absent.
  __device__ float* at(int64_t residue, int64_t head, int f) const {
    if (f < scalars)
      return scalar ? scalar + residue * scalar_residue + head * scalar_head + f : nullptr;
    const int x = (f - scalars) / points, p = f - scalars - x * points;
    return point ? point + residue * point_residue + x * point_axis + head * point_head + p
                 : nullptr;
  }
};

Features queries(const Sizes& s, const Tensor& scalar, const Tensor& point) {
  return {data_or_null<float>(scalar),
          s.h * s.qk,
          s.qk,
          data_or_null<float>(point),
          3 * s.h * s.point_qk,
          s.h * s.point_qk,
          s.point_qk,
          s.qk,
          s.point_qk};
}
Features keys(const Sizes& s, const Tensor& scalar, const Tensor& point) {
  const int c = s.qk + s.v, p = s.point_qk + s.point_v;
  return {data_or_null<float>(scalar),
          s.h * c,
          c,
          data_or_null<float>(point),
          3 * s.h * p,
          s.h * p,
          p,
          s.qk,
          s.point_qk};
}
Features values(const Sizes& s, const Tensor& scalar, const Tensor& point) {
  Features f = keys(s, scalar, point);
  if (f.scalar) f.scalar += s.qk;
  if (f.point) f.point += s.point_qk;
  f.scalars = s.v;
  f.points = s.point_v;
  return f;
}
/// The averages in the output's rows.
Features outputs(const Sizes& s, float* out) {
  return {out, s.width(), s.v, out + s.h * s.v, s.width(), s.points(), s.point_v, s.v, s.point_v};
}
/// The averages one head after the other.
Features averages(const Sizes& s, float* x) {
  const int c = s.values();
  return {x, s.h * c, c, x + s.v, s.h * c, s.point_v, c, s.v, s.point_v};
}

/// softplus(w) sqrt(1 / (13.5 n_point)): of the header's formula, the points' weight.
__host__ __device__ float point_scale(int points) { return sqrtf(1 / (13.5f * float(points))); }
__device__ float point_weight(const float* w, int h, int points) {
  return (fmaxf(w[h], 0.0f) + log1pf(expf(-fabsf(w[h])))) * point_scale(points);
}

struct Logits {
  const float *weights, *bias, *query_mask, *mask;  ///< point weights [h], [n_query, n, h], ...
  float scalar_factor;
};

/// Block (queries, head): scores [rows, h, n] of queries first + [0, rows) with all keys; the
/// logits of `own` and `other`, or their plain products.
template <bool kLogits>
__global__ void __launch_bounds__(kWarps * 32)
    scores_kernel(const __grid_constant__ Features own, const __grid_constant__ Features other,
                  const __grid_constant__ Logits logits, int64_t first, int64_t rows, int64_t n,
                  int heads, float* scores) {
  after_earlier();
  extern __shared__ __align__(16) float room[];  // [count, kOwn], then [count, 33]
  const int count = own.count(), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float *mine = room, *theirs = room + count * kOwn;
  const int64_t i0 = int64_t(blockIdx.x) * kOwn;
  const int h = blockIdx.y;
  for (int e = threadIdx.x; e < count * kOwn; e += kWarps * 32) {
    const int f = e % count, i = e / count;
    mine[f * kOwn + i] = i0 + i < rows ? *own.at(first + i0 + i, h, f) : 0.0f;
  }
  const float weight = kLogits ? point_weight(logits.weights, h, own.points) : 0.0f;
  for (int64_t j0 = 0; j0 < n; j0 += 32) {
    __syncthreads();
    for (int e = threadIdx.x; e < count * 32; e += kWarps * 32) {
      const int f = e % count, j = e / count;
      theirs[f * 33 + j] = j0 + j < n ? *other.at(j0 + j, h, f) : 0.0f;
    }
    __syncthreads();
    float dot[kEach] = {}, dist2[kEach] = {};
    const int scalars = kLogits ? own.scalars : count;
#pragma unroll 4
    for (int f = 0; f < scalars; ++f) {
      const float k = theirs[f * 33 + lane];
      const Pack<float, kEach> q = load_pack<kEach>(mine + f * kOwn + warp * kEach);
#pragma unroll
      for (int e = 0; e < kEach; ++e) dot[e] += q.at[e] * k;
    }
    if constexpr (kLogits)
#pragma unroll 4
      for (int f = scalars; f < count; ++f) {
        const float k = theirs[f * 33 + lane];
        const Pack<float, kEach> q = load_pack<kEach>(mine + f * kOwn + warp * kEach);
#pragma unroll
        for (int e = 0; e < kEach; ++e) dist2[e] += (q.at[e] - k) * (q.at[e] - k);
      }
    const int64_t j = j0 + lane;
    if (j >= n) continue;
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int64_t row = i0 + warp * kEach + e, i = first + row;
      if (row >= rows) break;
      float score = dot[e];
      if constexpr (kLogits)
        score = logits.scalar_factor * score - 0.5f * weight * dist2[e] +
                sqrtf(1.0f / 3.0f) * logits.bias[(i * n + j) * heads + h] -
                1e5f * (1 - logits.query_mask[i] * logits.mask[j]);
      scores[(row * heads + h) * n + j] = score;
    }
  }
}

/// One warp a row of n scores: their softmax, in place.
__global__ void __launch_bounds__(kWarps * 32)
    softmax_kernel(float* scores, int64_t rows, int64_t n) {
  after_earlier();
  const int64_t r = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (r >= rows) return;
  float* row = scores + r * n;
  float high = -INFINITY, total = 0;
  for (int64_t j = threadIdx.x % 32; j < n; j += 32) high = fmaxf(high, row[j]);
  high = warp_max(high);
  for (int64_t j = threadIdx.x % 32; j < n; j += 32) {
    const float e = expf(row[j] - high);
    row[j] = e;
    total += e;
  }
  const float factor = 1 / warp_sum(total);
  for (int64_t j = threadIdx.x % 32; j < n; j += 32) row[j] *= factor;
}

/// One warp a row: from the weights' gradients to the logits', in place, and to the bias.
__global__ void __launch_bounds__(kWarps * 32)
    softmax_backward_kernel(const float* weights, float* d, int64_t first, int64_t rows, int64_t n,
                            int heads, float* dbias) {
  after_earlier();
  const int64_t r = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (r >= rows * heads) return;
  const float* w = weights + r * n;
  float *row = d + r * n, total = 0;
  for (int64_t j = threadIdx.x % 32; j < n; j += 32) total += w[j] * row[j];
  total = warp_sum(total);
  const int64_t i = first + r / heads;
  for (int64_t j = threadIdx.x % 32; j < n; j += 32) {
    const float g = w[j] * (row[j] - total);
    row[j] = g;
    if (dbias) dbias[(i * n + j) * heads + r % heads] += sqrtf(1.0f / 3.0f) * g;
  }
}

struct Average {
  const float* weights;  ///< [rows, heads, n], of queries first + [0, rows)
  int64_t first, rows, n;
  int heads;
  float scalar_factor;
  const float* point_weights;
  float*
      weight_gradients;  ///< [n_query, heads], of the point weights before their scale, or nullptr
};

/// Block (own residues, head): to[a] of the sum over b of a weight times x[b]. Own residues are the
/// queries and b the keys, or with kOverQueries the other way round. With kGaps points give
/// -point weight times the sum of a weight times own[a] - x[b]. `kAdd` adds to what is there.
template <bool kOverQueries, bool kGaps, bool kAdd>
__global__ void __launch_bounds__(kWarps * 32, 1)
    average_kernel(const __grid_constant__ Average g, const __grid_constant__ Features x,
                   const __grid_constant__ Features own, const __grid_constant__ Features to) {
  after_earlier();
  extern __shared__ __align__(16) float room[];  // [32, kOwn] weights, then [32, count]
  float *w = room, *features = room + 32 * kOwn;
  const int count = x.count(), lane = threadIdx.x % 32, warp = threadIdx.x / 32, h = blockIdx.y;
  // Numbers of residues: own ones from `base` on, others from `other` on.
  const int64_t a0 = int64_t(blockIdx.x) * kOwn, n_own = kOverQueries ? g.n : g.rows,
                n_other = kOverQueries ? g.rows : g.n, base = kOverQueries ? 0 : g.first,
                other = kOverQueries ? g.first : 0;
  float squares[kEach] = {};
  for (int f0 = 0; f0 < count; f0 += 64) {
    float acc[kEach][2] = {}, mine[kEach][2] = {};
    if constexpr (kGaps)
#pragma unroll
      for (int e = 0; e < kEach; ++e)
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const int f = f0 + k * 32 + lane;
          const int64_t a = a0 + warp * kEach + e;
          if (f >= x.scalars && f < count && a < n_own) mine[e][k] = *own.at(base + a, h, f);
        }
    for (int64_t b0 = 0; b0 < n_other; b0 += 32) {
      __syncthreads();
      for (int e = threadIdx.x; e < 32 * kOwn; e += kWarps * 32) {
        // Neighbouring threads take neighbouring keys.
        const int a = kOverQueries ? e % kOwn : e / 32, b = kOverQueries ? e / kOwn : e % 32;
        const int64_t query = kOverQueries ? b0 + b : a0 + a, key = kOverQueries ? a0 + a : b0 + b;
        w[b * kOwn + a] =
            query < g.rows && key < g.n ? g.weights[(query * g.heads + h) * g.n + key] : 0.0f;
      }
      for (int e = threadIdx.x; e < 32 * count; e += kWarps * 32) {
        const int b = e / count, f = e - b * count;
        features[e] = b0 + b < n_other ? *x.at(other + b0 + b, h, f) : 0.0f;
      }
      __syncthreads();
#pragma unroll 4
      for (int b = 0; b < 32; ++b) {
        const Pack<float, kEach> weight = load_pack<kEach>(w + b * kOwn + warp * kEach);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const int f = f0 + k * 32 + lane;
          if (f >= count) continue;
          const float value = features[b * count + f];
#pragma unroll
          for (int e = 0; e < kEach; ++e)
            if (kGaps && f >= x.scalars) {
              const float gap = mine[e][k] - value, weighted = weight.at[e] * gap;
              acc[e][k] += weighted;
              squares[e] += weighted * gap;
            } else {
              acc[e][k] += weight.at[e] * value;
            }
        }
      }
    }
    const float point_factor = kGaps ? -point_weight(g.point_weights, h, x.points) : 1.0f;
#pragma unroll
    for (int e = 0; e < kEach; ++e)
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const int f = f0 + k * 32 + lane;
        const int64_t a = a0 + warp * kEach + e;
        if (f >= count || a >= n_own) continue;
        float* p = to.at(base + a, h, f);
        if (!p) continue;
        const float value = acc[e][k] * (f < x.scalars ? g.scalar_factor : point_factor);
        *p = kAdd ? *p + value : value;
      }
  }
  if constexpr (kGaps)
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const float sum = warp_sum(squares[e]);
      const int64_t a = a0 + warp * kEach + e;
      if (lane == 0 && a < n_own && g.weight_gradients)
        g.weight_gradients[(base + a) * g.heads + h] = -0.5f * sum;
    }
}

/// Block of one query: its averaged points into its frame, in place, and their norms.
__global__ void __launch_bounds__(kWarps * 32)
    to_local_kernel(const float* affine, int points, int width, int scalars, float* out) {
  after_earlier();
  const float* a = affine + 7 * int64_t(blockIdx.x);
  float *local = out + int64_t(blockIdx.x) * width + scalars, *norm = local + 3 * points;
  float r[9];
  quat_to_rot(a, r);
  for (int p = threadIdx.x; p < points; p += kWarps * 32) {
    const float g[3] = {local[p] - a[4], local[points + p] - a[5], local[2 * points + p] - a[6]};
    float square = 1e-8f;
#pragma unroll
    for (int x = 0; x < 3; ++x) {
      const float l = r[x] * g[0] + r[3 + x] * g[1] + r[6 + x] * g[2];
      local[x * points + p] = l;
      square += l * l;
    }
    norm[p] = sqrtf(square);
  }
}

/// Block of one query: the gradients of its averages in the global frame, [h, values], from those
/// of its output, and of its frame.
__global__ void __launch_bounds__(kWarps * 32)
    to_local_backward_kernel(const float* affine, const __grid_constant__ Sizes s, int64_t first,
                             const float* out, const float* dout, float* average, float* daffine) {
  after_earlier();
  __shared__ float sums[kWarps][12];
  const int64_t i = first + blockIdx.x;
  const int points = s.points(), scalars = s.h * s.v;
  const float *local = out + i * s.width() + scalars, *norm = local + 3 * points,
              *d = dout + i * s.width(), *d_local = d + scalars, *d_norm = d_local + 3 * points,
              *a = affine + 7 * i;
  float* to = average + int64_t(blockIdx.x) * s.h * s.values();
  for (int k = threadIdx.x; k < scalars; k += kWarps * 32)
    to[k / s.v * s.values() + k % s.v] = d[k];
  float r[9], sum[12] = {};  // of the rotation, then of the translation
  quat_to_rot(a, r);
  for (int p = threadIdx.x; p < points; p += kWarps * 32) {
    float l[3], dl[3];
    const float scale = d_norm[p] / norm[p];
#pragma unroll
    for (int x = 0; x < 3; ++x) {
      l[x] = local[x * points + p];
      dl[x] = d_local[x * points + p] + scale * l[x];
    }
#pragma unroll
    for (int x = 0; x < 3; ++x) {
      const float from_origin = r[3 * x] * l[0] + r[3 * x + 1] * l[1] + r[3 * x + 2] * l[2];
      const float dg = r[3 * x] * dl[0] + r[3 * x + 1] * dl[1] + r[3 * x + 2] * dl[2];
      to[p / s.point_v * s.values() + s.v + x * s.point_v + p % s.point_v] = dg;
      sum[9 + x] -= dg;
#pragma unroll
      for (int y = 0; y < 3; ++y) sum[3 * x + y] += from_origin * dl[y];
    }
  }
  if (!daffine) return;
#pragma unroll
  for (int k = 0; k < 12; ++k) {
    sum[k] = warp_sum(sum[k]);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32][k] = sum[k];
  }
  __syncthreads();
  if (threadIdx.x) return;
#pragma unroll
  for (int k = 0; k < 12; ++k)
#pragma unroll
    for (int w = 1; w < kWarps; ++w) sum[k] += sums[w][k];
  quat_to_rot_backward(a, sum, daffine + 7 * i);
#pragma unroll
  for (int x = 0; x < 3; ++x) daffine[7 * i + 4 + x] += sum[9 + x];
}

constexpr int kPairWarps = 8, kPairThreads = 32 * kPairWarps, kPairHeads = 12, kPairKeys = 128;

/// What the attention over pairs reads: weights [rows, heads, n] of queries first + [0, rows), z.
struct Pairs {
  const float *weights, *z;
  int64_t stride_i, stride_j, first, n;
  int heads, c;

  /// Twelve heads' weights of a range of keys, by all threads of a block.
  __device__ void load(int h0, int64_t j0, float (*to)[kPairHeads]) const {
    for (int e = threadIdx.x; e < kPairHeads * kPairKeys; e += kPairThreads) {
      const int h = e / kPairKeys, j = e % kPairKeys;
      to[j][h] = h0 + h < heads && j0 + j < n
                     ? weights[(int64_t(blockIdx.x) * heads + h0 + h) * n + j0 + j]
                     : 0.0f;
    }
  }
};

/// Block (query, 32 packs of channels, twelve heads): out[query, head, :] = sum_j weight z[query,
/// j].
template <int V>
__global__ void __launch_bounds__(kPairThreads)
    pair_kernel(const __grid_constant__ Pairs g, float* out, int64_t width) {
  after_earlier();
  __shared__ float weights[kPairKeys][kPairHeads], room[kPairWarps][32 * V];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, h0 = blockIdx.z * kPairHeads;
  const int c = (blockIdx.y * 32 + lane) * V;
  const int64_t i = g.first + blockIdx.x;
  const float* z = g.z + i * g.stride_i + c;
  float acc[kPairHeads][V] = {};
  for (int64_t j0 = 0; j0 < g.n; j0 += kPairKeys) {
    __syncthreads();
    g.load(h0, j0, weights);
    __syncthreads();
    const int keys = int(min(int64_t(kPairKeys), g.n - j0));
    if (c < g.c)
#pragma unroll 4
      for (int j = warp; j < keys; j += kPairWarps) {
        float v[V];
        load_floats<V>(z + (j0 + j) * g.stride_j, v);
#pragma unroll
        for (int h = 0; h < kPairHeads; ++h)
#pragma unroll
          for (int k = 0; k < V; ++k) acc[h][k] += weights[j][h] * v[k];
      }
  }
#pragma unroll
  for (int h = 0; h < kPairHeads; ++h) {
    __syncthreads();
#pragma unroll
    for (int k = 0; k < V; ++k) room[warp][lane * V + k] = acc[h][k];
    __syncthreads();
    const int channel = blockIdx.y * 32 * V + threadIdx.x;
    if (threadIdx.x >= 32 * V || channel >= g.c || h0 + h >= g.heads) continue;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kPairWarps; ++w) sum += room[w][threadIdx.x];
    out[i * width + (h0 + h) * g.c + channel] = sum;
  }
}

/// Block of one query: adds the pairs' part to d, the weights' gradients [rows, heads, n], and to
/// dz.
template <int V>
__global__ void __launch_bounds__(kPairThreads)
    pair_backward_kernel(const __grid_constant__ Pairs g, const float* dout, int64_t width,
                         float* d, float* dz, int64_t dz_stride_i, int64_t dz_stride_j) {
  after_earlier();
  __shared__ float weights[kPairKeys][kPairHeads];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t i = g.first + blockIdx.x;
  for (int h0 = 0; h0 < g.heads; h0 += kPairHeads)
    for (int c0 = 0; c0 < g.c; c0 += 32 * V) {
      const int c = c0 + lane * V;
      float up[kPairHeads][V] = {};
#pragma unroll
      for (int h = 0; h < kPairHeads; ++h)
        if (c < g.c && h0 + h < g.heads)
          load_floats<V>(dout + i * width + (h0 + h) * g.c + c, up[h]);
      for (int64_t j0 = 0; j0 < g.n; j0 += kPairKeys) {
        __syncthreads();
        g.load(h0, j0, weights);
        __syncthreads();
        const int keys = int(min(int64_t(kPairKeys), g.n - j0));
        for (int j = warp; j < keys; j += kPairWarps) {
          float v[V] = {}, to[V] = {};
          float* add_to = dz + i * dz_stride_i + (j0 + j) * dz_stride_j + c;
          if (c < g.c) {
            load_floats<V>(g.z + i * g.stride_i + (j0 + j) * g.stride_j + c, v);
            if (dz) load_floats<V>(add_to, to);
          }
          float mine = 0;  // lane h keeps head h's sum
#pragma unroll
          for (int h = 0; h < kPairHeads; ++h) {
            float dot = 0;
#pragma unroll
            for (int k = 0; k < V; ++k) {
              dot += up[h][k] * v[k];
              to[k] += weights[j][h] * up[h][k];
            }
            dot = warp_sum(dot);
            if (lane == h) mine = dot;
          }
          if (dz && c < g.c) store_floats<V>(add_to, to);
          if (lane < kPairHeads && h0 + lane < g.heads)
            d[(int64_t(blockIdx.x) * g.heads + h0 + lane) * g.n + j0 + j] += mine;
        }
      }
    }
}

/// One warp a head: dw[h] += sum_i gradients[i, h] times the slope of the point weight.
__global__ void point_weights_kernel(const float* gradients, int64_t n, int heads, int points,
                                     const float* w, float* dw) {
  after_earlier();
  const int h = blockIdx.x;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += 32) sum += gradients[i * heads + h];
  sum = warp_sum(sum);
  if (threadIdx.x == 0) dw[h] += sum * point_scale(points) / (1 + expf(-w[h]));
}

/// The attention of a range of queries: grids, launches and temporary memory.
struct Attention {
  explicit Attention(const IpaTensors& in_, const Tensor& out, int scores)
      : in(in_),
        s(in),
        // A range's scores are bounded; it ends with a block.
        rows(std::clamp<int64_t>(kGpuIpaBytes / (4 * scores * s.h * s.n) / kOwn * kOwn, kOwn,
                                 ceil_div(s.n_query, kOwn) * kOwn)),
        room(std::min(rows, s.n_query) * s.h * s.n * 4 * scores),
        weights(room.data<float>()),
        q(queries(s, in.q_scalar, in.q_point)),
        k(keys(s, in.kv_scalar, in.kv_point)),
        v(values(s, in.kv_scalar, in.kv_point)),
        name(out.shape()) {}

  template <bool kLogits>
  void score(const Features& own, const Features& other, int64_t first, int64_t count,
             float* scores) const {
    const Logits logits{in.point_weights.data<float>(), in.bias.data<float>(),
                        in.query_mask.data<float>(), in.mask.data<float>(),
                        float(std::sqrt(1.0 / (3.0 * s.qk)))};
    start_kernel(scores_kernel<kLogits>, grid(count), kWarps * 32, own.count() * (kOwn + 33) * 4,
                 own, other, logits, first, count, s.n, s.h, scores);
    check_launch("invariant_point_attention's scores", name);
  }

  void attend(int64_t first, int64_t count) const {
    score<true>(q, k, first, count, weights);
    start_kernel(softmax_kernel, ceil_div(count * s.h, kWarps), kWarps * 32, 0, weights,
                 count * s.h, s.n);
    check_launch("invariant_point_attention's softmax", name);
  }

  template <bool kOverQueries, bool kGaps, bool kAdd>
  void average(const float* w, int64_t first, int64_t count, const Features& x, const Features& own,
               const Features& to, float* weight_gradients = nullptr) const {
    if (!to.scalar && !to.point && !weight_gradients) return;
    const Average g{w,
                    first,
                    count,
                    s.n,
                    s.h,
                    kGaps ? float(std::sqrt(1.0 / (3.0 * s.qk))) : 1.0f,
                    in.point_weights.data<float>(),
                    weight_gradients};
    start_kernel(average_kernel<kOverQueries, kGaps, kAdd>, grid(kOverQueries ? s.n : count),
                 kWarps * 32, 32 * (kOwn + x.count()) * 4, g, x, own, to);
    check_launch("invariant_point_attention's averages", name);
  }

  Pairs pairs(int64_t first) const {
    return {weights, in.z.data<float>(), in.z.stride(0), in.z.stride(1), first, s.n, s.h, s.c_z};
  }
  dim3 grid(int64_t own) const { return {unsigned(ceil_div(own, kOwn)), unsigned(s.h)}; }

  const IpaTensors& in;
  Sizes s;
  int64_t rows;
  Scratch room;
  float* weights;
  Features q, k, v;
  Dims name;
};

}  // namespace

void invariant_point_attention(const IpaTensors& in, const Tensor& out) {
  if (!out.numel()) return;
  const Attention a(in, out, 1);
  const Sizes& s = a.s;
  float* to = out.data<float>();
  float* pair = to + s.h * (s.v + 4 * s.point_v);
  for (int64_t first = 0; first < s.n_query; first += a.rows) {
    const int64_t count = std::min(a.rows, s.n_query - first);
    a.attend(first, count);
    a.average<false, false, false>(a.weights, first, count, a.v, {}, outputs(s, to));
    const auto attend_pairs = [&](auto width) {
      constexpr int V = decltype(width)::value;
      const dim3 grid{unsigned(count), unsigned(ceil_div(s.c_z, 32 * V)),
                      unsigned(ceil_div(s.h, kPairHeads))};
      start_kernel(pair_kernel<V>, grid, kPairThreads, 0, a.pairs(first), pair, s.width());
    };
    if (in_packs(in.z))
      attend_pairs(std::integral_constant<int, 4>());
    else
      attend_pairs(std::integral_constant<int, 1>());
    check_launch("invariant_point_attention's pairs", in.z.shape());
  }
  start_kernel(to_local_kernel, s.n_query, kWarps * 32, 0, in.affine.data<float>(), s.points(),
               s.width(), s.h * s.v, to);
  check_launch("invariant_point_attention's points", out.shape());
}

void invariant_point_attention_backward(const IpaTensors& in, const Tensor& out, const Tensor& dout,
                                        const IpaTensors& grads) {
  if (!out.numel()) return;
  const Attention a(in, out, 2);
  const Sizes& s = a.s;
  float* d = a.weights + std::min(a.rows, s.n_query) * s.h * s.n;
  const Scratch average_room(s.n_query * s.h * s.values() * 4), weight_room(s.n_query * s.h * 4);
  float* average = average_room.data<float>();
  const float* pair = dout.data<float>() + s.h * (s.v + 4 * s.point_v);
  start_kernel(to_local_backward_kernel, s.n_query, kWarps * 32, 0, in.affine.data<float>(), s, 0,
               out.data<float>(), dout.data<float>(), average, data_or_null<float>(grads.affine));
  check_launch("invariant_point_attention_backward's points", out.shape());
  const Features dq = queries(s, grads.q_scalar, grads.q_point),
                 dk = keys(s, grads.kv_scalar, grads.kv_point),
                 dv = values(s, grads.kv_scalar, grads.kv_point), up = averages(s, average);
  float* dw = grads.point_weights.defined() ? weight_room.data<float>() : nullptr;
  for (int64_t first = 0; first < s.n_query; first += a.rows) {
    const int64_t count = std::min(a.rows, s.n_query - first);
    a.attend(first, count);
    a.score<false>(up, a.v, first, count, d);
    const bool packed = in_packs(in.z) && in_packs(grads.z) && in_packs(dout) &&
                        reinterpret_cast<uintptr_t>(pair) % 16 == 0;
    const auto kernel = packed ? pair_backward_kernel<4> : pair_backward_kernel<1>;
    start_kernel(kernel, count, kPairThreads, 0, a.pairs(first), pair, s.width(), d,
                 data_or_null<float>(grads.z), grads.z.defined() ? grads.z.stride(0) : 0,
                 grads.z.defined() ? grads.z.stride(1) : 0);
    check_launch("invariant_point_attention_backward's pairs", in.z.shape());
    start_kernel(softmax_backward_kernel, ceil_div(count * s.h, kWarps), kWarps * 32, 0, a.weights,
                 d, first, count, s.n, s.h, data_or_null<float>(grads.bias));
    check_launch("invariant_point_attention_backward's softmax", in.z.shape());
    a.average<false, true, true>(d, first, count, a.k, a.q, dq, dw);
    a.average<true, true, true>(d, first, count, a.q, a.k, dk);
    a.average<true, false, true>(a.weights, first, count, up, {}, dv);
  }
  if (!dw) return;
  start_kernel(point_weights_kernel, s.h, 32, 0, dw, s.n_query, s.h, s.point_qk,
               in.point_weights.data<float>(), grads.point_weights.data<float>());
  check_launch("invariant_point_attention_backward's point weights", in.z.shape());
}

}  // namespace ff::cuda
