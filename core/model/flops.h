// How much a pass of the model computes, in closed form: for TFLOP/s in logs and for the planner.
#pragma once

#include "core/model/config.h"

namespace ff {

/// Sizes of one pass.
struct PassSizes {
  int64_t n_res = 0, n_seq = 0, n_extra = 0, n_templates = 0;
};

/// How many of the trunk's first blocks, the extra MSA's and then the Evoformer's, a pass records
/// as checkpoints where all are. Templates are checkpoints where a block is.
constexpr int64_t kEveryBlock = int64_t(1) << 20;

/// Floating-point operations (a multiply-add is two) of matrix products, without and with those of
/// attention's cores told apart: a product's backward is twice its forward, a core's 2.5 times,
/// since it computes its logits again.
struct Flops {
  double products = 0, cores = 0;
  double forward() const { return products + cores; }
  double backward() const { return 2 * products + 2.5 * cores; }
  Flops& operator+=(const Flops& o) {
    products += o.products;
    cores += o.cores;
    return *this;
  }
};

/// One Evoformer block, or one of the extra MSA stack.
Flops evoformer_block_flops(const ModelConfig& config, const PassSizes& sizes, bool extra);

/// One whole pass (one recycle): embedders, templates, both stacks, structure module and heads.
Flops pass_flops(const ModelConfig& config, const PassSizes& sizes);

/// One training sample with `recycles` passes before the one that has a backward, in which the
/// first `recompute` blocks run forward again.
double training_flops(const ModelConfig& config, const PassSizes& sizes, double recycles,
                      int64_t recompute);

}  // namespace ff
