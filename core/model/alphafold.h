// AlphaFold 2, whole: recycling and ensembling around the trunk, the structure module and the
// heads. Jumper et al. 2021, Suppl. Alg. 2.
#pragma once

#include <algorithm>
#include <functional>

#include "comm/dap.h"
#include "core/model/config.h"
#include "core/model/flops.h"
#include "core/model/heads.h"
#include "core/model/params.h"
#include "core/model/structure.h"
#include "core/tensor/arrays.h"

namespace ff {

/// Processed features of one slice under AlphaFold's names, without the leading axis that batch.npz
/// has (aatype [n_res] i32, msa_feat [n_seq, n_res, 49] f32, ...). Slice = recycle * num_ensemble +
/// member. Called when the slice is needed, so that a deep alignment is never held for all
/// recycles.
using FeatureSource = std::function<Arrays(int64_t slice)>;

struct RunOptions {
  int64_t num_recycle = 3;
  int64_t num_ensemble = 1;
  double recycle_early_stop_tolerance = -1;  ///< angstrom, mean change of CA distances; < 0: off
  /// Told before each block: what runs now and the share of the whole run that is done. May throw
  /// to stop the run.
  std::function<void(const std::string& stage, double done)> progress;
  /// Which outputs of the size of the pair or MSA representation are wanted, joined from the ranks
  /// that share the protein and off the GPU; the others are left out. The aligned error's logits,
  /// which confidence is made of, are always there.
  std::function<bool(const std::string& name)> keep = [](const std::string&) { return true; };
  bool graphs = true;  ///< on a GPU, passes between the first and the last as CUDA graphs
  /// Receives intermediates under the fixtures' names ("cycle0/evoformer_block1/..."); for tests.
  std::function<void(const std::string& name, const Tensor& value)> trace;
};

/// The rows of the MSA representation: first those of the alignment, then the templates'.
struct MsaRows {
  int64_t n_seq = 0, total = 0;
  /// Rank r's rows of the alignment.
  Range aligned(const Dap& dap, int r) const {
    const Range all = dap.rows(total, r);
    const int64_t start = std::min(all.start, n_seq);
    return {start, std::min(all.end(), n_seq) - start};
  }
  /// The own rows of the templates, counted from the first of them.
  Range templates(const Dap& dap) const {
    const Range all = dap.mine(total);
    const int64_t start = std::max(all.start - n_seq, int64_t(0));
    return {start, std::max(all.end() - n_seq, int64_t(0)) - start};
  }
};

/// What the losses read. Logits of pairs and of the MSA: a rank's own rows.
struct Outputs {
  Fold fold;
  HeadLogits logits;
  Dap dap;
  MsaRows msa_rows;
};

/// Told in the backward that the gradients of a block's parameters are complete: those of the
/// parameters under `scope`, slice `block`.
using BlockDone = std::function<void(const std::string& scope, int64_t block)>;

class AlphaFold {
 public:
  /// `activations`: f32, bf16 (trunk activations; statistics, structure module and heads in f32) or
  /// f64 (tests). bf16 rounds the parameters' present values; their gradients are summed in f32.
  /// Computes where the parameters are; features are on the CPU. The ranks of `dap` share every
  /// protein: all call with the same arguments.
  AlphaFold(ModelConfig config, Params params, Dtype activations = Dtype::f32, Dap dap = {});

  /// Every output, on the CPU but for the aligned error's logits, under the fixtures' names:
  /// "representations/pair", "structure_module/traj", "predicted_lddt/logits", ... plus
  /// "num_recycles" (i32, how many were run). Under several ranks "predicted_aligned_error/logits"
  /// has the own rows; core/predict joins what it makes of them.
  Arrays run(const FeatureSource& features, const RunOptions& options) const;

  /// The pass of training: `num_recycle` passes without gradients, then one that the current tape
  /// records, with a checkpoint for each of the `recompute` first blocks. This object and the
  /// features' tensors must live until the tape's backward. An active `dropout` (seed, step and
  /// sample) drops at the configuration's rates, in all passes as AlphaFold does. Under several
  /// ranks each has a share of the loss: a parameter's gradient is the sum over them.
  Outputs forward(const FeatureSource& features, int64_t num_recycle, DropoutStream dropout = {},
                  const BlockDone& done = {}, int64_t recompute = kEveryBlock) const;

  const ModelConfig& config() const { return config_; }
  const Dap& dap() const { return dap_; }

 private:
  void join_rows(const MsaRows& rows, const RunOptions& options, Arrays& out) const;

  ModelConfig config_;
  Params params_;
  Dtype dtype_;
  Dap dap_;
};

}  // namespace ff
