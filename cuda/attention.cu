// Attention on the GPU: which kernel takes which shapes; what the backward needs of each row before
// it begins; sums of the bias's gradient; and attention to a few keys (templates).
#include "cuda/attention.cuh"

#include <algorithm>
#include <bit>

#include "cuda/attention_hopper.cuh"
#include "cuda/table.h"

namespace ff::cuda {
namespace {

constexpr int kThreads = 256;

constexpr int kRowLanes = 4;

/// Of every row, from dy and the gated output o:
///   delta = sum dy o,  dgate += dy o (1 - sigmoid(gate)),  dy *= sigmoid(gate)
/// And done [n_done] = 0.
template <class T, bool kWide>
__global__ void __launch_bounds__(kThreads)
    rows_kernel(Attention<T> a, HeadView<T> dy, HeadView<const T> o, HeadView<T> d_gate,
                Deltas deltas, unsigned* done, unsigned n_done) {
  after_earlier();
  if (const unsigned at = blockIdx.x * kThreads + threadIdx.x; at < n_done) done[at] = 0;
  constexpr unsigned kRows = kThreads / kRowLanes;
  const unsigned row = blockIdx.x * kRows + threadIdx.x / kRowLanes;
  const int lane = threadIdx.x % kRowLanes;
  const int h = row % a.n_head, i = row / a.n_head % a.n_query, b = row / a.n_head / a.n_query;
  float sum = 0;
  if (b < a.batch)
    for (int l0 = 8 * lane; l0 < a.c_v; l0 += 8 * kRowLanes) {
      const int left = a.c_v - l0;
      float d[8], out[8], gate[8], gated[8] = {};
      T* const to = d_gate.base ? d_gate.at(b, i, h) + l0 : nullptr;
      load8<kWide>(d, dy.at(b, i, h) + l0, left);
      load8<kWide>(out, o.at(b, i, h) + l0, left);
      if (a.gate.base) load8<kWide>(gate, a.gate.at(b, i, h) + l0, left);
      if (to && !a.fresh) load8<kWide>(gated, to, left);
#pragma unroll
      for (int l = 0; l < 8; ++l) sum = fmaf(d[l], out[l], sum);
      if (!a.gate.base) continue;
#pragma unroll
      for (int l = 0; l < 8; ++l) {
        const float s = sizeof(T) == 2 ? sigmoid_fast(gate[l]) : 1 / (1 + expf(-gate[l]));
        gated[l] = fmaf(d[l] * out[l], 1 - s, gated[l]);
        d[l] *= s;
      }
      store8<kWide>(dy.at(b, i, h) + l0, d, left);
      if (to) store8<kWide>(to, gated, left);
    }
#pragma unroll
  for (int lanes = kRowLanes / 2; lanes; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  if (lane == 0 && b < a.batch) *deltas.at(b, h, i) = sum;
}

/// to[h, i, j] += sums[0, h, i, j] + sums[1, h, i, j] + ...; a block a query of a head.
__global__ void __launch_bounds__(kThreads)
    add_parts_kernel(const float* sums, int parts, float* to, int64_t head, int64_t row,
                     int n_query, int n_key) {
  after_earlier();
  const int64_t h = blockIdx.x / n_query, i = blockIdx.x % n_query;
  const int64_t n = int64_t(gridDim.x) * n_key;
  for (int j = threadIdx.x; j < n_key; j += kThreads) {
    const float* from = sums + int64_t(blockIdx.x) * n_key + j;
    float sum = 0;
    for (int p = 0; p < parts; ++p) sum += from[p * n];
    to[h * head + i * row + j] += sum;
  }
}

// One query, at most kFewKeys keys, few channels, no bias: a thread a head.
constexpr int kFewKeys = 8, kFewChannels = 16;

/// The weights of one head.
template <class T>
struct FewKeys {
  static constexpr int kC = kFewChannels;
  float q[kC], w[kFewKeys];

  __device__ __forceinline__ void compute(const Attention<T>& a, int64_t b, int64_t h) {
    const T* from = a.q.at(b, 0, h);
#pragma unroll
    for (int l = 0; l < kC; ++l) q[l] = l < a.c ? to_float(from[l]) : 0.0f;
    float high = -INFINITY, sum = 0;
#pragma unroll
    for (int j = 0; j < kFewKeys; ++j) {
      w[j] = -INFINITY;
      if (j >= a.n_key) continue;
      const T* k = a.k.at(b, j, h);
      float x = 0;
#pragma unroll
      for (int l = 0; l < kC; ++l)
        if (l < a.c) x = fmaf(q[l], to_float(k[l]), x);
      w[j] = kept(a, b, j) ? x * a.scale2 : kMaskedLogit;
      high = fmaxf(high, w[j]);
    }
#pragma unroll
    for (int j = 0; j < kFewKeys; ++j) sum += w[j] = exp2f(w[j] - high);
#pragma unroll
    for (int j = 0; j < kFewKeys; ++j) w[j] /= sum;
  }
  static __device__ __forceinline__ bool kept(const Attention<T>& a, int64_t b, int j) {
    return !a.mask || a.mask[b * a.mask_batch + j * a.mask_key] != 0;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) few_keys_kernel(Attention<T> a) {
  after_earlier();
  constexpr int kC = kFewChannels;
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x, b = at / a.n_head,
                h = at % a.n_head;
  if (b >= a.batch) return;
  FewKeys<T> f;
  f.compute(a, b, h);
  float out[kC] = {};
#pragma unroll
  for (int j = 0; j < kFewKeys; ++j) {
    if (j >= a.n_key) break;
    const T* v = a.v.at(b, j, h);
#pragma unroll
    for (int l = 0; l < kC; ++l)
      if (l < a.c_v) out[l] = fmaf(f.w[j], to_float(v[l]), out[l]);
  }
  const T* gate = a.gate.base ? a.gate.at(b, 0, h) : nullptr;
  T* to = a.o.at(b, 0, h);
#pragma unroll
  for (int l = 0; l < kC; ++l)
    if (l < a.c_v) to[l] = from_float<T>(gate ? out[l] / (1 + expf(-to_float(gate[l]))) : out[l]);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    few_keys_backward_kernel(Attention<T> a, AttentionGradients<T> d) {
  after_earlier();
  constexpr int kC = kFewChannels;
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x, b = at / a.n_head,
                h = at % a.n_head;
  if (b >= a.batch) return;
  FewKeys<T> f;
  f.compute(a, b, h);
  const float delta = a.delta[at];
  float d_out[kC], dq[kC] = {};
  const T* from = a.d_out.at(b, 0, h);
#pragma unroll
  for (int l = 0; l < kC; ++l) d_out[l] = l < a.c_v ? to_float(from[l]) : 0.0f;
#pragma unroll
  for (int j = 0; j < kFewKeys; ++j) {
    if (j >= a.n_key) break;
    const T *k = a.k.at(b, j, h), *v = a.v.at(b, j, h);
    float dw = 0;
#pragma unroll
    for (int l = 0; l < kC; ++l)
      if (l < a.c_v) dw = fmaf(d_out[l], to_float(v[l]), dw);
    const float dx = f.kept(a, b, j) ? f.w[j] * (dw - delta) * a.scale : 0.0f;
#pragma unroll
    for (int l = 0; l < kC; ++l)
      if (l < a.c) dq[l] = fmaf(dx, to_float(k[l]), dq[l]);
    if (d.k.base) {
      T* to = d.k.at(b, j, h);
#pragma unroll
      for (int l = 0; l < kC; ++l)
        if (l < a.c) to[l] = from_float<T>(to_float(to[l]) + dx * f.q[l]);
    }
    if (d.v.base) {
      T* to = d.v.at(b, j, h);
#pragma unroll
      for (int l = 0; l < kC; ++l)
        if (l < a.c_v) to[l] = from_float<T>(to_float(to[l]) + f.w[j] * d_out[l]);
    }
  }
  if (!d.q.base) return;
  T* to = d.q.at(b, 0, h);
#pragma unroll
  for (int l = 0; l < kC; ++l)
    if (l < a.c) to[l] = from_float<T>(to_float(to[l]) + dq[l]);
}

template <class T>
bool few_keys(const Attention<T>& a) {
  return a.n_query == 1 && a.n_key <= kFewKeys && !a.bias && std::max(a.c, a.c_v) <= kFewChannels;
}

/// Whether every row begins at a multiple of 16 bytes.
bool aligned(const Tensor& t) {
  if (!t.defined()) return true;
  if (reinterpret_cast<uintptr_t>(t.raw()) % 16) return false;
  for (int i = 0; i + 1 < t.rank(); ++i)
    if (t.size(i) > 1 && t.stride(i) * size_of(t.dtype()) % 16) return false;
  return true;
}
bool suits_mma(const Tensor& q, const Tensor& v) {
  return q.dtype() == Dtype::bf16 && q.size(3) % 8 == 0 && v.size(3) % 8 == 0 && q.size(3) <= 64 &&
         v.size(3) <= 64;
}

void clear(const Tensor& t) { zero(t.raw(), t.numel() * size_of(t.dtype())); }

bool is_empty(const Tensor& q, const Tensor& k) {
  return q.size(0) * q.size(1) * q.size(2) * k.size(1) == 0;
}

template <class T>
void rows(const Attention<T>& a, const AttentionGradients<T>& d, unsigned n_done, const Tensor& dy,
          const Tensor& o, const Tensor& d_gate, bool wide) {
  const int64_t count = int64_t(a.batch) * a.n_query * a.n_head,
                blocks = ceil_div(count * kRowLanes, kThreads);
  check(count <= INT32_MAX, "attention's backward of ", count, " rows");
  const HeadView<const T> o_view(o);
  const HeadView<T> dy_view(dy), d_gate_view(d_gate);
  if (wide)
    launch<rows_kernel<T, true>>("attention's backward, rows", blocks, kThreads, 0, a, dy_view,
                                 o_view, d_gate_view, d.deltas, d.done, n_done);
  else
    launch<rows_kernel<T, false>>("attention's backward, rows", blocks, kThreads, 0, a, dy_view,
                                  o_view, d_gate_view, d.deltas, d.done, n_done);
}

}  // namespace

BiasParts::BiasParts(int64_t blocks, int batch, int64_t elements, float* room, int64_t room_bytes) {
  // Two blocks are on a multiprocessor at once. As many parts as make one round of blocks, or more
  // where another round leaves fewer of the places empty.
  const int64_t places = 2 * device_info().sm_count;
  const auto rounds = [&](int parts) { return double(ceil_div(blocks * parts, places)) / parts; };
  count_ = int(std::clamp<int64_t>(places / blocks, 1, batch));
  for (int more = count_ + 1; more <= std::min<int64_t>(2 * places / blocks, batch); ++more)
    if (rounds(more) < 0.9 * rounds(count_)) count_ = more;
  if (count_ == 1) return;
  const int64_t bytes = count_ * elements * int64_t(sizeof(float));
  sums_ = bytes <= room_bytes ? room : memory_.emplace(bytes).data<float>();
}

void BiasParts::add(float* to, int64_t head, int64_t row, int n_head, int n_query,
                    int n_key) const {
  launch<add_parts_kernel>("attention's backward, sums of the bias", int64_t(n_head) * n_query,
                           kThreads, 0, static_cast<const float*>(sums()), count_, to, head, row,
                           n_query, n_key);
}

void attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
               const Tensor& bias, const Tensor& mask, const Tensor& o, const Tensor& lse) {
  if (is_empty(q, k)) return;
  by_type(q, [&](auto t) {
    using T = decltype(t);
    Attention<T> a = attention_of<T>(q, k, v, gate, bias, mask);
    a.o = HeadView<T>(o);
    a.lse = data_or_null<float>(lse);
    if (few_keys(a))
      return launch<few_keys_kernel<T>>(
          "attention to few keys", ceil_div(int64_t(a.batch) * a.n_head, kThreads), kThreads, 0, a);
    if constexpr (sizeof(T) == 2)
      if (suits_mma(q, v) && aligned(q) && aligned(k) && aligned(v) && aligned(gate) &&
          aligned(o)) {
        return suits_hopper(a) ? attention_hopper(a) : attention_mma(a);
      }
    attention_simt(a);
  });
}

void attention_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                        const Tensor& bias, const Tensor& mask, const Tensor& o, const Tensor& lse,
                        const Tensor& dy, const Tensor& dq, const Tensor& dk, const Tensor& dv,
                        const Tensor& dgate, const Tensor& dbias, const Tensor& fresh) {
  if (is_empty(q, k)) {
    if (fresh) clear(fresh);
    return;
  }
  by_type(q, [&](auto t) {
    using T = decltype(t);
    Attention<T> a = attention_of<T>(q, k, v, gate, bias, mask);
    AttentionGradients<T> d;
    d.q = HeadView<T>(dq);
    d.k = HeadView<T>(dk);
    d.v = HeadView<T>(dv);
    if (dbias.defined()) {
      d.bias = dbias.data<float>();
      d.bias_head = dbias.stride(0);
      d.bias_row = dbias.stride(1);
    }
    a.lse = lse.data<float>();
    a.d_out = HeadView<const T>(dy);  // what `rows` makes of it
    const bool wide = sizeof(T) == 2 && a.c_v % 8 == 0 && aligned(dy) && aligned(o) &&
                      aligned(gate) && aligned(dgate);
    const bool mma = suits_mma(q, v) && wide && aligned(q) && aligned(k) && aligned(v) &&
                     aligned(dq) && aligned(dk) && aligned(dv);
    bool hopper = false;
    if constexpr (sizeof(T) == 2) hopper = mma && suits_hopper(a);
    a.fresh = fresh && hopper;  // others add
    if (a.fresh && dk && dk.is_contiguous()) {
      d.later = static_cast<float*>(dk.raw());
      d.later_bytes = dk.numel() * size_of(dk.dtype());
    }
    if (fresh && !hopper) clear(fresh);
    const int64_t rows_of_head = int64_t(a.batch) * a.n_query;
    // No memory for deltas, for 2 % of the time. Within a module, where q's gradient is part of a
    // larger tensor, other steps have the peak.
    const bool in_dq = a.fresh && dq && dq.is_contiguous() && dq.numel() <= INT32_MAX;
    const int64_t n_done = in_dq ? row_pairs(a) : 0;
    const Scratch numbers((in_dq ? n_done : rows_of_head * a.n_head) * 4);
    if (in_dq) {
      constexpr int kEach = 4 / sizeof(T);
      d.done = numbers.data<unsigned>();
      d.deltas.base = static_cast<float*>(dq.raw());
      d.deltas.batch = d.q.batch / kEach;
      d.deltas.head = d.q.head / kEach;
      d.deltas.row = d.q.row / kEach;
      d.deltas.run = kDeltaRun * d.deltas.row;
      d.deltas.shift = std::bit_width(unsigned(a.c / kEach)) - 1;
    } else {
      d.deltas.base = a.delta = numbers.data<float>();
      d.deltas.batch = int64_t(a.n_head) * a.n_query;
      d.deltas.head = a.n_query;
    }
    rows<T>(a, d, unsigned(n_done), dy, o, dgate, wide);
    if (few_keys(a))
      return launch<few_keys_backward_kernel<T>>("backward of attention to few keys",
                                                 ceil_div(int64_t(a.batch) * a.n_head, kThreads),
                                                 kThreads, 0, a, d);
    if constexpr (sizeof(T) == 2)
      if (mma) {
        if (hopper) return attention_hopper_backward(a, d);
        attention_mma_backward(a, d);
        if (d.bias) attention_mma_backward_bias(a, d);
        return;
      }
    attention_simt_backward(a, d);
  });
}

}  // namespace ff::cuda
