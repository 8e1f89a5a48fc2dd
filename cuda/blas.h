// Matrix products by cuBLASLt, its plans cached by shape.
#pragma once

#include "core/ops/kernels.h"

namespace ff::cuda {

/// c [b, m, n] = act(a [b, m, k] w [b, k, n] + bias), or c = base + a w + bias where base, which
/// may be c, is given: f32 (in full f32, or as tf32_products() says) or bf16 (sums in f32), or bf16
/// into an f32 c. As core/ops/gemm.h: each operand has a contiguous axis among its last two, a
/// batch of one is shared, bias is f32, of c's dtype or undefined. `act` is kNone or kRelu; k is
/// not zero. Returns false, having done nothing, where the library cannot add `bias` or `act` (c's
/// rows are contiguous).
bool product(const Tensor& a, const Tensor& w, const Tensor& bias, Activation act,
             const Tensor& base, const Tensor& c);

}  // namespace ff::cuda
