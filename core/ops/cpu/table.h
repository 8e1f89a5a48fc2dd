// The CPU kernels of one instruction set, declared for its table.
#pragma once

#include "core/ops/cpu/simd.h"
#include "core/ops/gemm.h"
#include "core/ops/kernels.h"

namespace ff::cpu::FF_ISA {

extern const Kernels kTable;

void layer_norm(const Tensor& x, const Tensor& scale, const Tensor& offset, const Tensor& y);
void layer_norm_channels_first(const Tensor& x, const Tensor& scale, const Tensor& offset, const Tensor& y);
void attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate, const Tensor& bias,
               const Tensor& mask, const Tensor& o);
void global_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate, const Tensor& mask,
                      const Tensor& o);
void masked_mean(const Tensor& x, const Tensor& mask, const Tensor& y);
void triangle_gate(const Tensor& proj, const Tensor& proj_bias, const Tensor& gate, const Tensor& gate_bias,
                   const Tensor& mask, const Tensor& a);
void add(const Tensor& x, const Tensor& y);
void add_gated(const Tensor& x, const Tensor& gate, const Tensor& y);
void scale_rows(const Tensor& mask, const Tensor& y);
void outer_product_mean(const Tensor& left, const Tensor& right, const Tensor& w, const Tensor& b,
                        const Tensor& norm, const Tensor& z);
void pair_embed(const Tensor& left, const Tensor& right, const Tensor& residue_index, const Tensor& relpos,
                const Tensor& beta, const Tensor& dgram, const Tensor& breaks, int64_t first_row, const Tensor& z);

}  // namespace ff::cpu::FF_ISA
