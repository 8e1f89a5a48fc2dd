// The trainer on one real chain: the same bits for any threads and accumulation, bf16 beside f32,
// steps that are not finite, and how much memory the tape keeps.
#include "core/train/trainer.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

#include "core/base/machine.h"
#include "core/train/objective.h"
#include "tests/unit/train/one_chain.h"

using namespace ff;
using namespace ff::test;
using Catch::Contains;
using Catch::EndsWith;
using Catch::StartsWith;

namespace {

const std::string kRoot = "alphafold/alphafold_iteration/";

}  // namespace

TEST_CASE("a step is the same for any number of threads and any accumulation") {
  const Data data;
  std::vector<TrainState> ends;
  for (const auto& [threads, accumulate] : {std::pair{1, ""}, {2, ""}, {3, "run.accumulate=1"}}) {
    const TrainConfig config = *accumulate ? small({accumulate}) : small();
    Trainer trainer(config, fresh(config), threads);
    for (int64_t step = 0; step < 2; ++step) {
      const StepReport report = trainer.step(data.samples(config, step));
      CHECK_FALSE(report.skipped);
      CHECK(std::isfinite(report.loss));
    }
    ends.push_back(trainer.state());
  }
  set_threads(available_threads());
  for (size_t i = 1; i < ends.size(); ++i) {
    CHECK(same_bits(ends[0].params, ends[i].params));
    CHECK(same_bits(ends[0].v, ends[i].v));
    CHECK(same_bits(ends[0].ema, ends[i].ema));
  }
  CHECK_FALSE(same_bits(ends[0].params, fresh(small()).params));
}

TEST_CASE("bf16 learns as f32 does") {
  const Data data;
  double losses[2][2];  // precision; before, after
  for (const int bf16 : {0, 1}) {
    const TrainConfig config = small(
        {bf16 ? "run.precision=bf16" : "run.precision=f32", "run.global_batch=1", "optim.lr=5e-3"});
    Trainer trainer(config, fresh(config), 1);
    for (int step = 0; step < 15; ++step) {
      const double loss = trainer.step(data.samples(config, 0)).loss;
      losses[bf16][step > 0] = loss;
    }
    for (const auto& [name, t] : trainer.state().params) CHECK(t.dtype() == Dtype::f32);
  }
  INFO(losses[0][0] << " to " << losses[0][1] << ", bf16 " << losses[1][0] << " to "
                    << losses[1][1]);
  CHECK(losses[1][0] == Approx(losses[0][0]).epsilon(0.01));
  CHECK(losses[0][1] < 0.8 * losses[0][0]);
  CHECK(losses[1][1] == Approx(losses[0][1]).epsilon(0.05));
}

TEST_CASE("a step that is not finite changes nothing and names sample and operation") {
  const Data data;
  const TrainConfig config = small();
  const std::string weights =
      kRoot + "evoformer/evoformer_iteration/msa_transition/transition2//weights";
  TrainState state = fresh(config);
  // Of the second block.
  Tensor w = state.params.at(weights);
  w.select(0, 1).view({-1}).data<float>()[3] = std::numeric_limits<float>::quiet_NaN();
  {
    Trainer trainer(config, state, 2);
    const std::vector<TrainingSample> samples = data.samples(config, 0);
    const StepReport report = trainer.step(samples);
    CHECK(report.skipped);
    REQUIRE(report.blamed);
    CHECK(report.blamed->index == samples[0].index);
    CHECK_THAT(report.fault, StartsWith("linear_add at ") &&
                                 Contains("msa_transition/transition2//") && EndsWith(", block 1"));
    CHECK(trainer.state().step == 1);
    CHECK(trainer.state().samples == 3);
    CHECK(trainer.state().adam_step == 0);
    CHECK(trainer.state().skipped == 1);
    CHECK(same_bits(trainer.state().m, fresh(config).m));
  }
  // A label that is not finite: the network is, the loss is not.
  Trainer trainer(config, fresh(config), 2);
  std::vector<TrainingSample> samples = data.samples(config, 0);
  const Tensor positions = samples[1].labels.at("atom14_gt_positions").clone();
  samples[1].labels["atom14_gt_positions"] = positions;
  std::fill_n(positions.data<float>(), positions.numel(), std::numeric_limits<float>::infinity());
  const StepReport report = trainer.step(samples);
  CHECK(report.skipped);
  REQUIRE(report.blamed);
  CHECK(report.blamed->index == samples[1].index);
  CHECK_THAT(report.fault, Contains("loss"));
  CHECK(same_bits(trainer.state().params, fresh(config).params));
  // The next step goes on.
  CHECK_FALSE(trainer.step(data.samples(config, 1)).skipped);
  CHECK(trainer.state().adam_step == 1);
  CHECK_FALSE(same_bits(trainer.state().params, fresh(config).params));
}

TEST_CASE("steps that overlap are those made one by one, of which one is skipped") {
  const Data data;
  const TrainConfig config = small();
  const auto samples_of = [&](int64_t step) {
    std::vector<TrainingSample> samples = data.samples(config, step);
    if (step == 1) {
      Tensor& positions = samples[2].labels["atom14_gt_positions"];
      positions = positions.clone();
      std::fill_n(positions.data<float>(), positions.numel(), INFINITY);
    }
    return samples;
  };
  Trainer one(config, fresh(config), 2), other(config, fresh(config), 2);
  std::vector<StepReport> reports, overlapping;
  for (int64_t step = 0; step < 4; ++step) {
    reports.push_back(one.step(samples_of(step)));
    other.gradients(samples_of(step));
    if (auto report = other.finish()) overlapping.push_back(*report);
    other.update();
  }
  overlapping.push_back(other.finish().value());
  CHECK_FALSE(other.finish());
  REQUIRE(overlapping.size() == 4);
  for (size_t i = 0; i < 4; ++i) {
    CHECK(reports[i].skipped == (i == 1));
    CHECK(overlapping[i].skipped == reports[i].skipped);
    CHECK(overlapping[i].fault == reports[i].fault);
    if (i != 1) CHECK(overlapping[i].scalars == reports[i].scalars);
  }
  CHECK(other.state().adam_step == 3);
  CHECK(other.state().skipped == 1);
  CHECK(same_bits(one.state().params, other.state().params));
  CHECK(same_bits(one.state().v, other.state().v));
  CHECK(same_bits(one.state().ema, other.state().ema));
}

TEST_CASE("a training pass keeps each block's inputs and one block's work") {
  set_threads(1);  // small work: barriers would take longer
  const Data data;
  const std::vector<TrainingSample> samples = data.samples(small(), 0);
  const TrainingSample& sample = samples[0];
  const Arrays& batch = sample.slices.back();
  /// Peak of tensors in a pass through so many blocks, without parameters and their gradients.
  const auto peak = [&](int64_t blocks, Dtype dtype) {
    const TrainConfig config = small({cat("model.evoformer_stack.no_blocks=", blocks)});
    Params params(config.model, initial_params(config.model, 1), "test");
    params.want_grads();
    const AlphaFold model(config.model, params, dtype);
    const int64_t before = memory_count().current;
    reset_memory_peak();
    Tape tape;
    const Outputs outputs = model.forward([&](int64_t) { return batch; }, 0);
    const Losses losses =
        objective(loss_config(config.loss), config.model.heads, outputs, batch, sample.labels);
    tape.backward({losses.total});
    int64_t gradients = 0;
    for (const auto& [name, g] : params.take_grads())
      if (name.find("/evoformer_iteration/") != std::string::npos) gradients += 4 * g.numel();
    return memory_count().peak - before - gradients;
  };
  peak(1, Dtype::f32);  // makes the tables that stay
  const TrainConfig config = small();
  const int64_t n = sample.n_res(), n_seq = batch.at("msa_feat").size(0);
  const int64_t kept = n * (n_seq * config.model.msa_channel + n * config.model.pair_channel);
  for (const auto& [dtype, size] : {std::pair{Dtype::f32, 4}, {Dtype::bf16, 2}}) {
    const int64_t few = peak(3, dtype), many = peak(6, dtype);
    INFO(name_of(dtype) << ": " << few << " and " << many << " bytes, " << kept * size
                        << " kept of a block");
    CHECK(many - few == 3 * kept * size);
  }
  set_threads(available_threads());
}

TEST_CASE("the largest sample is the configuration's, or that of shallower and shorter chains") {
  for (const uint64_t rows : {0, 40}) {
    const Data data(rows);
    const auto check_sizes = [&](const TrainConfig& config, bool all) {
      const Sampler sampler(*data.dataset, sampler_config(config), 1);
      const PassSizes most = largest_sample(config, &sampler), asked = largest_sample(config);
      const Arrays slice = sampler.sample(0, 0).slices[0];
      CHECK(most.n_res == slice.at("aatype").size(0));
      CHECK(most.n_seq == slice.at("msa_feat").size(0));
      CHECK(most.n_extra == slice.at("extra_msa").size(0));
      CHECK((most.n_res == asked.n_res && most.n_seq == asked.n_seq) == all);
    };
    const std::string kWhole = "data.block_delete_msa.fraction=0";
    check_sizes(small({kWhole}), rows > 0);
    check_sizes(small({kWhole, "data.train={crop_size: 4000, max_msa_clusters: 30}"}), false);
  }
}
