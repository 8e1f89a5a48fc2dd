// Sums over rows in a fixed order: every block leaves its part in temporary memory, and a second
// pass adds the parts one after the other.
#pragma once

#include "cuda/runtime.h"

namespace ff::cuda {

/// first += the sum over parts p of the n numbers at partial + p * stride, second += that of the n
/// numbers after them, where they are defined: each n elements of f32 or bf16, its last axis
/// contiguous.
void add_partials(const float* partial, int64_t parts, int64_t stride, int64_t n,
                  const Tensor& first, const Tensor& second = {});

}  // namespace ff::cuda
