// Configuration of the feature pipeline. It stands here because the model's configuration holds it
// and io/ reads it.
#pragma once

#include <cstdint>

namespace ff {

/// What the feature pipeline needs of AlphaFold's `data` section.
struct DataConfig {
  int64_t max_msa_clusters = 512, max_extra_msa = 5120, max_templates = 4;
  bool use_templates = false, reduce_msa_clusters_by_max_templates = false;
  double masked_msa_replace_fraction = 0.15, profile_prob = 0.1, same_prob = 0.1,
         uniform_prob = 0.1;
  int64_t num_ensemble = 1;
  bool resample_msa_in_recycling = true;
};

}  // namespace ff
