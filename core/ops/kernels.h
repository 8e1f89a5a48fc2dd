// The kernel table: every kernel's signature once. The CPU fills one table per instruction set, the
// CUDA module another; an operation takes its table by its tensors' device. Operations check shapes
// and allocate; kernels trust them and only write into the tensors that they are given (last in the
// list). An undefined tensor stands for an absent operand.
#pragma once

#include <span>

#include "core/tensor/tensor.h"

namespace ff {

enum class Activation { kNone, kRelu, kSigmoid };

/// What invariant point attention reads; core/ops/invariant_point_attention.h has the shapes.
struct IpaTensors {
  Tensor q_scalar, kv_scalar, q_point, kv_point, affine, bias, z, query_mask, mask, point_weights;
};

/// Arrays of all parameters in one order: f32, contiguous; sums of gradients f64 too, on the CPU.
using TensorList = std::span<const Tensor>;

/// Adam's numbers of one step; core/train/optimizer.h has its formula.
struct AdamNumbers {
  float beta1, beta2, keep1, keep2;  ///< keep = 1 - beta
  float step, root, eps;             ///< rate / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
  float mean, follow;                ///< of the gradient's sum; of the moving average
};
struct AdamLists {
  TensorList gradient, params, m, v, ema;  ///< an empty `ema` is left out
};

struct Kernels {
  const char* name;  ///< "AVX-512", ...

  /// y = (x - mean) rstd scale + offset over the last axis.
  void (*layer_norm)(const Tensor& x, const Tensor& scale, const Tensor& offset, const Tensor& y);
  /// dx, dscale, doffset (each may be undefined) += layer norm's gradients.
  void (*layer_norm_backward)(const Tensor& x, const Tensor& scale, const Tensor& dy,
                              const Tensor& dx, const Tensor& dscale, const Tensor& doffset);
  /// The same over axis 0 of x [c, n, m], into y [n, m, c].
  void (*layer_norm_channels_first)(const Tensor& x, const Tensor& scale, const Tensor& offset,
                                    const Tensor& y);
  /// Its gradients, added; each may be undefined.
  void (*layer_norm_channels_first_backward)(const Tensor& x, const Tensor& scale, const Tensor& dy,
                                             const Tensor& dx, const Tensor& dscale,
                                             const Tensor& doffset);
  /// y [b, m, n] = act(x [b, m, k] w [k, n] + bias), or y += x w + bias; y may be f32 where x and w
  /// are bf16.
  void (*linear)(const Tensor& x, const Tensor& w, const Tensor& bias, Activation act,
                 bool accumulate, const Tensor& y);
  /// dy *= act'(x), from y = act(x).
  void (*activation_backward)(const Tensor& y, Activation act, const Tensor& dy);
  /// sums[c] += sum_r x[r, c], in a fixed order.
  void (*add_column_sums)(const Tensor& x, const Tensor& sums);
  /// c [b, m, n] = a [b, m, k] b [b, k, n], any strides with one contiguous axis.
  void (*matmul)(const Tensor& a, const Tensor& b, const Tensor& c);
  /// Gated attention; see core/ops/attention.h. lse, where it is defined, takes what the backward
  /// wants of the softmax: the GPU's log-sum-exp.
  void (*attention)(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                    const Tensor& bias, const Tensor& mask, const Tensor& o, const Tensor& lse);
  /// Global attention (one query a column, keys and values shared by the heads); same header.
  void (*global_attention)(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                           const Tensor& mask, const Tensor& o);
  /// Their gradients, added; each of the last may be undefined.
  void (*attention_backward)(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                             const Tensor& bias, const Tensor& mask, const Tensor& o,
                             const Tensor& lse, const Tensor& dy, const Tensor& dq,
                             const Tensor& dk, const Tensor& dv, const Tensor& dgate,
                             const Tensor& dbias);
  void (*global_attention_backward)(const Tensor& q, const Tensor& k, const Tensor& v,
                                    const Tensor& gate, const Tensor& mask, const Tensor& dy,
                                    const Tensor& dq, const Tensor& dk, const Tensor& dv,
                                    const Tensor& dgate);
  /// dx[b, s] += mask[b, s] dy[b] / (sum_s mask[b, s] + 1e-10).
  void (*masked_mean_backward)(const Tensor& mask, const Tensor& dy, const Tensor& dx);
  /// y[b] = sum_s mask[b, s] x[b, s] / (sum_s mask[b, s] + 1e-10).
  void (*masked_mean)(const Tensor& x, const Tensor& mask, const Tensor& y);
  /// a[c, r] = mask[r] (proj[c, r] + proj_bias[c]) sigmoid(gate[c, r] + gate_bias[c]).
  void (*triangle_gate)(const Tensor& proj, const Tensor& proj_bias, const Tensor& gate,
                        const Tensor& gate_bias, const Tensor& mask, const Tensor& a);
  /// Its gradients, added; each of the last four may be undefined.
  void (*triangle_gate_backward)(const Tensor& proj, const Tensor& proj_bias, const Tensor& gate,
                                 const Tensor& gate_bias, const Tensor& mask, const Tensor& da,
                                 const Tensor& dproj, const Tensor& dproj_bias, const Tensor& dgate,
                                 const Tensor& dgate_bias);
  /// y += x.
  void (*add)(const Tensor& x, const Tensor& y);
  /// y += x sigmoid(gate).
  void (*add_gated)(const Tensor& x, const Tensor& gate, const Tensor& y);
  /// dx += dy sigmoid(gate), dgate += dy x sigmoid'(gate); either may be undefined.
  void (*add_gated_backward)(const Tensor& x, const Tensor& gate, const Tensor& dy,
                             const Tensor& dx, const Tensor& dgate);
  /// y [.., n, c] += x factors [n, c].
  void (*add_dropped)(const Tensor& x, const Tensor& factors, const Tensor& y);
  /// y *= mask, one factor for each row of the last axis.
  void (*scale_rows)(const Tensor& mask, const Tensor& y);
  /// z[i, j] += (sum_{c,d} (sum_s left[s,i,c] right[s,j,d]) w[c,d] + b) / (1e-3 + norm[i,j]).
  void (*outer_product_mean)(const Tensor& left, const Tensor& right, const Tensor& w,
                             const Tensor& b, const Tensor& norm, const Tensor& z);
  /// Its gradients, added; each of the last four may be undefined. dz is overwritten.
  void (*outer_product_mean_backward)(const Tensor& left, const Tensor& right, const Tensor& w,
                                      const Tensor& norm, const Tensor& dz, const Tensor& dleft,
                                      const Tensor& dright, const Tensor& dw, const Tensor& db);
  /// Input and recycled pair embedding; see core/ops/embed.h.
  void (*pair_embed)(const Tensor& left, const Tensor& right, const Tensor& residue_index,
                     const Tensor& relpos, const Tensor& beta, const Tensor& dgram,
                     const Tensor& breaks, int64_t first_row, const Tensor& z);
  /// Its gradients, added, f32 where dz is bf16; each may be undefined.
  void (*pair_embed_backward)(const Tensor& residue_index, const Tensor& beta, const Tensor& breaks,
                              int64_t first_row, const Tensor& dz, const Tensor& dleft,
                              const Tensor& dright, const Tensor& drelpos, const Tensor& ddgram);
  /// The structure module's, f32 or f64, contiguous: invariant_point_attention.h and rigid_ops.h.
  void (*invariant_point_attention)(const IpaTensors& in, const Tensor& out);
  void (*apply_rigids)(const Tensor& affine, const Tensor& points, const Tensor& out);
  void (*update_backbone)(const Tensor& affine, const Tensor& update, const Tensor& out);
  void (*scale_affine)(const Tensor& affine, double rotation, double translation,
                       const Tensor& out);
  void (*affine_frames)(const Tensor& affine, const Tensor& out);
  void (*normalize_pairs)(const Tensor& x, const Tensor& out);
  void (*torsions_to_frames)(const Tensor& affine, const Tensor& angles, const Tensor& aatype,
                             const Tensor& default_frames, const Tensor& frames);
  void (*frames_to_atom14)(const Tensor& frames, const Tensor& aatype, const Tensor& group,
                           const Tensor& positions, const Tensor& mask, const Tensor& out);
  void (*atom14_to_atom37)(const Tensor& atoms, const Tensor& index, const Tensor& mask,
                           const Tensor& out);
  /// Their gradients, added; each may be undefined.
  void (*invariant_point_attention_backward)(const IpaTensors& in, const Tensor& out,
                                             const Tensor& dout, const IpaTensors& grads);
  void (*apply_rigids_backward)(const Tensor& affine, const Tensor& points, const Tensor& dout,
                                const Tensor& daffine, const Tensor& dpoints);
  void (*update_backbone_backward)(const Tensor& affine, const Tensor& update, const Tensor& dout,
                                   const Tensor& daffine, const Tensor& dupdate);
  void (*affine_frames_backward)(const Tensor& affine, const Tensor& dout, const Tensor& daffine);
  void (*normalize_pairs_backward)(const Tensor& x, const Tensor& y, const Tensor& dy,
                                   const Tensor& dx);
  void (*torsions_to_frames_backward)(const Tensor& affine, const Tensor& angles,
                                      const Tensor& aatype, const Tensor& default_frames,
                                      const Tensor& dframes, const Tensor& daffine,
                                      const Tensor& dangles);
  void (*frames_to_atom14_backward)(const Tensor& aatype, const Tensor& group,
                                    const Tensor& positions, const Tensor& mask, const Tensor& dout,
                                    const Tensor& dframes);
  void (*atom14_to_atom37_backward)(const Tensor& index, const Tensor& mask, const Tensor& dout,
                                    const Tensor& datoms);
  /// out = max(x, 0).
  void (*relu)(const Tensor& x, const Tensor& out);
  /// out[i, j] = x[i, j] + x[j, i].
  void (*symmetrize)(const Tensor& x, const Tensor& out);
  /// loss [1] f64 = norm sum_r weight[r] (logsumexp(logits[r]) - logits[r, class[r]]), weights f64;
  /// the gradient's rows are written where the weight is not 0. Contiguous.
  void (*cross_entropy)(const Tensor& logits, const Tensor& classes, const Tensor& weights,
                        double norm, const Tensor& loss, const Tensor& gradient);
  /// norm [1] f64 = sqrt of the sum of all squares, in a fixed order.
  void (*global_norm)(TensorList arrays, const Tensor& norm);
  /// sum += gradient, scaled to the norm `limit` where it is longer (0: never); nothing where its
  /// norm is not finite.
  void (*add_clipped)(TensorList gradient, const Tensor& norm, double limit, TensorList sum);
  void (*adam_step)(const AdamNumbers& numbers, const AdamLists& lists);
};

/// The table for a device. The CPU's is chosen once by what the processor has; FASTFOLD_ISA=v3 in
/// the environment forces the AVX2 one.
const Kernels& kernels(Device device);
void register_kernels(Device::Kind kind, const Kernels* table);

}  // namespace ff
