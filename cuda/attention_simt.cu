// Attention without tensor cores, forward and backward: a thread owns a row (a query, or a key in
// the backward of keys and values) and passes over the other side, which the block brings to shared
// memory in tiles. All sums are f32.
#include "cuda/attention.cuh"
#include "cuda/mma.cuh"

namespace ff::cuda {
namespace {

constexpr int kThreads = 128, kTile = 32;

/// Row `row` of (b, h) in registers, 0 beyond its channels.
template <int kC, class T>
__device__ __forceinline__ void load_row(float (&to)[kC], const HeadView<const T>& view, int64_t b,
                                         int64_t row, int64_t h, int c) {
  const T* from = view.at(b, row, h);
#pragma unroll
  for (int l = 0; l < kC; ++l) to[l] = l < c ? to_float(from[l]) : 0.0f;
}

/// Rows row0 ... row0 + 31 of (b, h) in shared memory, 0 beyond rows and channels.
template <int kC, class T>
__device__ __forceinline__ void load_tile(float (*to)[kC], const HeadView<const T>& view, int64_t b,
                                          int64_t h, int row0, int n, int c) {
  for (int i = threadIdx.x; i < kTile * kC; i += kThreads) {
    const int row = i / kC, channel = i % kC;
    to[row][channel] =
        row0 + row < n && channel < c ? to_float(view.at(b, row0 + row, h)[channel]) : 0.0f;
  }
}

template <int kC>
__device__ __forceinline__ float dot(const float (&x)[kC], const float* y) {
  float sum = 0;
#pragma unroll
  for (int l = 0; l < kC; l += 4) {
    const float4 v = *reinterpret_cast<const float4*>(y + l);
    sum = fmaf(x[l], v.x, sum);
    sum = fmaf(x[l + 1], v.y, sum);
    sum = fmaf(x[l + 2], v.z, sum);
    sum = fmaf(x[l + 3], v.w, sum);
  }
  return sum;
}
/// x += factor * y
template <int kC>
__device__ __forceinline__ void add_scaled(float (&x)[kC], float factor, const float* y) {
#pragma unroll
  for (int l = 0; l < kC; l += 4) {
    const float4 v = *reinterpret_cast<const float4*>(y + l);
    x[l] = fmaf(factor, v.x, x[l]);
    x[l + 1] = fmaf(factor, v.y, x[l + 1]);
    x[l + 2] = fmaf(factor, v.z, x[l + 2]);
    x[l + 3] = fmaf(factor, v.w, x[l + 3]);
  }
}

template <int kC, class T>
__device__ __forceinline__ void add_row(const HeadView<T>& to, const float (&x)[kC], float factor,
                                        int64_t b, int64_t row, int64_t h, int c) {
  T* p = to.at(b, row, h);
#pragma unroll
  for (int l = 0; l < kC; ++l)
    if (l < c) p[l] = from_float<T>(to_float(p[l]) + factor * x[l]);
}

/// 1 for a key, 0 for a masked one, -1 for one that does not exist.
template <class T>
__device__ __forceinline__ float key_state(const Attention<T>& a, int64_t b, int64_t j) {
  if (j >= a.n_key) return -1;
  return a.mask && a.mask[b * a.mask_batch + j * a.mask_key] == 0 ? 0.0f : 1.0f;
}

struct Place {
  int64_t b, h;
  int row;  ///< of this thread; may be past the end
};
/// Blocks of kThreads rows fastest, then heads, then the batch.
__device__ __forceinline__ Place place(int rows, int n_head) {
  const int64_t blocks = (rows + kThreads - 1) / kThreads, rest = blockIdx.x / blocks;
  return {rest / n_head, rest % n_head, int(blockIdx.x % blocks) * kThreads + int(threadIdx.x)};
}

template <class T, int kC>
__global__ void __launch_bounds__(kThreads) forward_kernel(Attention<T> a) {
  after_earlier();
  __shared__ __align__(16) float keys[kTile][kC], values[kTile][kC];
  __shared__ float state[kTile];
  const auto [b, h, row] = place(a.n_query, a.n_head);
  const int i = min(row, a.n_query - 1);
  float q[kC], out[kC] = {}, high = -INFINITY, sum = 0;
  load_row<kC>(q, a.q, b, i, h, a.c);
#pragma unroll
  for (int l = 0; l < kC; ++l) q[l] *= a.scale2;
  const float* bias = a.bias ? a.bias + h * a.bias_head + i * a.bias_row : nullptr;
  for (int key0 = 0; key0 < a.n_key; key0 += kTile) {
    __syncthreads();
    load_tile<kC>(keys, a.k, b, h, key0, a.n_key, a.c);
    load_tile<kC>(values, a.v, b, h, key0, a.n_key, a.c_v);
    if (threadIdx.x < kTile) state[threadIdx.x] = key_state(a, b, key0 + threadIdx.x);
    __syncthreads();
    constexpr int kStep = 8;
    for (int j0 = 0; j0 < kTile && key0 + j0 < a.n_key; j0 += kStep) {
      float x[kStep], top = high;
#pragma unroll
      for (int j = 0; j < kStep; ++j) {
        x[j] = dot<kC>(q, keys[j0 + j]);
        if (bias && key0 + j0 + j < a.n_key) x[j] = fmaf(bias[key0 + j0 + j], kLog2e, x[j]);
        const float s = state[j0 + j];
        if (s <= 0) x[j] = s == 0 ? kMaskedLogit : -INFINITY;
        top = fmaxf(top, x[j]);
      }
      const float factor = exp2f(high - top);
      high = top;
      sum *= factor;
#pragma unroll
      for (int l = 0; l < kC; ++l) out[l] *= factor;
#pragma unroll
      for (int j = 0; j < kStep; ++j) {
        const float w = exp2f(x[j] - high);
        sum += w;
        add_scaled<kC>(out, w, values[j0 + j]);
      }
    }
  }
  if (row >= a.n_query) return;
  if (a.lse)
    a.lse[(b * a.n_head + h) * a.n_query + row] =
        high == kMaskedLogit ? INFINITY : high + log2f(sum);
  const T* gate = a.gate.base ? a.gate.at(b, row, h) : nullptr;
  T* to = a.o.at(b, row, h);
#pragma unroll
  for (int l = 0; l < kC; ++l)
    if (l < a.c_v) {
      const float x = out[l] / sum;
      to[l] = from_float<T>(gate ? x / (1 + expf(-to_float(gate[l]))) : x);
    }
}

/// dq; see attention_mma_backward.cu for the equations.
template <class T, int kC>
__global__ void __launch_bounds__(kThreads) query_kernel(Attention<T> a, HeadView<T> dq) {
  after_earlier();
  __shared__ __align__(16) float keys[kTile][kC], values[kTile][kC];
  __shared__ float state[kTile];
  const auto [b, h, row] = place(a.n_query, a.n_head);
  const int i = min(row, a.n_query - 1);
  float q[kC], d_out[kC], sum[kC] = {};
  load_row<kC>(q, a.q, b, i, h, a.c);
#pragma unroll
  for (int l = 0; l < kC; ++l) q[l] *= a.scale2;
  load_row<kC>(d_out, a.d_out, b, i, h, a.c_v);
  const int64_t at = (b * a.n_head + h) * a.n_query + i;
  const float lse = a.lse[at], delta = a.delta[at];
  const float* bias = a.bias ? a.bias + h * a.bias_head + i * a.bias_row : nullptr;
  for (int key0 = 0; key0 < a.n_key; key0 += kTile) {
    __syncthreads();
    load_tile<kC>(keys, a.k, b, h, key0, a.n_key, a.c);
    load_tile<kC>(values, a.v, b, h, key0, a.n_key, a.c_v);
    if (threadIdx.x < kTile) state[threadIdx.x] = key_state(a, b, key0 + threadIdx.x);
    __syncthreads();
    for (int j = 0; j < kTile; ++j) {
      if (state[j] <= 0) continue;
      float x = dot<kC>(q, keys[j]);
      if (bias) x = fmaf(bias[key0 + j], kLog2e, x);
      add_scaled<kC>(sum, exp2f(x - lse) * (dot<kC>(d_out, values[j]) - delta), keys[j]);
    }
  }
  if (row < a.n_query) add_row<kC>(dq, sum, a.scale, b, row, h, a.c);
}

/// dk and dv.
template <class T, int kC>
__global__ void __launch_bounds__(kThreads)
    key_kernel(Attention<T> a, HeadView<T> dk, HeadView<T> dv) {
  after_earlier();
  __shared__ __align__(16) float queries[kTile][kC], d_outs[kTile][kC];
  __shared__ float lses[kTile], deltas[kTile];
  const auto [b, h, row] = place(a.n_key, a.n_head);
  const int j = min(row, a.n_key - 1);
  float k[kC], v[kC], sum_k[kC] = {}, sum_v[kC] = {};
  load_row<kC>(k, a.k, b, j, h, a.c);
#pragma unroll
  for (int l = 0; l < kC; ++l) k[l] *= a.scale2;
  load_row<kC>(v, a.v, b, j, h, a.c_v);
  const bool kept = key_state(a, b, j) > 0;
  const float* bias = a.bias ? a.bias + h * a.bias_head + j : nullptr;
  for (int query0 = 0; query0 < a.n_query; query0 += kTile) {
    __syncthreads();
    load_tile<kC>(queries, a.q, b, h, query0, a.n_query, a.c);
    load_tile<kC>(d_outs, a.d_out, b, h, query0, a.n_query, a.c_v);
    if (threadIdx.x < kTile && query0 + int(threadIdx.x) < a.n_query) {
      const int64_t at = (b * a.n_head + h) * a.n_query + query0 + threadIdx.x;
      lses[threadIdx.x] = a.lse[at];
      deltas[threadIdx.x] = a.delta[at];
    }
    __syncthreads();
    for (int i = 0; i < kTile && query0 + i < a.n_query; ++i) {
      if (kept) {
        float x = dot<kC>(k, queries[i]);
        if (bias) x = fmaf(bias[(query0 + i) * a.bias_row], kLog2e, x);
        const float w = exp2f(x - lses[i]);
        add_scaled<kC>(sum_v, w, d_outs[i]);
        add_scaled<kC>(sum_k, w * (dot<kC>(v, d_outs[i]) - deltas[i]), queries[i]);
      } else if (lses[i] == INFINITY) {
        add_scaled<kC>(sum_v, 1 / float(a.n_key), d_outs[i]);
      }
    }
  }
  if (row >= a.n_key) return;
  if (dk.base) add_row<kC>(dk, sum_k, a.scale, b, row, h, a.c);
  if (dv.base) add_row<kC>(dv, sum_v, 1.0f, b, row, h, a.c_v);
}

constexpr int kSquare = 64, kSquareThreads = 256, kSquarePitch = kSquare + 4;

/// dbias: a block owns 64 x 64 logits of one head, a thread 4 x 4, for a part of the batch.
template <class T, int kC>
__global__ void __launch_bounds__(kSquareThreads)
    bias_kernel(Attention<T> a, AttentionGradients<T> d, float* sums, int parts) {
  after_earlier();
  // q, d_out, k, v by channels, a row a channel.
  extern __shared__ __align__(16) unsigned char shared[];
  auto* tiles = reinterpret_cast<float(*)[kC][kSquarePitch]>(shared);
  const int query_blocks = (a.n_query + kSquare - 1) / kSquare,
            key_blocks = (a.n_key + kSquare - 1) / kSquare;
  int64_t block = blockIdx.x;
  const int j0 = int(block % key_blocks) * kSquare, tj = threadIdx.x % 16 * 4;
  block /= key_blocks;
  const int i0 = int(block % query_blocks) * kSquare, ti = threadIdx.x / 16 * 4;
  block /= query_blocks;
  const int64_t h = block % a.n_head, part = block / a.n_head;
  float bias[4][4], sum[4][4] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      bias[i][j] = i0 + ti + i < a.n_query && j0 + tj + j < a.n_key
                       ? a.bias[h * a.bias_head + (i0 + ti + i) * a.bias_row + j0 + tj + j] * kLog2e
                       : 0.0f;
  for (int64_t b = part * a.batch / parts; b < (part + 1) * a.batch / parts; ++b) {
    __syncthreads();
    for (int t = 0; t < 4; ++t) {
      const HeadView<const T>& view = t == 0 ? a.q : t == 1 ? a.d_out : t == 2 ? a.k : a.v;
      const int n = t < 2 ? a.n_query : a.n_key, first = t < 2 ? i0 : j0, c = t % 2 ? a.c_v : a.c;
      for (int e = threadIdx.x; e < kSquare * kC; e += kSquareThreads) {
        const int row = e / kC, channel = e % kC;
        tiles[t][channel][row] =
            first + row < n && channel < c ? to_float(view.at(b, first + row, h)[channel]) : 0.0f;
      }
    }
    __syncthreads();
    float x[4][4] = {}, dx[4][4] = {};
#pragma unroll 4
    for (int l = 0; l < kC; ++l) {
      float4 f[4];
#pragma unroll
      for (int t = 0; t < 4; ++t)
        f[t] = *reinterpret_cast<const float4*>(&tiles[t][l][t < 2 ? ti : tj]);
      const float q[4] = {f[0].x, f[0].y, f[0].z, f[0].w}, o[4] = {f[1].x, f[1].y, f[1].z, f[1].w},
                  k[4] = {f[2].x, f[2].y, f[2].z, f[2].w}, v[4] = {f[3].x, f[3].y, f[3].z, f[3].w};
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          x[i][j] = fmaf(q[i], k[j], x[i][j]);
          dx[i][j] = fmaf(o[i], v[j], dx[i][j]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i0 + ti + i >= a.n_query) continue;
      const int64_t at = (b * a.n_head + h) * a.n_query + i0 + ti + i;
      const float lse = a.lse[at], delta = a.delta[at];
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (key_state(a, b, j0 + tj + j) > 0)
          sum[i][j] += exp2f(fmaf(x[i][j], a.scale2, bias[i][j]) - lse) * (dx[i][j] - delta);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t qi = i0 + ti + i, kj = j0 + tj + j;
      if (qi >= a.n_query || kj >= a.n_key) continue;
      if (sums)
        sums[((part * a.n_head + h) * a.n_query + qi) * a.n_key + kj] = sum[i][j];
      else
        d.bias[h * d.bias_head + qi * d.bias_row + kj] += sum[i][j];
    }
}

template <class T, int kC>
void backward(const Attention<T>& a, const AttentionGradients<T>& d) {
  const int64_t heads = int64_t(a.batch) * a.n_head;
  if (d.k.base || d.v.base)
    launch<key_kernel<T, kC>>("attention's backward of keys and values",
                              ceil_div(a.n_key, kThreads) * heads, kThreads, 0, a, d.k, d.v);
  if (d.q.base)
    launch<query_kernel<T, kC>>("attention's backward of queries",
                                ceil_div(a.n_query, kThreads) * heads, kThreads, 0, a, d.q);
  if (!d.bias) return;
  const int64_t blocks = ceil_div(a.n_query, kSquare) * ceil_div(a.n_key, kSquare) * a.n_head;
  const BiasParts parts(blocks, a.batch, int64_t(a.n_head) * a.n_query * a.n_key);
  launch<bias_kernel<T, kC>>("attention's backward of the bias", blocks * parts.count(),
                             kSquareThreads, 4 * kC * kSquarePitch * 4, a, d, parts.sums(),
                             parts.count());
  parts.add_to(a, d);
}

/// Calls f with the channels that a kernel is compiled for.
template <class T, class F>
void by_channels(const Attention<T>& a, F f) {
  const int c = std::max(a.c, a.c_v);
  check(c <= 64, "attention with ", c, " channels a head; the GPU's kernels take at most 64");
  if (c <= 8) return f(std::integral_constant<int, 8>());
  if (c <= 16) return f(std::integral_constant<int, 16>());
  if (c <= 32) return f(std::integral_constant<int, 32>());
  f(std::integral_constant<int, 64>());
}

}  // namespace

template <class T>
void attention_simt(const Attention<T>& a) {
  by_channels(a, [&](auto c) {
    launch<forward_kernel<T, decltype(c)::value>>(
        "attention", ceil_div(a.n_query, kThreads) * a.batch * a.n_head, kThreads, 0, a);
  });
}

template <class T>
void attention_simt_backward(const Attention<T>& a, const AttentionGradients<T>& d) {
  by_channels(a, [&](auto c) { backward<T, decltype(c)::value>(a, d); });
}

template void attention_simt(const Attention<float>&);
template void attention_simt(const Attention<__nv_bfloat16>&);
template void attention_simt_backward(const Attention<float>&, const AttentionGradients<float>&);
template void attention_simt_backward(const Attention<__nv_bfloat16>&,
                                      const AttentionGradients<__nv_bfloat16>&);

}  // namespace ff::cuda
