// The trunk's modules. Jumper et al. 2021, Suppl. Alg. 6-16, 18, 19. Each returns its
// representation with the module's update added; under NoGrad the representation given is
// overwritten.
//
// m [n_seq, n_res, c_m], z [n_res, n_res, c_z]: f32, bf16 or f64. Masks are f32, 1 = keep:
// msa_mask [n_seq, n_res], pair_mask [n_res, n_res], symmetric.
//
// Under several ranks (comm/dap.h) a block takes and returns m split by rows of axis 0 and z by its
// first index; msa_mask is whole and pair_mask has the own rows. Row attention returns m split by
// residues, where column attention, transition and outer product mean take it; triangle attention
// around the starting node returns z split by its second index, where the ending node takes it.
#pragma once

#include "comm/dap.h"
#include "core/model/config.h"
#include "core/model/nn.h"
#include "core/model/trace.h"
#include "core/ops/dropout.h"

namespace ff {

/// Gated attention of x_q over x_m, or where that is undefined over x_q, with a scope's query_w ...
/// output_b, added to `residual`. Alg. 7, 8, 13, 14, 17. x_q [batch, n_query, c], x_m [batch,
/// n_key, c_m], residual [batch, n_query, c_out]; factors [n_query, c_out] of the update's dropout,
/// undefined for none. Once the projections are made the bias is awaited and x_q let go. Where
/// `along` is 0 the first two axes of residual, x_q and x_m are the other way round.
Var attention_add(const Scope& scope, const Var& residual, Normed x_q, const Var& x_m,
                  const Gathering& bias, const Tensor& mask, const Tensor& factors = {},
                  int along = 1);

/// What a module drops of its update before it is added. AlphaFold shares the mask over the rows
/// of the axis that the module works along: axis 0, for the ending node's attention axis 1.
struct ModuleDropout {
  DropoutStream stream;
  double rate = 0;
  uint64_t place = 0;
  /// The factors for an update like x, whose axis 0 shares them.
  Tensor factors(const Var& x) const {
    return stream.factors(rate, place, x.size(1), x.size(2), x.value().dtype(), x.value().device());
  }
};

/// An alignment's mask, with what every block's outer product mean needs of it.
struct MsaMask {
  /// mask [s, n] f32; dtype: the representations'.
  MsaMask(const Tensor& mask, Dtype dtype, const Dap& dap = {});
  Tensor mask, count;  ///< count [own n, n]: pair_count of z's own pairs
};

Var msa_row_attention(const Scope& scope, const Var& m, const Var& z, const Tensor& msa_mask,
                      const ModuleDropout& dropout = {}, const Dap& dap = {});  // Alg. 7
Var msa_column_attention(const Scope& scope, const Var& m, const Tensor& msa_mask,
                         const Dap& dap = {});  // Alg. 8
Var msa_column_global_attention(const Scope& scope, const Var& m, const Tensor& msa_mask,
                                const Dap& dap = {});  // Alg. 19
Var transition(const Scope& scope, const Var& x);      // Alg. 9, 15
Var outer_product_mean(const Scope& scope, const Var& m, const Var& z, const MsaMask& msa_mask,
                       const Dap& dap = {});  // Alg. 10
Var triangle_multiplication(const Scope& scope, const Var& z, const Tensor& pair_mask,
                            bool outgoing, const ModuleDropout& dropout = {},
                            const Dap& dap = {});  // 11, 12
Var triangle_attention(const Scope& scope, const Var& z, const Tensor& pair_mask, bool starting,
                       const ModuleDropout& dropout = {}, const Dap& dap = {});  // 13, 14

struct Representations {
  Var m, z;
};

/// One block of the Evoformer (Alg. 6) or, `extra`, of the extra-MSA stack (Alg. 18). `dropout`
/// names the block.
Representations evoformer_block(const Scope& scope, const EvoformerConfig& config, bool extra,
                                Representations x, const MsaMask& msa_mask, const Tensor& pair_mask,
                                const Trace& trace, const DropoutStream& dropout = {},
                                const Dap& dap = {});

/// One block of the template pair stack (Alg. 16).
Var template_pair_block(const Scope& scope, const PairStackConfig& config, const Var& t,
                        const Tensor& pair_mask, const Trace& trace,
                        const DropoutStream& dropout = {}, const Dap& dap = {});

}  // namespace ff
