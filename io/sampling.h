// What one training sample is: a pure function of (seed, step, index), whatever the number of
// threads, ranks or restarts. Jumper et al. 2021, Suppl. 1.2.2 to 1.2.8 and 1.11.
#pragma once

#include <string>
#include <vector>

#include "core/base/data_config.h"
#include "core/tensor/arrays.h"
#include "io/dataset.h"

namespace ff {

struct SamplerConfig {
  int64_t crop_size = 256;
  int64_t max_recycles = 3;         ///< passes before the last, drawn uniformly from 0
  bool uniform_recycling = true;    ///< false: always max_recycles
  double clamp_prob = 0.9;          ///< share of samples whose backbone FAPE is clamped
  double distillation_prob = 0.75;  ///< where there are chains of both kinds
  double max_resolution = 9;        ///< angstrom
  double max_single_aa_prop = 0.8;  ///< share of the commonest residue
  std::string date_max;             ///< YYYY-MM-DD, later chains are left out; "": none
  bool accept_by_length_and_cluster = true;
  double block_delete_fraction = 0.3;
  int64_t block_delete_num_blocks = 5;
  int64_t distillation_rows = 1000;  ///< at most of a distilled chain's alignment (Suppl. 1.3)
  /// Clusters are made of all rows, as for prediction; false: of max_msa_clusters + max_extra_msa
  /// of them, and the others are not read.
  bool all_rows = false;
  DataConfig data;
};

struct TrainingSample {
  std::string chain;
  int64_t step = 0, index = 0;
  int64_t start = 0;           ///< of the crop, from 0
  int64_t skipped = 0;         ///< damaged chains that were drawn before this one
  std::vector<Arrays> slices;  ///< processed features, one for each recycle and the last pass
  Arrays labels;               ///< io/labels.h's, cropped, with "use_clamped_fape" [] f32
  int64_t num_recycle() const { return std::ssize(slices) - 1; }
  int64_t n_res() const { return slices[0].at("aatype").size(0); }
};

class Sampler {
 public:
  /// Throws Exit::kInput where no chain passes the filters, telling how many each one left out.
  Sampler(const Dataset& dataset, SamplerConfig config, uint64_t seed);

  /// The same for all samples of a step.
  int64_t num_recycle(int64_t step) const;
  /// A chain that cannot be read is named in a warning and replaced by the next draw; after 100 in
  /// a row its error is thrown.
  TrainingSample sample(int64_t step, int64_t index) const;

  /// The chain as it is validated on: whole, its alignment whole, `num_recycle` passes and the
  /// last; the same each time.
  TrainingSample whole(int64_t chain, int64_t num_recycle) const;
  /// Chains that pass the filters, of both kinds.
  std::vector<int32_t> chains() const;

  /// The chain of a draw: filters and acceptance (1/512) max(min(N, 512), 256) / cluster size
  /// (Suppl. 1.2.5). `attempt` is where to begin and becomes the attempt that was taken.
  int64_t draw_chain(int64_t step, int64_t index, int64_t& attempt) const;
  const SamplerConfig& config() const { return config_; }
  const Dataset& dataset() const { return dataset_; }

 private:
  TrainingSample make(const SamplerConfig& config, int64_t chain, int64_t step, int64_t index,
                      int64_t num_recycle) const;

  const Dataset& dataset_;
  SamplerConfig config_;
  uint64_t seed_;
  std::vector<int32_t> chains_, distilled_;
};

/// Where a crop of `crop` of `n_res` residues starts; u in [0, 1). Unclamped: uniform; clamped:
/// uniform in [0, n - x] with x uniform in [0, n], n = n_res - crop. Suppl. 1.2.8.
int64_t crop_start(int64_t n_res, int64_t crop, bool clamped, double u0, double u1);

/// The rows that block deletion leaves, ascending, row 0 always. Suppl. Alg. 1.
std::vector<int32_t> delete_blocks(int64_t n_seq, double fraction, int64_t blocks, uint64_t seed,
                                   uint64_t sample);

}  // namespace ff
