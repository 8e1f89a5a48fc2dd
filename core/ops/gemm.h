// Matrix products on the CPU: one batched, strided GEMM for every dtype, by oneDNN (f32, bf16) or
// our own loops (f64, for tests).
#pragma once

#include "core/ops/linear.h"

namespace ff::cpu {

/// C[b] = act(A[b] B[b] + bias), or C[b] += A[b] B[b] + bias when `accumulate` (then act is kNone).
/// A [batch, m, k], B [batch, k, n], C [batch, m, n]: views of one dtype (f32, bf16, f64), or C f32
/// and the others bf16; each may have any strides as long as one of its last two axes is
/// contiguous. A batch axis of size 1 is broadcast. bias [n] f32 (f64 for f64) contiguous or
/// undefined. Accumulates in f32 (f64 for f64). Uses all OpenMP threads; inside a parallel region
/// the calling thread alone.
void gemm(const Tensor& a, const Tensor& b, const Tensor& bias, const Tensor& c,
          Activation act = Activation::kNone, bool accumulate = false);

/// Whether bf16 products run on the processor's own units (otherwise they are converted to f32).
bool has_bf16_units();

}  // namespace ff::cpu
