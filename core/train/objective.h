// What is minimised: the network's outputs handed to the losses.
#pragma once

#include "core/loss/losses.h"
#include "core/model/alphafold.h"

namespace ff {

/// AlphaFold's head weights for a model; the structure module's numbers are LossConfig's own.
LossConfig head_weights(const HeadsConfig& heads, LossConfig loss = {});

/// All losses of one pass; see all_losses.
Losses objective(const LossConfig& loss, const HeadsConfig& heads, const Outputs& outputs,
                 const Arrays& batch, const Arrays& labels, bool violations = true);

}  // namespace ff
