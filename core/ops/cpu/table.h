// The CPU kernels of one instruction set, declared for its table.
#pragma once

#include "core/ops/cpu/simd.h"
#include "core/ops/gemm.h"
#include "core/ops/plain_kernels.h"

namespace ff::cpu::FF_ISA {

extern const Kernels kTable;

void layer_norm(const Tensor& x, const Tensor& scale, const Tensor& offset, const Tensor& y);
void layer_norm_backward(const Tensor& x, const Tensor& scale, const Tensor& dy, const Tensor& dx,
                         const Tensor& dscale, const Tensor& doffset);
void activation_backward(const Tensor& y, Activation act, const Tensor& dy);
void add_column_sums(const Tensor& x, const Tensor& sums);
void add_columns(const Tensor& x, TensorList parts);
void add_gated_backward(const Tensor& x, const Tensor& gate, const Tensor& dy, const Tensor& dx,
                        const Tensor& dgate);
void layer_norm_channels_first(const Tensor& x, const Tensor& scale, const Tensor& offset,
                               const Tensor& y);
void layer_norm_channels_first_backward(const Tensor& x, const Tensor& scale, const Tensor& dy,
                                        const Tensor& dx, const Tensor& dscale,
                                        const Tensor& doffset);
void attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
               const Tensor& bias, const Tensor& mask, const Tensor& o, const Tensor& lse);
void global_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                      const Tensor& mask, const Tensor& o);
void masked_mean(const Tensor& x, const Tensor& mask, const Tensor& y);
void attention_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                        const Tensor& bias, const Tensor& mask, const Tensor& o, const Tensor& lse,
                        const Tensor& dy, const Tensor& dq, const Tensor& dk, const Tensor& dv,
                        const Tensor& dgate, const Tensor& dbias, const Tensor& fresh);
void global_attention_backward(const Tensor& q, const Tensor& k, const Tensor& v,
                               const Tensor& gate, const Tensor& mask, const Tensor& dy,
                               const Tensor& dq, const Tensor& dk, const Tensor& dv,
                               const Tensor& dgate);
void masked_mean_backward(const Tensor& mask, const Tensor& dy, const Tensor& dx);
void triangle_gate_backward(const Tensor& proj, const Tensor& proj_bias, const Tensor& gate,
                            const Tensor& gate_bias, const Tensor& mask, const Tensor& da,
                            const Tensor& dproj, const Tensor& dproj_bias, const Tensor& dgate,
                            const Tensor& dgate_bias);
void triangle_gate(const Tensor& proj, const Tensor& proj_bias, const Tensor& gate,
                   const Tensor& gate_bias, const Tensor& mask, const Tensor& a);
void add(const Tensor& x, const Tensor& y);
void add_gated(const Tensor& x, const Tensor& gate, const Tensor& y);
void add_dropped(const Tensor& x, const Tensor& factors, const Tensor& base, const Tensor& y);
void scale_rows(const Tensor& mask, const Tensor& y);
Tensor outer_product_mean(const Tensor& left, const Tensor& right, const Tensor& w, const Tensor& b,
                          const Tensor& norm, const Tensor& residual, const Tensor& z, bool keep);
void outer_product_mean_backward(const Tensor& left, const Tensor& right, const Tensor& w,
                                 const Tensor& norm, const Tensor& kept, const Tensor& dz,
                                 const Tensor& dleft, const Tensor& dright, const Tensor& dw,
                                 const Tensor& db);
void pair_embed(const Tensor& left, const Tensor& right, const Tensor& residue_index,
                const Tensor& relpos, const Tensor& beta, const Tensor& dgram, const Tensor& breaks,
                int64_t first_row, const Tensor& z);
void pair_embed_backward(const Tensor& residue_index, const Tensor& beta, const Tensor& breaks,
                         int64_t first_row, const Tensor& dz, const Tensor& dleft,
                         const Tensor& dright, const Tensor& drelpos, const Tensor& ddgram);
void invariant_point_attention(const IpaTensors& in, const Tensor& out);
void apply_rigids(const Tensor& affine, const Tensor& points, const Tensor& out);
void update_backbone(const Tensor& affine, const Tensor& update, const Tensor& out);
void scale_affine(const Tensor& affine, double rotation, double translation, const Tensor& out);
void affine_frames(const Tensor& affine, const Tensor& out);
void normalize_pairs(const Tensor& x, const Tensor& out);
void torsions_to_frames(const Tensor& affine, const Tensor& angles, const Tensor& aatype,
                        const Tensor& default_frames, const Tensor& frames);
void frames_to_atom14(const Tensor& frames, const Tensor& aatype, const Tensor& group,
                      const Tensor& positions, const Tensor& mask, const Tensor& out);
void atom14_to_atom37(const Tensor& atoms, const Tensor& index, const Tensor& mask,
                      const Tensor& out);
void invariant_point_attention_backward(const IpaTensors& in, const Tensor& out, const Tensor& dout,
                                        const IpaTensors& grads);
void apply_rigids_backward(const Tensor& affine, const Tensor& points, const Tensor& dout,
                           const Tensor& daffine, const Tensor& dpoints);
void update_backbone_backward(const Tensor& affine, const Tensor& update, const Tensor& dout,
                              const Tensor& daffine, const Tensor& dupdate);
void affine_frames_backward(const Tensor& affine, const Tensor& dout, const Tensor& daffine);
void normalize_pairs_backward(const Tensor& x, const Tensor& y, const Tensor& dy, const Tensor& dx);
void torsions_to_frames_backward(const Tensor& affine, const Tensor& angles, const Tensor& aatype,
                                 const Tensor& default_frames, const Tensor& dframes,
                                 const Tensor& daffine, const Tensor& dangles);
void frames_to_atom14_backward(const Tensor& aatype, const Tensor& group, const Tensor& positions,
                               const Tensor& mask, const Tensor& dout, const Tensor& dframes);
void atom14_to_atom37_backward(const Tensor& index, const Tensor& mask, const Tensor& dout,
                               const Tensor& datoms);
void relu(const Tensor& x, const Tensor& out);
void symmetrize(const Tensor& x, const Tensor& out);
void cross_entropy(const Tensor& logits, const Tensor& classes, const Tensor& weights, double norm,
                   const Tensor& loss, const Tensor& gradient);
void global_norm(TensorList arrays, const Tensor& norm);
void add_clipped(TensorList gradient, const Tensor& norm, const Tensor& loss, double limit,
                 TensorList sum, const Tensor& skipped);
void adam_step(const AdamNumbers& numbers, const AdamLists& lists, const Tensor& skipped);

}  // namespace ff::cpu::FF_ISA
