// A training sample kept so that `fastfold parity` can run its pass again.
#pragma once

#include <string>

#include "core/train/train_config.h"
#include "io/sampling.h"

namespace ff {

/// Makes `folder` with config.yaml, params.npz, batch.npz and labels.npz, and command.txt, written
/// last: the command that repeats the sample's pass, dropout included. Throws as write_npz.
void write_replay(const std::string& folder, TrainConfig config, const Arrays& params,
                  const TrainingSample& sample);

}  // namespace ff
