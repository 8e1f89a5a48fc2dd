// A prediction: the network's outputs with what they say of their own confidence.
#pragma once

#include "core/model/alphafold.h"
#include "core/predict/confidence.h"

namespace ff {

/// AlphaFold::run's outputs and "confidence/..." (add_confidence), whole on every rank.
inline Arrays predict(const AlphaFold& model, const FeatureSource& features,
                      const RunOptions& options) {
  Arrays out = model.run(features, options);
  add_confidence(model.config().heads, out, model.dap());
  const auto logits = out.find("predicted_aligned_error/logits");
  if (logits == out.end()) return out;
  if (options.keep(logits->first)) {
    const NoGrad no_grad;
    logits->second =
        gather(model.dap(), logits->second, 0, logits->second.size(1)).value().to(Device{});
  } else {
    out.erase(logits);
  }
  return out;
}

}  // namespace ff
