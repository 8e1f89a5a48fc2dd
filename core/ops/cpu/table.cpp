// The table of one instruction set's CPU kernels.
#include "core/ops/cpu/table.h"

namespace ff::cpu::FF_ISA {
namespace {

void linear(const Tensor& x, const Tensor& w, const Tensor& bias, Activation act,
            const Tensor& base, const Tensor& y) {
  if (base && base.raw() != y.raw()) y.copy_from(base);
  gemm(x, w, bias, y, act, base.defined());
}
void linear_where_positive(const Tensor& x, const Tensor& w, const Tensor& kept, const Tensor& y) {
  gemm(x, w, {}, y);
  activation_backward(kept, Activation::kRelu, y);
}
void matmul(const Tensor& a, const Tensor& b, const Tensor& c) { gemm(a, b, {}, c); }

}  // namespace

const Kernels kTable = {
#ifdef __AVX512F__
    .name = "AVX-512",
#else
    .name = "AVX2",
#endif
    .layer_norm = layer_norm,
    .layer_norm_backward = layer_norm_backward,
    .layer_norm_channels_first = layer_norm_channels_first,
    .layer_norm_channels_first_backward = layer_norm_channels_first_backward,
    .pair_bias = nullptr,
    .pair_bias_backward = nullptr,
    .linear = linear,
    .normed_linear = nullptr,
    .linear_where_positive = linear_where_positive,
    .activation_backward = activation_backward,
    .add_column_sums = add_column_sums,
    .weight_gradient = weight_gradient_by_products,
    .add_columns = add_columns,
    .matmul = matmul,
    .attention = attention,
    .global_attention = global_attention,
    .attention_backward = attention_backward,
    .global_attention_backward = global_attention_backward,
    .masked_mean_backward = masked_mean_backward,
    .masked_mean = masked_mean,
    .triangle_gate = triangle_gate,
    .triangle_gate_backward = triangle_gate_backward,
    .triangle_sides = nullptr,
    .triangle_end = nullptr,
    .triangle_sides_backward = nullptr,
    .triangle_end_backward = nullptr,
    .add = add,
    .add_gated = add_gated,
    .add_gated_backward = add_gated_backward,
    .add_dropped = add_dropped,
    .scale_rows = scale_rows,
    .outer_product_mean = outer_product_mean,
    .outer_product_mean_backward = outer_product_mean_backward,
    .pair_embed = pair_embed,
    .pair_embed_backward = pair_embed_backward,
    .invariant_point_attention = invariant_point_attention,
    .apply_rigids = apply_rigids,
    .update_backbone = update_backbone,
    .scale_affine = scale_affine,
    .affine_frames = affine_frames,
    .normalize_pairs = normalize_pairs,
    .torsions_to_frames = torsions_to_frames,
    .frames_to_atom14 = frames_to_atom14,
    .atom14_to_atom37 = atom14_to_atom37,
    .invariant_point_attention_backward = invariant_point_attention_backward,
    .apply_rigids_backward = apply_rigids_backward,
    .update_backbone_backward = update_backbone_backward,
    .affine_frames_backward = affine_frames_backward,
    .normalize_pairs_backward = normalize_pairs_backward,
    .torsions_to_frames_backward = torsions_to_frames_backward,
    .frames_to_atom14_backward = frames_to_atom14_backward,
    .atom14_to_atom37_backward = atom14_to_atom37_backward,
    .relu = relu,
    .symmetrize = symmetrize,
    .cross_entropy = cross_entropy,
    .fape = fape,
    .chi_loss = chi_loss,
    .angle_norm_loss = angle_norm_loss,
    .binary_cross_entropy = binary_cross_entropy,
    .weighted_sum = weighted_sum,
    .distance_classes = distance_classes,
    .aligned_error_classes = aligned_error_classes,
    .lddt = lddt,
    .score_classes = score_classes,
    .alternative_is_better = alternative_is_better,
    .choose_rows = choose_rows,
    .violations = violations,
    .draw_dropout = draw_dropout,
    .extra_msa_features = extra_msa_features,
    .template_pair_features = template_pair_features,
    .expectations = expectations,
    .global_norm = global_norm,
    .add_clipped = add_clipped,
    .adam_step = adam_step,
};

}  // namespace ff::cpu::FF_ISA
