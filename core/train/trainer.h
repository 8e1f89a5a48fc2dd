// The trainer: from samples to updated parameters, and what is said of both.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/grid.h"
#include "core/model/memory_plan.h"
#include "core/train/objective.h"
#include "core/train/train_config.h"
#include "core/train/train_state.h"
#include "io/event_file.h"
#include "io/sampling.h"

namespace ff {

/// The losses' weights and constants of a configuration.
LossConfig loss_config(const LossWeights& weights);
/// What the sampler takes of a configuration.
SamplerConfig sampler_config(const TrainConfig& config);

/// The sizes of the largest samples: what the configuration asks for, and no more than there is in
/// the sampler's chains.
PassSizes largest_sample(const TrainConfig& config, const Sampler* sampler = nullptr);

struct StepReport {
  Scalars scalars;                       ///< under TrainingLog's names
  bool skipped = false;                  ///< a loss or gradient was not finite; nothing was changed
  std::optional<TrainingSample> blamed;  ///< the first such sample of this rank's
  std::string fault;                     ///< the first operation that went wrong with it
  double loss = 0, lddt_ca = 0;
  double flops = 0;
};

class Trainer {
 public:
  /// `threads` work on as many samples at a time as a step has, the others within a sample. The
  /// result does not depend on their number. The state's parameters must be those of config.model,
  /// and the same on all ranks of the grid. On a GPU the state lives there, and up to eight samples
  /// go side by side while its memory keeps as much of each as of one alone: small networks leave
  /// most of a GPU idle. `sizes`: largest_sample's of the data. Throws Exit::kDevice where a GPU
  /// has too little memory for them, before anything is put there, and tells what would fit.
  Trainer(const TrainConfig& config, TrainState state, int threads, Grid grid = {},
          Device device = {}, std::optional<PassSizes> sizes = {});

  /// Which of a step's samples are this rank's.
  Range own_samples() const {
    return deal(config_.run.global_batch, grid_.dp.size(), grid_.dp.rank());
  }

  /// One step on own_samples(): the mean of all ranks' samples' clipped gradients, each of its
  /// total loss times the square root of the crop's length (Suppl. 1.11.3, 1.9), one step of Adam
  /// and of the average. The numbers told are those of all samples.
  StepReport step(std::vector<TrainingSample> samples);

  // The same in three parts. A run asks for a step's gradients, finishes the step before and only
  // then updates: a GPU has work all the time and does not wait for its host.

  /// Asks for the samples' passes and the sum of their gradients.
  void gradients(std::vector<TrainingSample> samples);
  /// Asks for Adam's step and counts it; the one before must be finished.
  void update();
  /// Waits for the updated step and tells of it; nothing where there is none. Then the state counts
  /// it as made or skipped. One that was skipped left everything as it was.
  std::optional<StepReport> finish();

  /// Whole chains with the averaged parameters: val/lddt_ca, tm, gdt_ts, gdt_ha, rmsd, drmsd; empty
  /// where `stop`, asked before each chain, said so.
  Scalars validate(const Sampler& sampler, const std::function<bool()>& stop);

  /// What of the trunk is kept for the backward, of the largest samples. The same on all ranks:
  /// what the one with the least free memory can keep; of a CPU's at most half.
  const RecomputePlan& plan() const { return plan_; }

  TrainState& state() { return state_; }
  const TrainState& state() const { return state_; }
  Dtype precision() const { return precision_; }

 private:
  /// One sample's gradients and what is reported of it, where the network is.
  struct Result {
    Arrays gradients;
    Tensor terms;  ///< the total, then the log's
    std::vector<bool> has_term;
    Tensor lddt;  ///< [n_res] f64
    double flops = 0;
  };
  /// A pass that a GPU is asked for as a whole, and where it leaves its numbers.
  struct Replay {
    int64_t seen = 0;  ///< samples of its shapes, before there was one
    std::unique_ptr<Recording> recording;
    Tensor terms, lddt;
  };
  /// What a sample is run with. Workers share the parameters' values.
  struct Worker {
    Params params;
    Arrays gradients = {};                    ///< of replays, one after another
    std::map<uint64_t, Replay> replays = {};  ///< by their samples' shapes
    bool records = false;
  };
  /// A sample's numbers on their way to the host.
  struct Told {
    Download norm, terms, lddt;
    std::vector<bool> has_term;
    double flops;
  };
  /// A step on its way.
  struct Step {
    std::vector<TrainingSample> samples;
    std::vector<Told> told;
    Arrays sum;      ///< of the gradients, until the update
    Tensor skipped;  ///< [1]: how many samples were not finite
    double rate = 0;
  };
  Result run(Params& params, const TrainingSample& sample) const;
  /// The same, on a GPU from a recording where samples of these shapes come again and again.
  Result run(Worker& worker, const TrainingSample& sample) const;
  /// The plan for `samples` at a time, or for as many of them as a GPU should have.
  RecomputePlan make_plan(Device device, const PassSizes& sizes, int64_t samples) const;
  /// Runs a sample again under a FiniteWatch.
  std::string first_fault(const TrainingSample& sample);

  TrainConfig config_;
  Dtype precision_;
  LossConfig loss_;
  TrainState state_;
  int threads_;
  Grid grid_;
  RecomputePlan plan_;
  std::vector<Worker> workers_;
  std::optional<Step> given_, updated_;
};

}  // namespace ff
