// AlphaFold 2, whole: recycling and ensembling around the trunk, the structure module and the
// heads. Jumper et al. 2021, Suppl. Alg. 2.
#pragma once

#include <functional>

#include "core/model/config.h"
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
  /// Receives intermediates under the fixtures' names ("cycle0/evoformer_block1/..."); for tests.
  std::function<void(const std::string& name, const Tensor& value)> trace;
};

/// What the losses read.
struct Outputs {
  Fold fold;
  HeadLogits logits;
};

class AlphaFold {
 public:
  /// `activations`: f32, bf16 (trunk activations; statistics, structure module and heads in f32) or
  /// f64 (tests). Computes where the parameters are; features are on the CPU.
  AlphaFold(ModelConfig config, Params params, Dtype activations = Dtype::f32);

  /// Every output, on the CPU, under the fixtures' names: "representations/pair",
  /// "structure_module/traj", "predicted_lddt/logits", ... plus "num_recycles" (i32, how many were
  /// run).
  Arrays run(const FeatureSource& features, const RunOptions& options) const;

  /// The pass of training: `num_recycle` passes without gradients, then one that the current tape
  /// records, a checkpoint for each block of the trunk and each template. This object and the
  /// features' tensors must live until the tape's backward. An active `dropout` (seed, step and
  /// sample) drops at the configuration's rates, in all passes as AlphaFold does.
  Outputs forward(const FeatureSource& features, int64_t num_recycle,
                  DropoutStream dropout = {}) const;

  const ModelConfig& config() const { return config_; }

 private:
  ModelConfig config_;
  Params params_;
  Dtype dtype_;
};

}  // namespace ff
