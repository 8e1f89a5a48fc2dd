// The GPU's kernels, declared by their signatures in core/ops/kernels.h, which says what each
// computes. A kernel's file has the name of its operation's in core/ops.
#pragma once

#include <type_traits>

#include "core/ops/kernels.h"

// Hidden, so that a missing one keeps the module from linking.
#pragma GCC visibility push(hidden)
namespace ff::cuda {

extern const Kernels kTable;

template <class Pointer>
using Function = std::remove_pointer_t<Pointer>;

Function<decltype(Kernels::layer_norm)> layer_norm;
Function<decltype(Kernels::layer_norm_backward)> layer_norm_backward;
Function<decltype(Kernels::layer_norm_channels_first)> layer_norm_channels_first;
Function<decltype(Kernels::layer_norm_channels_first_backward)> layer_norm_channels_first_backward;
Function<decltype(Kernels::pair_bias)> pair_bias;
Function<decltype(Kernels::pair_bias_backward)> pair_bias_backward;
Function<decltype(Kernels::linear)> linear;
Function<decltype(Kernels::normed_linear)> normed_linear;
Function<decltype(Kernels::linear_where_positive)> linear_where_positive;
Function<decltype(Kernels::activation_backward)> activation_backward;
Function<decltype(Kernels::add_column_sums)> add_column_sums;
Function<decltype(Kernels::weight_gradient)> weight_gradient;
Function<decltype(Kernels::add_columns)> add_columns;
Function<decltype(Kernels::matmul)> matmul;
Function<decltype(Kernels::attention)> attention;
Function<decltype(Kernels::global_attention)> global_attention;
Function<decltype(Kernels::attention_backward)> attention_backward;
Function<decltype(Kernels::global_attention_backward)> global_attention_backward;
Function<decltype(Kernels::masked_mean_backward)> masked_mean_backward;
Function<decltype(Kernels::masked_mean)> masked_mean;
Function<decltype(Kernels::triangle_gate)> triangle_gate;
Function<decltype(Kernels::triangle_gate_backward)> triangle_gate_backward;
Function<decltype(Kernels::triangle_sides)> triangle_sides;
Function<decltype(Kernels::triangle_end)> triangle_end;
Function<decltype(Kernels::triangle_sides_backward)> triangle_sides_backward;
Function<decltype(Kernels::triangle_end_backward)> triangle_end_backward;
Function<decltype(Kernels::add)> add;
Function<decltype(Kernels::add_gated)> add_gated;
Function<decltype(Kernels::add_gated_backward)> add_gated_backward;
Function<decltype(Kernels::add_dropped)> add_dropped;
Function<decltype(Kernels::scale_rows)> scale_rows;
Function<decltype(Kernels::outer_product_mean)> outer_product_mean;
Function<decltype(Kernels::outer_product_mean_backward)> outer_product_mean_backward;
Function<decltype(Kernels::pair_embed)> pair_embed;
Function<decltype(Kernels::pair_embed_backward)> pair_embed_backward;
Function<decltype(Kernels::invariant_point_attention)> invariant_point_attention;
Function<decltype(Kernels::apply_rigids)> apply_rigids;
Function<decltype(Kernels::update_backbone)> update_backbone;
Function<decltype(Kernels::scale_affine)> scale_affine;
Function<decltype(Kernels::affine_frames)> affine_frames;
Function<decltype(Kernels::normalize_pairs)> normalize_pairs;
Function<decltype(Kernels::torsions_to_frames)> torsions_to_frames;
Function<decltype(Kernels::frames_to_atom14)> frames_to_atom14;
Function<decltype(Kernels::atom14_to_atom37)> atom14_to_atom37;
Function<decltype(Kernels::invariant_point_attention_backward)> invariant_point_attention_backward;
Function<decltype(Kernels::apply_rigids_backward)> apply_rigids_backward;
Function<decltype(Kernels::update_backbone_backward)> update_backbone_backward;
Function<decltype(Kernels::affine_frames_backward)> affine_frames_backward;
Function<decltype(Kernels::normalize_pairs_backward)> normalize_pairs_backward;
Function<decltype(Kernels::torsions_to_frames_backward)> torsions_to_frames_backward;
Function<decltype(Kernels::frames_to_atom14_backward)> frames_to_atom14_backward;
Function<decltype(Kernels::atom14_to_atom37_backward)> atom14_to_atom37_backward;
Function<decltype(Kernels::relu)> relu;
Function<decltype(Kernels::symmetrize)> symmetrize;
Function<decltype(Kernels::cross_entropy)> cross_entropy;
Function<decltype(Kernels::fape)> fape;
Function<decltype(Kernels::chi_loss)> chi_loss;
Function<decltype(Kernels::angle_norm_loss)> angle_norm_loss;
Function<decltype(Kernels::binary_cross_entropy)> binary_cross_entropy;
Function<decltype(Kernels::weighted_sum)> weighted_sum;
Function<decltype(Kernels::distance_classes)> distance_classes;
Function<decltype(Kernels::aligned_error_classes)> aligned_error_classes;
Function<decltype(Kernels::lddt)> lddt;
Function<decltype(Kernels::score_classes)> score_classes;
Function<decltype(Kernels::alternative_is_better)> alternative_is_better;
Function<decltype(Kernels::choose_rows)> choose_rows;
Function<decltype(Kernels::violations)> violations;
Function<decltype(Kernels::draw_dropout)> draw_dropout;
Function<decltype(Kernels::extra_msa_features)> extra_msa_features;
Function<decltype(Kernels::template_pair_features)> template_pair_features;
Function<decltype(Kernels::expectations)> expectations;
Function<decltype(Kernels::global_norm)> global_norm;
Function<decltype(Kernels::add_clipped)> add_clipped;
Function<decltype(Kernels::adam_step)> adam_step;

}  // namespace ff::cuda
#pragma GCC visibility pop
