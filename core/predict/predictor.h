// A prediction: the network's outputs with what they say of their own confidence.
#pragma once

#include "core/model/alphafold.h"
#include "core/predict/confidence.h"

namespace ff {

/// AlphaFold::run's outputs and "confidence/..." (add_confidence).
inline Arrays predict(const AlphaFold& model, const FeatureSource& features,
                      const RunOptions& options) {
  Arrays out = model.run(features, options);
  add_confidence(model.config().heads, out);
  return out;
}

}  // namespace ff
