// What the attention kernels share: their operands, and which kernel takes which.
#pragma once

#include <cmath>
#include <optional>

#include "cuda/device.cuh"

namespace ff::cuda {

/// A [batch, n, n_head, c] tensor whose last axis is contiguous; base is nullptr for an absent one.
template <class T>
struct HeadView {
  HeadView() = default;
  explicit HeadView(const Tensor& t) : base(data_or_null<std::remove_const_t<T>>(t)) {
    if (!base) return;
    batch = t.stride(0);
    row = t.stride(1);
    head = t.stride(2);
  }
  __device__ __forceinline__ T* at(int64_t b, int64_t i, int64_t h) const {
    return base + b * batch + i * row + h * head;
  }
  T* base = nullptr;
  int64_t batch = 0, row = 0, head = 0;
};

/// Operands of the forward and of every backward kernel. Logits are q.k + bias / scale in units of
/// `scale`, and weights powers of two: exp(scale x) = 2^(scale2 x).
template <class T>
struct Attention {
  HeadView<const T> q, k, v, gate, d_out;
  HeadView<T> o;
  const float* bias = nullptr;
  int64_t bias_head = 0, bias_row = 0;
  const float* mask = nullptr;
  int64_t mask_batch = 0, mask_key = 0;
  /// [batch, n_head, n_query], of the ungated weights: log2 of the sum of 2^logit, +inf for a row
  /// whose keys are all masked; and the mean of the weights' gradients.
  float *lse = nullptr, *delta = nullptr;
  int batch = 0, n_query = 0, n_key = 0, n_head = 0, c = 0, c_v = 0;
  float scale = 1, scale2 = 1, inverse_scale = 1;
  bool fresh = false;      ///< gradients of q, k, v and the gate are written, not added to
  bool wide_bias = false;  ///< whether 16 bytes of the bias can be copied at once
};

/// The logit of a masked key, below every other and yet finite: where all keys are masked all have
/// the weight 1. AlphaFold's is -1e9 after the scale; all that matters is that 2^ of it is 0 beside
/// any key that is there.
constexpr float kMaskedLogit = -1e30f;

template <class T>
Attention<T> attention_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                          const Tensor& bias, const Tensor& mask) {
  Attention<T> a;
  a.q = HeadView<const T>(q);
  a.k = HeadView<const T>(k);
  a.v = HeadView<const T>(v);
  a.gate = HeadView<const T>(gate);
  if (bias.defined()) {
    a.bias = bias.data<float>();
    a.bias_head = bias.stride(0);
    a.bias_row = bias.stride(1);
    a.wide_bias = a.bias_head % 4 == 0 && a.bias_row % 4 == 0 &&
                  reinterpret_cast<uintptr_t>(a.bias) % 16 == 0;
  }
  if (mask.defined()) {
    a.mask = mask.data<float>();
    a.mask_batch = mask.stride(0);
    a.mask_key = mask.stride(1);
  }
  a.batch = int(q.size(0));
  a.n_query = int(q.size(1));
  a.n_head = int(q.size(2));
  a.n_key = int(k.size(1));
  a.c = int(q.size(3));
  a.c_v = int(v.size(3));
  a.inverse_scale = std::sqrt(float(a.c));
  a.scale = 1 / a.inverse_scale;
  a.scale2 = a.scale * kLog2e;
  return a;
}

constexpr int kDeltaRun = 64;

/// Where the backward's deltas are: in an array [batch, n_head, n_query], or in q's gradient until
/// that is written, those of kDeltaRun queries of a head in the first of the rows of the same.
struct Deltas {
  float* base = nullptr;
  int64_t batch = 0, head = 0, run = kDeltaRun, row = 0;
  int shift = 6;  ///< log2 of how many are in a row
  __device__ __forceinline__ float* at(int64_t b, int64_t h, int i) const {
    const int n = i % kDeltaRun;
    return base + b * batch + h * head + i / kDeltaRun * run + (n >> shift) * row +
           (n & ((1 << shift) - 1));
  }
};

/// What the backward adds into.
template <class T>
struct AttentionGradients {
  HeadView<T> q, k, v;
  float* bias = nullptr;
  int64_t bias_head = 0, bias_row = 0;
  Deltas deltas;
  /// Where they are in q's gradient: of each pair of rows of the batch and head, a count of the
  /// blocks that need them no longer.
  unsigned* done = nullptr;
  /// Memory that k's gradient is written to, after the bias's, and its bytes.
  float* later = nullptr;
  int64_t later_bytes = 0;
};

/// The bias's gradient is a sum over the batch. The batch is split into so many parts that there is
/// work for the whole GPU; each has sums of its own, which are added in order.
class BiasParts {
 public:
  /// `blocks` of one part. The sums are in `room`, where they fit.
  BiasParts(int64_t blocks, int batch, int64_t elements, float* room = nullptr,
            int64_t room_bytes = 0);
  int count() const { return count_; }
  /// [parts, n_head, n_query, n_key], or nullptr for one part, which adds in place.
  float* sums() const { return sums_; }
  /// Adds the parts to dbias.
  template <class T>
  void add_to(const Attention<T>& a, const AttentionGradients<T>& d) const {
    if (sums_) add(d.bias, d.bias_head, d.bias_row, a.n_head, a.n_query, a.n_key);
  }

 private:
  void add(float* to, int64_t head, int64_t row, int n_head, int n_query, int n_key) const;
  int count_;
  float* sums_ = nullptr;
  std::optional<Scratch> memory_;
};

// Tensor cores, bf16: rows of at most 64 channels, a multiple of 8, that begin at multiples of 16
// bytes.
void attention_mma(const Attention<__nv_bfloat16>& a);
/// The same on Hopper's matrix unit, for what suits_hopper says (cuda/attention_hopper.cuh).
void attention_hopper(const Attention<__nv_bfloat16>& a);
/// dq, dk and dv; then the bias's gradient.
void attention_mma_backward(const Attention<__nv_bfloat16>& a,
                            const AttentionGradients<__nv_bfloat16>& d);
void attention_mma_backward_bias(const Attention<__nv_bfloat16>& a,
                                 const AttentionGradients<__nv_bfloat16>& d);
/// All of them on Hopper's matrix unit.
void attention_hopper_backward(const Attention<__nv_bfloat16>& a,
                               const AttentionGradients<__nv_bfloat16>& d);

// Ordinary arithmetic: f32, and bf16 that does not suit the tensor cores; at most 64 channels.
template <class T>
void attention_simt(const Attention<T>& a);
template <class T>
void attention_simt_backward(const Attention<T>& a, const AttentionGradients<T>& d);

}  // namespace ff::cuda
