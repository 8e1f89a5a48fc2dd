// The kernel table: every kernel's signature once. The CPU fills one table per instruction set, the
// CUDA module another; an operation takes its table by its tensors' device. Operations check shapes
// and allocate; kernels trust them and only write into the tensors that they are given (last in the
// list). An undefined tensor stands for an absent operand.
#pragma once

#include <span>
#include <vector>

#include "core/base/rng.h"
#include "core/tensor/tensor.h"

namespace ff {

enum class Activation { kNone, kRelu, kSigmoid };

/// What invariant point attention reads; core/ops/invariant_point_attention.h has the shapes.
struct IpaTensors {
  Tensor q_scalar, kv_scalar, q_point, kv_point, affine, bias, z, query_mask, mask, point_weights;
};

/// Predicted frames [n_frame, 12] and points [n_point, 3], what they are held against, and masks.
struct FapeTensors {
  Tensor frames, points, target_frames, frame_mask, target_points, point_mask;
};

/// Atoms [n, 14, 3] f32 or f64; whether they exist and their radii [n, 14], residue numbers [n],
/// f64; types [n] i32, rows of the bounds [21, 14, 14] f32, and the row of proline.
struct ViolationTensors {
  Tensor atoms, exists, radius, index, types, lower, upper;
  int32_t proline;
};
/// f64. connections [2, 3, n]: loss, then violated, of the bond C-N and the angles CA-C-N and
/// C-N-CA between residues i and i + 1 (the last is 0); clashes and within [2, n, 14]: loss, then
/// violated, of each atom; means [4]: of the connections' losses, and of clashes over pairs of
/// atoms.
struct ViolationResults {
  Tensor connections, clashes, within, means;
};

/// A template: of residue types i32, CB atoms [n, 3] and whether they are there, whether the
/// backbone is (f32), its frames [n, 12] f64, and squared edges [bins + 1] of distances.
struct TemplateTensors {
  Tensor types, beta, beta_mask, backbone, frames, edges;
  bool unit_vector;
};

/// Arrays of all parameters in one order: f32, contiguous; sums of gradients f64 too, on the CPU.
using TensorList = std::span<const Tensor>;

/// A linear layer of what a layer norm gives: LN(x; scale, offset) w + b; or gradients of these,
/// each of which may be undefined.
struct NormedLinear {
  Tensor scale, offset, w, b;
};

/// Adam's numbers of one step; core/train/optimizer.h has its formula.
struct AdamNumbers {
  float beta1, beta2, keep1, keep2;  ///< keep = 1 - beta
  float step, root, eps;             ///< rate / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
  float mean, follow;                ///< of the gradient's sum; of the moving average
};
struct AdamLists {
  TensorList gradient, params, m, v, ema;  ///< an empty `ema` is left out
};

/// What a GPU has at a time, as core/model/memory_plan.h foresees: elements of the outer products,
/// and bytes of invariant point attention's logits and weights.
inline constexpr int64_t kGpuOuterProducts = int64_t(1) << 28, kGpuIpaBytes = int64_t(256) << 20;

struct Kernels {
  const char* name;  ///< "AVX-512", ...

  /// y = (x - mean) rstd scale + offset over the last axis.
  void (*layer_norm)(const Tensor& x, const Tensor& scale, const Tensor& offset, const Tensor& y);
  /// dx, dscale, doffset (each may be undefined) += layer norm's gradients; where dx is dy, it is
  /// written instead.
  void (*layer_norm_backward)(const Tensor& x, const Tensor& scale, const Tensor& dy,
                              const Tensor& dx, const Tensor& dscale, const Tensor& doffset);
  /// The same over axis 0 of x [c, n, m], into y [n, m, c].
  void (*layer_norm_channels_first)(const Tensor& x, const Tensor& scale, const Tensor& offset,
                                    const Tensor& y);
  /// Its gradients, added; each may be undefined.
  void (*layer_norm_channels_first_backward)(const Tensor& x, const Tensor& scale, const Tensor& dy,
                                             const Tensor& dx, const Tensor& dscale,
                                             const Tensor& doffset);
  /// Attention's bias of core/ops/pair_bias.h, nullptr where there is none: bias [h, n, m] f32, any
  /// strides. Its gradients: dz, contiguous, is added to where `add`, else written, and may be
  /// undefined; the layer's are added, f32.
  void (*pair_bias)(const Tensor& z, const NormedLinear& layer, const Tensor& bias);
  void (*pair_bias_backward)(const Tensor& z, const NormedLinear& layer, const Tensor& dbias,
                             const Tensor& dz, bool add, const NormedLinear& grads);
  /// y [b, m, n] = act(x [b, m, k] w [k, n] + bias), or y = base + x w + bias, where base is given
  /// (it may be y); y may be f32 where x and w are bf16. bias is f32, or on a GPU of y's dtype.
  void (*linear)(const Tensor& x, const Tensor& w, const Tensor& bias, Activation act,
                 const Tensor& base, const Tensor& y);
  /// y = act(LN(x; scale, offset) w + b), nullptr where there is none; shapes as `linear`'s.
  /// Returns false, having done nothing, where a layer norm and `linear` are what there is.
  bool (*normed_linear)(const Tensor& x, const NormedLinear& layer, Activation act,
                        const Tensor& y);
  /// y [1, m, n] = x w where kept > 0, else 0: the gradient of what relu gave `kept` of.
  void (*linear_where_positive)(const Tensor& x, const Tensor& w, const Tensor& kept,
                                const Tensor& y);
  /// dy *= act'(x), from y = act(x).
  void (*activation_backward)(const Tensor& y, Activation act, const Tensor& dy);
  /// sums[c] += sum_r x[r, c], in a fixed order.
  void (*add_column_sums)(const Tensor& x, const Tensor& sums);
  /// parts[i] [c, n / parts] += x^T dy's columns of it, sums += the sums of dy's last columns: the
  /// gradients of the weights of layers that lie beside each other and of their biases, contiguous;
  /// each may be undefined. x [.., c], dy [.., n].
  void (*weight_gradient)(const Tensor& x, const Tensor& dy, TensorList parts, const Tensor& sums);
  /// parts[i] [rows, n] += columns i n to (i + 1) n of x, f32, where it is defined; all are
  /// contiguous.
  void (*add_columns)(const Tensor& x, TensorList parts);
  /// c [b, m, n] = a [b, m, k] b [b, k, n], any strides with one contiguous axis.
  void (*matmul)(const Tensor& a, const Tensor& b, const Tensor& c);
  /// Gated attention; see core/ops/attention.h. lse, where it is defined, takes what the backward
  /// wants of the softmax: the GPU's log-sum-exp.
  void (*attention)(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                    const Tensor& bias, const Tensor& mask, const Tensor& o, const Tensor& lse);
  /// Global attention (one query a column, keys and values shared by the heads); same header.
  void (*global_attention)(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                           const Tensor& mask, const Tensor& o);
  /// Their gradients, added; each may be undefined. dy's numbers are lost; `fresh`'s, where it is
  /// given, count for nothing: it is contiguous, dq, dk, dv and dgate are its parts and all of it.
  void (*attention_backward)(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                             const Tensor& bias, const Tensor& mask, const Tensor& o,
                             const Tensor& lse, const Tensor& dy, const Tensor& dq,
                             const Tensor& dk, const Tensor& dv, const Tensor& dgate,
                             const Tensor& dbias, const Tensor& fresh);
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
  /// The fused forms of core/ops/triangle.h, nullptr where there are none. z [n, m, c] bf16 and
  /// contiguous, c 64 or 128; mask [n m], factors [m, c] f32, may be undefined; a, p [c, ..]; out
  /// may be z. Of the sides one or both are made, whose layers are projection, gate, projection,
  /// gate; all have the norm of the first.
  void (*triangle_sides)(const Tensor& z, const Tensor& mask,
                         const std::vector<NormedLinear>& layers, const Tensor& a);
  void (*triangle_end)(const Tensor& z, const Tensor& p, const Tensor& factors,
                       const NormedLinear& proj, const NormedLinear& gate, const Tensor& out);
  /// Their gradients. dz, contiguous, is added to where `add`, else written, and may be dout; dp,
  /// of p's strides, is written; the layers' are added, f32.
  void (*triangle_sides_backward)(const Tensor& z, const Tensor& mask,
                                  const std::vector<NormedLinear>& layers, const Tensor& da,
                                  const Tensor& dz, bool add,
                                  const std::vector<NormedLinear>& grads);
  void (*triangle_end_backward)(const Tensor& z, const Tensor& p, const Tensor& factors,
                                const NormedLinear& proj, const NormedLinear& gate,
                                const Tensor& dout, const Tensor& dz, bool add, const Tensor& dp,
                                const NormedLinear& dproj, const NormedLinear& dgate);
  /// y += x.
  void (*add)(const Tensor& x, const Tensor& y);
  /// y += x sigmoid(gate).
  void (*add_gated)(const Tensor& x, const Tensor& gate, const Tensor& y);
  /// dx += dy sigmoid(gate), dgate += dy x sigmoid'(gate); either may be undefined.
  void (*add_gated_backward)(const Tensor& x, const Tensor& gate, const Tensor& dy,
                             const Tensor& dx, const Tensor& dgate);
  /// y [.., n, c] = base + x factors [n, c], without a base where it is undefined; it may be y.
  void (*add_dropped)(const Tensor& x, const Tensor& factors, const Tensor& base, const Tensor& y);
  /// y *= mask, one factor for each row of the last axis.
  void (*scale_rows)(const Tensor& mask, const Tensor& y);
  /// z[i, j] = residual[i, j] + (sum_{c,d} (sum_s left[s,i,c] right[s,j,d]) w[c,d] + b) /
  /// (1e-3 + norm[i,j]); z may be the residual. Where `keep`, returns what its backward need not
  /// make again, if there is anything.
  Tensor (*outer_product_mean)(const Tensor& left, const Tensor& right, const Tensor& w,
                               const Tensor& b, const Tensor& norm, const Tensor& residual,
                               const Tensor& z, bool keep);
  /// Its gradients, the sides' written, the others added; each of the last four may be undefined.
  /// `kept` is what was returned, or undefined, and is overwritten.
  void (*outer_product_mean_backward)(const Tensor& left, const Tensor& right, const Tensor& w,
                                      const Tensor& norm, const Tensor& kept, const Tensor& dz,
                                      const Tensor& dleft, const Tensor& dright, const Tensor& dw,
                                      const Tensor& db);
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
  /// The losses of core/loss/losses.h, f32 or f64, contiguous: the value goes into loss [1] f64
  /// (the torsions' is added, layer after layer), gradients are added and may be undefined.
  void (*fape)(const FapeTensors& in, double clamp, double unclamped, double scale,
               const Tensor& loss, const Tensor& dframes, const Tensor& dpoints);
  /// angles [n, 7, 2]; chi, mask, periodic [n, 4] f64 (1: a turn by pi changes nothing).
  void (*chi_loss)(const Tensor& angles, const Tensor& chi, const Tensor& mask,
                   const Tensor& periodic, int64_t layers, const Tensor& loss,
                   const Tensor& dangles);
  /// angles [n, 14] unnormalized, mask [n] f64.
  void (*angle_norm_loss)(const Tensor& angles, const Tensor& mask, int64_t layers,
                          const Tensor& loss, const Tensor& dangles);
  /// loss = norm sum weight (softplus(logit) - label logit); labels and weights f64.
  void (*binary_cross_entropy)(const Tensor& logits, const Tensor& labels, const Tensor& weights,
                               double norm, const Tensor& loss, const Tensor& gradient);
  /// loss = sum of weight[k] times the number term[k].
  void (*weighted_sum)(TensorList terms, std::span<const double> weights, const Tensor& loss);
  /// For pairs of the rows i = first_row, ... with all j: classes [rows, n] i32, how many of
  /// `breaks` (f64) are below the squared distance; weights f64 = mask[i] mask[j]. points [n, 3],
  /// mask [n] f64.
  void (*distance_classes)(const Tensor& points, const Tensor& mask, const Tensor& breaks,
                           int64_t first_row, const Tensor& classes, const Tensor& weights);
  /// The same of how far j's origin in i's frame is from where it is in `truth`: frames [n, 12],
  /// truth f64; 0 for i = j.
  void (*aligned_error_classes)(const Tensor& frames, const Tensor& truth, const Tensor& mask,
                                const Tensor& breaks, int64_t first_row, const Tensor& classes,
                                const Tensor& weights);
  /// score [n] f64: lDDT of points [n, 3] against truth [n, 3] f64 under mask [n] f64, cutoff 15.
  void (*lddt)(const Tensor& points, const Tensor& truth, const Tensor& mask, const Tensor& score);
  /// classes i32 of scores f64 from 0 to 1 among `bins` of one width.
  void (*score_classes)(const Tensor& score, int64_t bins, const Tensor& classes);
  /// better [n] f32: 1 where the ground truth with exchanged names is closer (Suppl. Alg. 26 lines
  /// 1-5). atoms [n, 14, 3]; truth and alternative [n, 14, 3], exists and ambiguous [n, 14] f64.
  void (*alternative_is_better)(const Tensor& atoms, const Tensor& truth, const Tensor& alternative,
                                const Tensor& exists, const Tensor& ambiguous,
                                const Tensor& better);
  /// out[i] = b[i] where choose[i] is not 0, else a[i]; [n, ..] f32.
  void (*choose_rows)(const Tensor& choose, const Tensor& a, const Tensor& b, const Tensor& out);
  /// Suppl. eq. 44 to 47 and AlphaFold's structural violation loss.
  void (*violations)(const ViolationTensors& in, double tolerance, double overlap,
                     const Tensor& loss, const ViolationResults& results, const Tensor& datoms);
  /// factors [n, c], f32 or f64: 0 with probability `rate`, else 1 / (1 - rate); element i by word
  /// i of the stream.
  void (*draw_dropout)(const Rng& rng, double rate, const Tensor& factors);
  /// out [.., 25]: one-hot of letters i32 (0 to 22), then has_deletion and deletion_value, f32.
  void (*extra_msa_features)(const Tensor& letters, const Tensor& has_deletion,
                             const Tensor& deletion_value, const Tensor& out);
  /// out [rows, n, channels]: what a template says of pairs of the rows first_row, ... with all;
  /// core/model/template_features.h.
  void (*template_pair_features)(const TemplateTensors& in, int64_t first_row, const Tensor& out);
  /// out [rows] f64: the softmax of logits [rows, bins] over values [bins] f64.
  void (*expectations)(const Tensor& logits, const Tensor& values, const Tensor& out);
  /// norm [1] f64 = sqrt of the sum of all squares, in a fixed order.
  void (*global_norm)(TensorList arrays, const Tensor& norm);
  /// sum += gradient, scaled to the norm `limit` where it is longer (0: never). Where norm [1] f64
  /// or loss [], of the gradient's type, is not finite, skipped [1], of that type, += 1 instead.
  void (*add_clipped)(TensorList gradient, const Tensor& norm, const Tensor& loss, double limit,
                      TensorList sum, const Tensor& skipped);
  /// Nothing where skipped [1] f32 is not 0.
  void (*adam_step)(const AdamNumbers& numbers, const AdamLists& lists, const Tensor& skipped);
};

/// Kernels::weight_gradient by the other kernels of dy's device.
void weight_gradient_by_products(const Tensor& x, const Tensor& dy, TensorList parts,
                                 const Tensor& sums);

/// Whether a GPU may round the operands of f32 products to tf32, which has 10 bits of fraction, as
/// --precision tf32 asks for. Set before the first product; a CPU never does.
bool& tf32_products();

/// The table for a device. The CPU's is chosen once by what the processor has; FASTFOLD_ISA=v3 in
/// the environment forces the AVX2 one.
const Kernels& kernels(Device device);
void register_kernels(Device::Kind kind, const Kernels* table);

}  // namespace ff
