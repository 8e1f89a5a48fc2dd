// Kernels of losses and features on the CPU, compiled once for all processors: exact where they
// decide, and cheap beside the network's.
#pragma once

#include <type_traits>

#include "core/ops/kernels.h"

namespace ff::cpu {

template <class Pointer>
using Kernel = std::remove_pointer_t<Pointer>;

Kernel<decltype(Kernels::fape)> fape;
Kernel<decltype(Kernels::chi_loss)> chi_loss;
Kernel<decltype(Kernels::angle_norm_loss)> angle_norm_loss;
Kernel<decltype(Kernels::binary_cross_entropy)> binary_cross_entropy;
Kernel<decltype(Kernels::weighted_sum)> weighted_sum;
Kernel<decltype(Kernels::distance_classes)> distance_classes;
Kernel<decltype(Kernels::aligned_error_classes)> aligned_error_classes;
Kernel<decltype(Kernels::lddt)> lddt;
Kernel<decltype(Kernels::score_classes)> score_classes;
Kernel<decltype(Kernels::alternative_is_better)> alternative_is_better;
Kernel<decltype(Kernels::choose_rows)> choose_rows;
Kernel<decltype(Kernels::violations)> violations;
Kernel<decltype(Kernels::draw_dropout)> draw_dropout;
Kernel<decltype(Kernels::extra_msa_features)> extra_msa_features;
Kernel<decltype(Kernels::template_pair_features)> template_pair_features;
Kernel<decltype(Kernels::expectations)> expectations;

}  // namespace ff::cpu
