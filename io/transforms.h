// Steps of the feature pipeline that work on the alignment: sampling, masking, clustering.
// AlphaFold's data_transforms.py; Jumper et al. 2021, Suppl. section 1.2.7.
#pragma once

#include "core/base/rng.h"
#include "io/features.h"

namespace ff {

/// Rows of the alignment that become cluster centres, and all others in their order of drawing.
struct RowSplit {
  std::vector<int32_t> centers, extra;
};

/// Row 0, then the order `shuffle0`, cut after `max_clusters` rows (sample_msa).
RowSplit split_rows(int64_t max_clusters, std::span<const int32_t> shuffle0);

/// Number of cluster centres that the configuration asks for. Throws Exit::kUsage if it is not
/// positive.
int64_t cluster_count(const DataConfig& config);

/// Draws `bert_mask` and `msa` of `choices` for these centres (make_masked_msa).
void draw_masked_msa(const RawFeatures& raw, const DataConfig& config,
                     std::span<const int32_t> centers, const Rng& rng, Choices& choices);

/// For each of the `extra` rows the centre with which it agrees in most columns, the first of
/// them; gaps and masks never agree (nearest_neighbor_clusters).
/// centers  [n_clusters, n_res], after masking
std::vector<int32_t> nearest_clusters(const RawFeatures& raw, std::span<const int32_t> extra,
                                      std::span<const int8_t> centers);

/// What a cluster's members say together, its centre included (summarize_clusters).
struct ClusterSummary {
  std::vector<float> profile;        ///< [n_clusters, n_res, 23]
  std::vector<float> deletion_mean;  ///< [n_clusters, n_res]
};

/// `masked` are the centres after masking, `assignment` the cluster of each extra row.
ClusterSummary summarize_clusters(const RawFeatures& raw, const RowSplit& rows,
                                  std::span<const int8_t> masked,
                                  std::span<const int32_t> assignment);

}  // namespace ff
