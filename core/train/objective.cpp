// The bridge from the model's outputs to the losses' inputs.
#include "core/train/objective.h"

#include "core/base/timeline.h"

namespace ff {

LossConfig head_weights(const HeadsConfig& heads, LossConfig loss) {
  loss.distogram = heads.distogram_weight;
  loss.masked_msa = heads.masked_msa_weight;
  loss.predicted_lddt = heads.plddt_weight;
  loss.predicted_aligned_error = heads.pae_weight;
  loss.experimentally_resolved = heads.experimentally_resolved_weight;
  loss.structure_module = heads.structure_module_weight;
  return loss;
}

Losses objective(const LossConfig& loss, const HeadsConfig& heads, const Outputs& outputs,
                 const Arrays& batch, const Arrays& labels, bool violations) {
  const Span span("losses");
  LossInputs in;
  for (const FoldLayer& layer : outputs.fold.layers) {
    in.affines.push_back(layer.affine);
    in.angles.push_back(layer.angles);
    in.unnormalized_angles.push_back(layer.unnormalized_angles);
  }
  in.frames = outputs.fold.layers.back().frames;
  in.atoms = outputs.fold.layers.back().atoms;
  const HeadLogits& logits = outputs.logits;
  in.distogram = logits.distogram;
  in.masked_msa = logits.masked_msa;
  in.lddt = logits.lddt;
  in.aligned_error = logits.aligned_error;
  in.resolved = logits.resolved;
  in.dap = outputs.dap;
  in.n_seq = outputs.msa_rows.n_seq;
  in.msa_rows = outputs.msa_rows.aligned(outputs.dap, outputs.dap.rank());
  in.distogram_edges = distogram_edges(heads);
  in.aligned_error_breaks = aligned_error_breaks(heads);
  return all_losses(loss, in, batch, labels, violations);
}

}  // namespace ff
