// Global attention (extra-MSA columns) and the masked mean of its query, forward and backward. Both
// are bound by memory: passes over columns in whole lines, sums in a fixed order.
#include <algorithm>

#include "cuda/attention.cuh"
#include "cuda/mma.cuh"
#include "cuda/table.h"

namespace ff::cuda {
namespace {

constexpr int kThreads = 256, kRowsOfChunk = 512;

/// Operands; keys, values and gates are [batch, n, 1, channels].
template <class T>
struct Global {
  HeadView<const T> q, k, v, gate;
  const float* mask;
  int64_t mask_batch, mask_key;
  int64_t batch, n;
  int n_head, c, c_v;
  float scale, scale2;
  /// [batch, n_head, c_v] and [batch, n_head]; lse as in Attention.
  float *average, *lse;

  __device__ __forceinline__ bool kept(int64_t b, int64_t s) const {
    return mask[b * mask_batch + s * mask_key] != 0;
  }
};

template <class T>
Global<T> global_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                    const Tensor& mask, const Scratch& average, const Scratch& lse) {
  const float scale = 1 / std::sqrt(float(q.size(2)));
  return {HeadView<const T>(q.unsqueeze(1)),
          HeadView<const T>(k.unsqueeze(2)),
          HeadView<const T>(v.unsqueeze(2)),
          HeadView<const T>(gate.unsqueeze(2)),
          mask.data<float>(),
          mask.stride(0),
          mask.stride(1),
          k.size(0),
          k.size(1),
          int(q.size(1)),
          int(q.size(2)),
          int(v.size(2)),
          scale,
          scale * kLog2e,
          average.data<float>(),
          lse.data<float>()};
}

template <int kC, class T>
__device__ __forceinline__ void load_channels(float (&to)[kC], const T* from, int c, float factor) {
#pragma unroll
  for (int l = 0; l < kC; ++l) to[l] = l < c ? factor * to_float(from[l]) : 0.0f;
}
template <int kC>
__device__ __forceinline__ float dot(const float (&x)[kC], const float* y) {
  float sum = 0;
#pragma unroll
  for (int l = 0; l < kC; ++l) sum = fmaf(x[l], y[l], sum);
  return sum;
}

/// A warp a head: its average of the values, and the log-sum-exp.
template <class T, int kC>
__global__ void __launch_bounds__(kThreads) average_kernel(Global<T> a) {
  after_earlier();
  const int64_t head = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / 32, b = head / a.n_head;
  const int h = int(head % a.n_head), lane = threadIdx.x % 32;
  if (b >= a.batch) return;
  float q[kC], sum = 0, high = -INFINITY, out[kC] = {};
  load_channels<kC>(q, a.q.at(b, 0, h), a.c, a.scale2);
  for (int64_t s = lane; s < a.n; s += 32) {
    float k[kC], v[kC];
    load_channels<kC>(k, a.k.at(b, s, 0), a.c, 1.0f);
    load_channels<kC>(v, a.v.at(b, s, 0), a.c_v, 1.0f);
    const float x = a.kept(b, s) ? dot<kC>(q, k) : kMaskedLogit;
    if (x > high) {
      const float factor = exp2f(high - x);
      high = x;
      sum *= factor;
#pragma unroll
      for (int l = 0; l < kC; ++l) out[l] *= factor;
    }
    const float w = exp2f(x - high);
    sum += w;
#pragma unroll
    for (int l = 0; l < kC; ++l) out[l] = fmaf(w, v[l], out[l]);
  }
  const float top = warp_max(high), factor = exp2f(high - top);
  sum = warp_sum(sum * factor);
  if (lane == 0) a.lse[head] = top == kMaskedLogit ? INFINITY : top + log2f(sum);
#pragma unroll
  for (int l = 0; l < kC; ++l) {
    const float x = warp_sum(out[l] * factor) / sum;
    if (lane == l % 32 && l < a.c_v) a.average[head * a.c_v + l] = x;
  }
}

/// o[b, s, :] = sigmoid(gate[b, s, :]) average[b, :]
template <class T, bool kWide>
__global__ void __launch_bounds__(kThreads) gate_kernel(Global<T> a, HeadView<T> o) {
  after_earlier();
  const int channels = a.n_head * a.c_v, groups = (channels + 7) / 8;
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x, row = at / groups, b = row / a.n,
                s = row % a.n;
  const int first = int(at % groups) * 8, left = channels - first;
  if (b >= a.batch) return;
  float g[8];
  load8<kWide>(g, a.gate.at(b, s, 0) + first, left);
  const float* average = a.average + b * channels + first;
#pragma unroll
  for (int l = 0; l < 8; ++l)
    if (l < left) g[l] = average[l] / (1 + expf(-g[l]));
  store8<kWide>(o.at(b, s, 0) + first, g, left);
}

/// Sums of a block over its rows: thread (group, row) has eight columns in `x`; column sums come
/// back in sums[row 0]. All threads call it.
__device__ __forceinline__ void block_sums(float (*sums)[8], const float (&x)[8], int groups,
                                           int rows) {
  const int group = threadIdx.x % groups, row = threadIdx.x / groups;
#pragma unroll
  for (int l = 0; l < 8; ++l) sums[threadIdx.x][l] = x[l];
  __syncthreads();
  if (row == 0)
    for (int r = 1; r < rows; ++r)
#pragma unroll
      for (int l = 0; l < 8; ++l) sums[group][l] += sums[r * groups + group][l];
  __syncthreads();
}

/// Of a chunk of rows: parts[b, chunk, :] = sum_s dy sigmoid(gate), the gradient of the average;
/// dgate += dy average sigmoid'(gate).
template <class T, bool kWide>
__global__ void __launch_bounds__(kThreads)
    gate_backward_kernel(Global<T> a, HeadView<const T> dy, HeadView<T> d_gate, float* parts,
                         int chunks) {
  after_earlier();
  __shared__ float sums[kThreads][8];
  const int channels = a.n_head * a.c_v, groups = (channels + 7) / 8, rows = kThreads / groups;
  const int64_t b = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
  const int group = threadIdx.x % groups, row = threadIdx.x / groups, first = group * 8,
            left = channels - first;
  const int64_t end = min(a.n, (chunk + 1) * kRowsOfChunk);
  float sum[8] = {};
  if (row < rows)
    for (int64_t s = chunk * kRowsOfChunk + row; s < end; s += rows) {
      float d[8], g[8], to[8];
      load8<kWide>(d, dy.at(b, s, 0) + first, left);
      load8<kWide>(g, a.gate.at(b, s, 0) + first, left);
#pragma unroll
      for (int l = 0; l < 8; ++l) {
        g[l] = 1 / (1 + expf(-g[l]));
        sum[l] = fmaf(d[l], g[l], sum[l]);
      }
      if (!d_gate.base) continue;
      T* at = d_gate.at(b, s, 0) + first;
      load8<kWide>(to, at, left);
#pragma unroll
      for (int l = 0; l < 8; ++l)
        if (l < left) to[l] += d[l] * a.average[b * channels + first + l] * g[l] * (1 - g[l]);
      store8<kWide>(at, to, left);
    }
  block_sums(sums, sum, groups, rows);
  if (row == 0)
    for (int l = 0; l < 8 && l < left; ++l)
      parts[(b * chunks + chunk) * channels + first + l] = sums[group][l];
}

/// A warp a head: d_average = sum of the parts, delta = average . d_average.
template <class T>
__global__ void __launch_bounds__(kThreads)
    head_sums_kernel(Global<T> a, const float* parts, int chunks, float* d_average, float* delta) {
  after_earlier();
  const int64_t head = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / 32, b = head / a.n_head;
  const int lane = threadIdx.x % 32, channels = a.n_head * a.c_v;
  if (b >= a.batch) return;
  float mean = 0;
  for (int l = lane; l < a.c_v; l += 32) {
    float sum = 0;
    for (int chunk = 0; chunk < chunks; ++chunk)
      sum += parts[(b * chunks + chunk) * channels + head % a.n_head * a.c_v + l];
    d_average[head * a.c_v + l] = sum;
    mean = fmaf(sum, a.average[head * a.c_v + l], mean);
  }
  mean = warp_sum(mean);
  if (lane == 0) delta[head] = mean;
}

/// dk and dv of a row, summed over the heads.
template <class T, int kC>
__global__ void __launch_bounds__(kThreads)
    key_kernel(Global<T> a, const float* d_average, const float* delta, HeadView<T> dk,
               HeadView<T> dv) {
  after_earlier();
  extern __shared__ float shared[];  // q [n_head, kC], d_average [n_head, kC], lse, delta
  float *q = shared, *d_out = q + a.n_head * kC, *lse = d_out + a.n_head * kC,
        *mean = lse + a.n_head;
  const int64_t blocks = (a.n + kThreads - 1) / kThreads, b = blockIdx.x / blocks,
                s = blockIdx.x % blocks * kThreads + threadIdx.x;
  for (int i = threadIdx.x; i < a.n_head * kC; i += kThreads) {
    const int h = i / kC, l = i % kC;
    q[i] = l < a.c ? to_float(a.q.at(b, 0, h)[l]) * a.scale2 : 0.0f;
    d_out[i] = l < a.c_v ? d_average[(b * a.n_head + h) * a.c_v + l] : 0.0f;
  }
  for (int h = threadIdx.x; h < a.n_head; h += kThreads) {
    lse[h] = a.lse[b * a.n_head + h];
    mean[h] = delta[b * a.n_head + h];
  }
  __syncthreads();
  if (s >= a.n) return;
  const bool kept = a.kept(b, s);
  float k[kC], v[kC], sum_k[kC] = {}, sum_v[kC] = {};
  load_channels<kC>(k, a.k.at(b, s, 0), a.c, 1.0f);
  load_channels<kC>(v, a.v.at(b, s, 0), a.c_v, 1.0f);
  for (int h = 0; h < a.n_head; ++h) {
    const float *qh = q + h * kC, *dh = d_out + h * kC;
    const float w = kept                 ? exp2f(dot<kC>(k, qh) - lse[h])
                    : lse[h] == INFINITY ? 1 / float(a.n)
                                         : 0.0f;
    const float dx = kept ? w * (dot<kC>(v, dh) - mean[h]) : 0.0f;
#pragma unroll
    for (int l = 0; l < kC; ++l) {
      sum_k[l] = fmaf(dx, qh[l], sum_k[l]);
      sum_v[l] = fmaf(w, dh[l], sum_v[l]);
    }
  }
  if (dk.base) {
    T* to = dk.at(b, s, 0);
#pragma unroll
    for (int l = 0; l < kC; ++l)
      if (l < a.c) to[l] = from_float<T>(to_float(to[l]) + sum_k[l] * (1 / kLog2e));
  }
  if (dv.base) {
    T* to = dv.at(b, s, 0);
#pragma unroll
    for (int l = 0; l < kC; ++l)
      if (l < a.c_v) to[l] = from_float<T>(to_float(to[l]) + sum_v[l]);
  }
}

/// A warp a head: dq.
template <class T, int kC>
__global__ void __launch_bounds__(kThreads)
    query_kernel(Global<T> a, const float* d_average, const float* delta, HeadView<T> dq) {
  after_earlier();
  const int64_t head = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / 32, b = head / a.n_head;
  const int h = int(head % a.n_head), lane = threadIdx.x % 32;
  if (b >= a.batch) return;
  float q[kC], d_out[kC], sum[kC] = {};
  load_channels<kC>(q, a.q.at(b, 0, h), a.c, a.scale2);
  load_channels<kC>(d_out, d_average + head * a.c_v, a.c_v, 1.0f);
  const float lse = a.lse[head], mean = delta[head];
  for (int64_t s = lane; s < a.n; s += 32) {
    if (!a.kept(b, s)) continue;
    float k[kC], v[kC];
    load_channels<kC>(k, a.k.at(b, s, 0), a.c, 1.0f);
    load_channels<kC>(v, a.v.at(b, s, 0), a.c_v, 1.0f);
    const float dx = exp2f(dot<kC>(q, k) - lse) * (dot<kC>(d_out, v) - mean);
#pragma unroll
    for (int l = 0; l < kC; ++l) sum[l] = fmaf(dx, k[l], sum[l]);
  }
  T* to = dq.at(b, 0, h);
#pragma unroll
  for (int l = 0; l < kC; ++l) {
    const float x = warp_sum(sum[l]) * a.scale;
    if (lane == l % 32 && l < a.c) to[l] = from_float<T>(to_float(to[l]) + x);
  }
}

/// Calls f with the channels that a kernel is compiled for.
template <class F>
void by_channels(int c, F f) {
  check(c <= 64, "global attention with ", c,
        " channels a head; the GPU's kernels take at most 64");
  if (c <= 8) return f(std::integral_constant<int, 8>());
  if (c <= 16) return f(std::integral_constant<int, 16>());
  if (c <= 32) return f(std::integral_constant<int, 32>());
  f(std::integral_constant<int, 64>());
}

/// Whether eight channels can be read at once.
bool wide(const Tensor& t) {
  return !t.defined() || (t.dtype() == Dtype::bf16 && t.size(-1) % 8 == 0 && t.stride(0) % 8 == 0 &&
                          t.stride(1) % 8 == 0 && reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0);
}

template <class T>
void averages(const Global<T>& a) {
  by_channels(std::max(a.c, a.c_v), [&](auto c) {
    launch<average_kernel<T, decltype(c)::value>>(
        "global attention's averages", ceil_div(a.batch * a.n_head * 32, kThreads), kThreads, 0, a);
  });
}

/// y[b] = sum_s mask x / (sum_s mask + 1e-10); a block a batch element.
template <class T, bool kWide>
__global__ void __launch_bounds__(kThreads)
    mean_kernel(HeadView<const T> x, const float* mask, int64_t mask_batch, int64_t mask_row,
                int64_t n, int c, T* y, int64_t y_batch) {
  after_earlier();
  __shared__ float sums[kThreads][8];
  const int64_t b = blockIdx.x;
  const int groups = (c + 7) / 8, rows = kThreads / groups;
  const int group = threadIdx.x % groups, row = threadIdx.x / groups, first = group * 8,
            left = c - first;
  float sum[8] = {}, count[8] = {};
  if (row < rows)
    for (int64_t s = row; s < n; s += rows) {
      const float m = mask[b * mask_batch + s * mask_row];
      float from[8];
      load8<kWide>(from, x.at(b, s, 0) + first, left);
      count[0] += m;
#pragma unroll
      for (int l = 0; l < 8; ++l) sum[l] = fmaf(m, from[l], sum[l]);
    }
  block_sums(sums, count, groups, rows);
  const float total = sums[group][0] + 1e-10f;
  __syncthreads();
  block_sums(sums, sum, groups, rows);
  if (row == 0)
    for (int l = 0; l < 8 && l < left; ++l)
      y[b * y_batch + first + l] = from_float<T>(sums[group][l] / total);
}

template <class T, bool kWide>
__global__ void __launch_bounds__(kThreads)
    mean_backward_kernel(const T* dy, int64_t dy_batch, const float* mask, int64_t mask_batch,
                         int64_t mask_row, int64_t n, int c, HeadView<T> dx, int chunks) {
  after_earlier();
  __shared__ float sums[kThreads];
  const int64_t b = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
  float count = 0;
  for (int64_t s = threadIdx.x; s < n; s += kThreads) count += mask[b * mask_batch + s * mask_row];
  sums[threadIdx.x] = count;
  __syncthreads();
  for (int half = kThreads / 2; half; half /= 2) {
    if (int(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  const float total = sums[0] + 1e-10f;
  const int groups = (c + 7) / 8, rows = kThreads / groups;
  const int first = threadIdx.x % groups * 8, row = threadIdx.x / groups, left = c - first;
  if (row >= rows) return;
  float d[8];
  load8<kWide>(d, dy + b * dy_batch + first, left);
  const int64_t end = min(n, (chunk + 1) * kRowsOfChunk);
  for (int64_t s = chunk * kRowsOfChunk + row; s < end; s += rows) {
    const float m = mask[b * mask_batch + s * mask_row] / total;
    T* at = dx.at(b, s, 0) + first;
    float to[8];
    load8<kWide>(to, at, left);
#pragma unroll
    for (int l = 0; l < 8; ++l) to[l] = fmaf(m, d[l], to[l]);
    store8<kWide>(at, to, left);
  }
}

/// A block's threads are dealt out to groups of eight channels.
void check_channels(const char* name, int64_t c) {
  check(c <= 8 * kThreads, name, " of ", c, " channels; the GPU's kernel takes at most ",
        8 * kThreads);
}

/// Calls f with whether all of `tensors` can be read eight channels at once.
template <class F>
void by_width(std::initializer_list<const Tensor*> tensors, F f) {
  const bool all = std::all_of(tensors.begin(), tensors.end(), [](auto* t) { return wide(*t); });
  all ? f(std::true_type()) : f(std::false_type());
}

}  // namespace

void global_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                      const Tensor& mask, const Tensor& o) {
  if (o.numel() == 0) return;
  by_type(q, [&](auto t) {
    using T = decltype(t);
    const int64_t heads = q.size(0) * q.size(1);
    const Scratch average(heads * v.size(2) * 4), lse(heads * 4);
    const Global<T> a = global_of<T>(q, k, v, gate, mask, average, lse);
    averages(a);
    const HeadView<T> to(o.unsqueeze(2));
    by_width({&gate, &o}, [&](auto w) {
      launch<gate_kernel<T, w.value>>(
          "global attention",
          ceil_div(a.batch * a.n * ceil_div(int64_t(a.n_head) * a.c_v, 8), kThreads), kThreads, 0,
          a, to);
    });
  });
}

void global_attention_backward(const Tensor& q, const Tensor& k, const Tensor& v,
                               const Tensor& gate, const Tensor& mask, const Tensor& dy,
                               const Tensor& dq, const Tensor& dk, const Tensor& dv,
                               const Tensor& dgate) {
  if (dy.numel() == 0) return;
  const int64_t channels = q.size(1) * v.size(2), heads = q.size(0) * q.size(1);
  check_channels("global attention's backward", channels);
  by_type(q, [&](auto t) {
    using T = decltype(t);
    const int chunks = int(ceil_div(k.size(1), kRowsOfChunk));
    const Scratch average(heads * v.size(2) * 4), lse(heads * 4), delta(heads * 4),
        d_average(heads * v.size(2) * 4), parts(q.size(0) * chunks * channels * 4);
    const Global<T> a = global_of<T>(q, k, v, gate, mask, average, lse);
    const HeadView<const T> dy_view(dy.unsqueeze(2));
    const auto rows = [](const Tensor& t, int axis) {
      return t.defined() ? HeadView<T>(t.unsqueeze(axis)) : HeadView<T>();
    };
    averages(a);
    by_width({&gate, &dy, &dgate}, [&](auto w) {
      launch<gate_backward_kernel<T, w.value>>("global attention's backward of gates",
                                               a.batch * chunks, kThreads, 0, a, dy_view,
                                               rows(dgate, 2), parts.data<float>(), chunks);
    });
    launch<head_sums_kernel<T>>("global attention's backward of averages",
                                ceil_div(heads * 32, kThreads), kThreads, 0, a,
                                static_cast<const float*>(parts.data<float>()), chunks,
                                d_average.data<float>(), delta.data<float>());
    const float *d_out = d_average.data<float>(), *mean = delta.data<float>();
    by_channels(std::max(a.c, a.c_v), [&](auto c) {
      constexpr int kC = decltype(c)::value;
      if (dk.defined() || dv.defined())
        launch<key_kernel<T, kC>>("global attention's backward of keys and values",
                                  a.batch * ceil_div(a.n, kThreads), kThreads,
                                  int64_t(a.n_head) * (2 * kC + 2) * 4, a, d_out, mean, rows(dk, 2),
                                  rows(dv, 2));
      if (dq.defined())
        launch<query_kernel<T, kC>>("global attention's backward of queries",
                                    ceil_div(heads * 32, kThreads), kThreads, 0, a, d_out, mean,
                                    rows(dq, 1));
    });
  });
}

void masked_mean(const Tensor& x, const Tensor& mask, const Tensor& y) {
  if (y.numel() == 0) return;
  check_channels("masked mean", x.size(2));
  by_type(x, [&](auto t) {
    using T = decltype(t);
    const HeadView<const T> from(x.unsqueeze(2));
    by_width({&x}, [&](auto w) {
      launch<mean_kernel<T, w.value>>("masked mean", x.size(0), kThreads, 0, from,
                                      static_cast<const float*>(mask.data<float>()), mask.stride(0),
                                      mask.stride(1), x.size(1), int(x.size(2)), data<T>(y),
                                      y.stride(0));
    });
  });
}

void masked_mean_backward(const Tensor& mask, const Tensor& dy, const Tensor& dx) {
  if (dx.numel() == 0) return;
  check_channels("masked mean's backward", dx.size(2));
  by_type(dx, [&](auto t) {
    using T = decltype(t);
    const int chunks = int(ceil_div(dx.size(1), kRowsOfChunk));
    const HeadView<T> to(dx.unsqueeze(2));
    by_width({&dx, &dy}, [&](auto w) {
      launch<mean_backward_kernel<T, w.value>>(
          "masked mean's backward", dx.size(0) * chunks, kThreads, 0,
          static_cast<const T*>(data<T>(dy)), dy.stride(0),
          static_cast<const float*>(mask.data<float>()), mask.stride(0), mask.stride(1), dx.size(1),
          int(dx.size(2)), to, chunks);
    });
  });
}

}  // namespace ff::cuda
